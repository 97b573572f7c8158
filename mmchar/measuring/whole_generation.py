"""A generation from end to end on its device, with nobody watching: what the sum over its stages is held against.

What it takes beyond the sum is the host's: the pipeline's own code, schedulers, sampling, and transfers. It may be
negative: on a GPU the host works ahead of the device, also from one stage to the next, and a cache that grows is
measured at its middle step only.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from mmchar.counting.operator_table import COLUMNS, OUTSIDE, rows_frame
from mmchar.generation.recording import Stage
from mmchar.measuring.timing import Measurement, Work, measure_time
from mmchar.tracing.trace import Row

LONG_S = 60.0  # a longer generation is timed once
REST = "host, schedulers and transfers"  # the operator of the row of what the stages leave
_MORE = 0.1  # share by which the stages may add up to more than the whole before that is a doubt


def time_generation(work: Work, *, device: str, samples: int, warmup: int, label: str) -> Measurement:
    """Seconds of whole generations; of one that takes longer than a minute, of the first one alone."""
    first = measure_time(lambda: work, device=device, samples=1, warmup=0, label=label)
    if first.median_s > LONG_S:
        return first
    found = measure_time(lambda: work, device=device, samples=samples, warmup=max(0, warmup - 1), label=label)
    return replace(found, warmup=max(1, warmup))


def generation_facts(timed: Measurement, medians_s: dict[str, float], plan: Sequence[Stage]) -> dict[str, Any]:
    """Samples of the whole, the sum of ``median * repeats`` over its stages, and the difference, in seconds.

    Sum and difference are None where a stage was not measured.
    """
    whole = all(stage.name in medians_s for stage in plan)
    sum_s = sum(medians_s[stage.name] * stage.repeats for stage in plan) if whole else None
    rest_s = None if sum_s is None else timed.median_s - sum_s
    return {**timed.facts(), "sum_of_stages_s": sum_s, "rest_s": rest_s}


def generation_doubts(timed: Measurement, facts: dict[str, Any]) -> list[str]:
    """Reasons not to trust what the stages leave of the whole, a line each."""
    doubts, rest_s = timed.doubts, facts["rest_s"]
    if rest_s is not None and rest_s < -_MORE * timed.median_s:
        doubts.append(f"{timed.label}: its stages add up to {facts['sum_of_stages_s'] / timed.median_s:.2f}x the whole")
    return doubts


def rest_row(model: str, rest_s: float) -> pd.DataFrame:
    """The row of what the stages leave of a whole generation, of the stage of what runs outside the networks."""
    frame = rows_frame([Row("", OUTSIDE, REST, "Uncounted")])
    stage = {"model": model, "stage": OUTSIDE, "component": OUTSIDE, "step": 0, "repeats": 1}
    timed = {"time_s": rest_s, "time_kind": "measured", "kernels": 0}
    return frame.assign(**stage, **timed)[list(COLUMNS)].assign(ran="")
