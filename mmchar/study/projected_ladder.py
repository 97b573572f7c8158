"""The optimization ladder by projection, beside what others published and what was measured of the same rungs.

A projection knows number types, attention kernels, compilation, CUDA graphs and the bytes and rates of quantized
layers. It does not know channels-last convolutions and fused projections of queries, keys and values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from tqdm import tqdm

from mmchar.counting.operator_table import OUTSIDE, count
from mmchar.measuring.optimization.ladder import Levers, Rung, ladder
from mmchar.models.loading import get_spec
from mmchar.projection.data_sheets import Gpu, get_gpu
from mmchar.projection.decode_costs import is_per_token, narrow_weights, per_token
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.roofline import project
from mmchar.provenance import REFERENCE
from mmchar.request import Request
from mmchar.study.experiments import per_unit_s
from mmchar.study.measured_runs import Run
from mmchar.tables.totals import executions

UNKNOWN = ("channels_last", "fused_qkv")  # levers that a projection cannot express
_PEAKS = {"int8-dynamic": "int8", "fp8-dynamic": "fp8"}


def project_rung(
    model: str, rung: Rung, *, gpu: str | Gpu, request: Request | None = None, tiny: bool = False
) -> pd.DataFrame:
    """The projected table of one rung; levers that a projection cannot express change nothing in it.

    A CUDA graph is eager or compiled kernels without any host time. Weight-only quantization stores the weights of the
    decoding steps in one byte per number. Dynamic quantization moves one byte per number into linear layers and
    multiplies at the 8-bit peak of the data sheet; that kernels reach the same share of it as of the 16-bit peak, and
    that quantizing the activations costs nothing, is assumed, so it is the most that there is to gain. A GPU that lacks
    the rung's number type, or the products that it is quantized for, is refused by a ValueError.
    """
    sheet, levers = _sheet(gpu), rung.levers
    table = count(model, request, dtype=rung.dtype, tiny=tiny)
    free = {"dispatch_s": 0.0, "dispatch_compiled_s": 0.0} if levers.on_graphs else {}
    how: dict[str, Any] = {"attention": rung.attention, "efficiency": Efficiency(**free)}
    how["execution"] = "compiled" if levers.compiles else "eager"
    if levers.quantization.endswith("weight-only"):
        narrow = narrow_weights(table)["read_bytes"]
        table = table.assign(read_bytes=narrow.where(per_token(table), table["read_bytes"]))
    timed = project(table, gpu=sheet, **how)
    if levers.quantization.endswith("dynamic"):
        eight = project(_in_one_byte(table), gpu=_with_peak(sheet, _PEAKS[levers.quantization], rung.dtype), **how)
        timed["time_s"] = timed["time_s"].where(timed["category"] != "Linear", eight["time_s"])
    return timed


def project_ladder(
    model: str,
    *,
    gpu: str | Gpu,
    request: Request | None = None,
    tiny: bool = False,
    tf32: bool = False,
    rungs: Sequence[Rung] | None = None,
) -> pd.DataFrame:
    """One row per rung: ``rung``, ``value`` (s per token, or s per image), ``gain`` over the first, ``note``.

    A rung that adds only what a projection cannot express has no value; ``note`` says what is left out. A GPU without
    fp8 products is given int8 ones. With ``tf32`` float32 matrix products go through TF32, which is not PyTorch's
    default.
    """
    sheet, rows, before = _sheet(gpu), [], None
    for rung in rungs or ladder(model):
        left_out = [name.replace("_", " ") for name in UNKNOWN if getattr(rung.levers, name)]
        notes = [f"without {' and '.join(left_out)}"] if left_out else []
        if rung.levers.quantization == "fp8-dynamic" and "fp8" not in sheet.peak_flop_s:
            rung = rung._replace(levers=replace(rung.levers, quantization="int8-dynamic"))
            notes.append("int8 instead of fp8")
        on, value = sheet, float("nan")
        if tf32 and rung.dtype == "float32" and "tf32" in sheet.peak_flop_s:
            on = _with_peak(sheet, "tf32", "float32")
            notes.append("TF32")
        if (known := _known(rung)) != before:
            value = per_unit_s(project_rung(model, rung, gpu=on, request=request, tiny=tiny))
        rows.append({"rung": rung.name, "value": value, "note": ", ".join(notes)})
        before = known
    return _with_gains(rows, model, sheet)


def project_levers(model: str, *, gpu: str | Gpu, tiny: bool = False) -> pd.DataFrame:
    """One row per lever of a diffusion model, pulled alone from bfloat16 with fused attention: s per image, ``gain``.

    ``guidance split`` runs classifier-free guidance as two executions of one image; without guidance it has no value.
    """
    sheet, full = _sheet(gpu), get_spec(model, tiny=tiny).resolve(None)
    if not isinstance(full.steps, int):
        raise ValueError(f"{model} has no single number of denoising steps; choose a latent diffusion model")
    start = Rung("as it is", "bfloat16", "flash", Levers())
    ways: dict[str, tuple[Rung, Request | None]] = {
        "as it is": (start, None),
        "eager attention": (start._replace(attention="eager"), None),
        "float32": (start._replace(dtype="float32"), None),
        "compile": (start._replace(levers=Levers(execution="compiled")), None),
        "graphs": (start._replace(levers=Levers(execution="graphs")), None),
    }
    if eight := next((kind for kind in ("fp8", "int8") if kind in sheet.peak_flop_s), None):
        ways[f"linear layers in {eight}"] = (start._replace(levers=Levers(quantization=f"{eight}-dynamic")), None)  # type: ignore[arg-type]
    ways["batch 4"] = (start, Request(batch=4))
    ways["half the steps"] = (start, Request(steps=max(1, full.steps // 2)))
    rows = []
    for name, (rung, request) in ways.items():
        timed = project_rung(model, rung, gpu=sheet, request=request, tiny=tiny)
        rows.append({"lever": name, "value": per_unit_s(timed)})
    if full.guided:
        alone = project_rung(model, start, gpu=sheet, request=Request(guidance=1.0), tiny=tiny)
        twice = alone["stage"].astype(str).str.startswith("denoise")
        split = alone.assign(repeats=alone["repeats"] * (1 + twice))
        rows.append({"lever": "guidance split", "value": per_unit_s(split)})
    return _with_gains(rows, model, sheet)


def published_rungs(model: str, *, gpu: str, steps: int | None = None) -> pd.DataFrame:
    """What others published of a model on one GPU, each with the rung that it is nearest to; s per token or image.

    Columns: ``model, rung, value, time_kind, setting, source``; a configuration that is no rung (other engines, int4)
    is left out.
    """
    rows = pd.read_csv(REFERENCE / "published_speeds.csv", dtype=str, keep_default_na=False)
    rows = rows[(rows["model"] == model) & (rows["gpu"] == gpu) & (rows["gpus"] == "1")]
    rows = rows[rows["batch"].isin(["", "1"]) & rows["execution"].isin(["eager", "compiled"])]
    rows = rows[(rows["execution"] == "eager") | (rows["dtype"] != "float32")]  # no rung compiles in float32
    rows = rows[(rows["weights"] != "int4") & rows["unit"].isin(["s/image", "tokens/s"])]
    if steps is not None:
        rows = rows[rows["steps"] == str(steps)]
    value = rows["value"].astype(float)
    value = value.where(rows["unit"] != "tokens/s", 1 / value)
    out = rows.assign(value=value, rung=[_rung_of(row) for row in rows.to_dict("records")], time_kind="published")
    return out[["model", "rung", "value", "time_kind", "setting", "source"]].reset_index(drop=True)


def measured_rungs(runs: Sequence[Run]) -> pd.DataFrame:
    """What was measured of the rungs of the models' ladders; s per token or image, from medians without a profiler."""
    rows = []
    for run in runs:
        try:
            rungs = ladder(run.asked["model"])
        except ValueError:  # a model without a ladder
            continue
        value, asked = _measured_s(run), (run.asked["dtype"], run.asked["attention"], Levers(**run.asked["levers"]))
        found = [rung.name for rung in rungs if (rung.dtype, rung.attention, rung.levers) == asked]
        of_run = (value, "measured", run.machine, run.samples, run.spread)
        rows += [(run.asked["model"], name, *of_run) for name in found if value is not None]
    return pd.DataFrame(rows, columns=["model", "rung", "value", "time_kind", "machine", "samples", "spread"])


