"""Closed forms beside counts, for the tests of both."""

import pandas as pd

from mmchar.counting.seqlen import COLUMNS, seen

WITHOUT_CLOSED_FORM = [  # models of classes without a closed form
    "amused-256", "amused-512", "animatediff-v1.5.2", "audioldm2", "audioldm2-large", "blip2-opt-2.7b",
    "emu3-gen-8b", "hunyuan-dit-1.2", "idefics-80b-flamingo", "idefics-9b-flamingo", "latte-1",
    "llama-3.2-11b-vision", "mochi-1", "next-gpt-7b", "next-gpt-7b-video", "qwen2.5-omni-7b", "sana-1.5-1.6b",
    "sana-1.5-4.8b", "sana-1.6b-1024", "stable-audio-open-1.0", "svd-xt", "z-image-turbo",
]  # fmt: skip


def assert_same_lengths(form: pd.DataFrame, table: pd.DataFrame) -> None:
    """The attentions of a closed form are those of an operator table, row by row."""
    left, right = (rows.sort_values(list(COLUMNS), ignore_index=True) for rows in (form, seen(table)))
    pd.testing.assert_frame_equal(left, right)
