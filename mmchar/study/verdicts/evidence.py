"""What was measured of a claim: on this project's machines at published scale, and by others on GPUs."""

from functools import cache

import pandas as pd

from mmchar.provenance import REFERENCE, SOURCE
from mmchar.study.claims import attention_block
from mmchar.study.measured_runs import Run, read_runs

_OTHERS = REFERENCE / "measured_by_others.csv"
# Claim, model whose main stage is shown, and what of it: a category, or temporal attention's block.
_HERE = (
    ("c001", "stable-diffusion-1.5", "Convolution"),
    ("c002", "parti-350m", "Linear"),
    ("c005", "modelscope-t2v-1.7b", "temporal"),
)


def others() -> pd.DataFrame:
    """Shares that others measured on GPUs: ``claim, system, gpu, share`` (%), ``of, how, source, licence``."""
    return pd.read_csv(_OTHERS, keep_default_na=False)


def by_others() -> dict[str, str]:
    """By claim, what others measured that bears on it, in words."""
    table = others()
    words = (
        table["share"].map("{:.3g} %".format) + " " + table["of"] + " (" + table["system"] + ", " + table["gpu"] + ")"
    )
    return words.groupby(table["claim"]).agg("; ".join).to_dict()


@cache
def measured_here() -> dict[str, str]:
    """By claim, the share that was measured of a main stage at published scale, with the machine, in words."""
    runs = read_runs(SOURCE / "data" / "measured", [model for _, model, _ in _HERE])
    found = {}
    for claim, model, what in _HERE:
        mine = [run for run in runs if run.asked["model"] == model and run.kernel == "flash"]
        if mine:
            found[claim] = _in_words(max(mine, key=lambda run: run.samples), what)
    return found


def _in_words(run: Run, what: str) -> str:
    table = run.table[run.table["stage"] == run.main_stage]
    seconds = table["time_s"] * table["repeats"]
    if what == "temporal":
        blocks = {kind: float(seconds[attention_block(table, kind)].sum()) for kind in ("temporal", "spatial")}
        value, of = 100 * blocks["temporal"] / sum(blocks.values()), "temporal with projections"
    else:
        value, of = 100 * float(seconds[table["category"] == what].sum() / seconds.sum()), what
    return f"{value:.3g} % {of} ({run.asked['model']}, {run.main_stage}, {run.machine}, {run.asked['dtype']})"