def climb(
    cases: Mapping[str, tuple[str, int | None]], runs: Sequence[Run], *, tiny: bool = False, tf32: bool = False,
    rungs: Sequence[Rung] | None = None, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Projected, published and measured rungs of several models below each other, told apart by ``time_kind``.

    `cases` are a GPU and a number of denoising steps (None: those of the model) by model. Columns of `project_ladder`,
    `published_rungs` and `measured_rungs`; what one of them does not know is missing.
    """
    projected, published = [], []
    for name, (gpu, steps) in tqdm(cases.items(), desc="ladders", disable=not progress):
        given: dict[str, Any] = {"request": Request(steps=steps), "tiny": tiny, "tf32": tf32, "rungs": rungs}
        projected.append(project_ladder(name, gpu=gpu, **given))
        published.append(published_rungs(name, gpu=gpu, steps=steps))
    parts = [*projected, *published, measured_rungs(runs)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def of_kind(climbed: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The rows of `climb` of one kind of time, with the columns that they have."""
    return climbed[climbed["time_kind"] == kind].dropna(axis=1, how="all")


def rungs_beside(climbed: pd.DataFrame) -> pd.DataFrame:
    """Published rungs beside their projections: ``model, rung, setting, published_s, projected_s, ratio, source``."""
    said, ours = (climbed[climbed["time_kind"] == kind] for kind in ("published", "projected"))
    both = said.merge(ours[["model", "rung", "value"]], on=["model", "rung"], suffixes=("", "_projected"))
    both = both.rename(columns={"value": "published_s", "value_projected": "projected_s"}).dropna(subset="projected_s")
    both = both.assign(ratio=both["projected_s"] / both["published_s"])
    columns = ["model", "rung", "setting", "published_s", "projected_s", "ratio", "source"]
    return both.reindex(columns=columns)  # nothing may be published


def _measured_s(run: Run) -> float | None:
    """Seconds per token or image of a run; None where only some stages of an image were measured."""
    if "decode" in run.stages:
        steps = executions(run.table)["decode"]
        return sum(each for name, each in run.stage_s.items() if is_per_token(name)) / steps
    table = run.counted()
    if set(run.stages) >= set(table["stage"].astype(str)[table["component"] != OUTSIDE]):
        return sum(run.stage_s.values()) / run.asked["request"].get("batch", 1)
    return None


def _sheet(gpu: str | Gpu) -> Gpu:
    return gpu if isinstance(gpu, Gpu) else get_gpu(gpu)


def _with_gains(rows: list[dict[str, Any]], model: str, sheet: Gpu) -> pd.DataFrame:
    out = pd.DataFrame(rows).assign(model=model, time_kind="projected", machine=sheet.name)
    return out.assign(gain=out["value"].iloc[0] / out["value"])


def _known(rung: Rung) -> tuple[Any, ...]:
    """What a projection sees of a rung."""
    return rung.dtype, rung.attention, replace(rung.levers, channels_last=False, fused_qkv=False)


def _in_one_byte(table: pd.DataFrame) -> pd.DataFrame:
    """The table with linear layers that read weights and activations in one byte per number instead of two."""
    linear = (table["category"] == "Linear") & table["dtype"].isin(["bfloat16", "float16"])
    return table.assign(read_bytes=table["read_bytes"].where(~linear, table["read_bytes"] // 2))


def _with_peak(sheet: Gpu, name: str, dtype: str) -> Gpu:
    if name not in sheet.peak_flop_s:
        raise ValueError(f"{sheet.name} has no {name} products")
    return replace(sheet, peak_flop_s={**sheet.peak_flop_s, dtype: sheet.peak_flop_s[name]})


def _rung_of(row: dict[str, str]) -> str:
    if row["weights"]:
        return "quantized"
    if row["execution"] == "compiled":
        return "graphs" if "static cache" in row["setting"] else "compile"
    if row["attention"] == "eager":
        return "eager fp32" if row["dtype"] == "float32" else "bf16"
    return "SDPA"
