"""What each optimization gives a diffusion model: bounds from the data sheet, levers alone, and levers on a CPU.

The ladder itself is `projected_ladder.climb`; its ``cases`` are a GPU and a number of denoising steps by model.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from mmchar.locks import alone
from mmchar.measuring.optimization.ladder import Levers, ladder
from mmchar.measuring.profiling import measure
from mmchar.models.loading import get_spec
from mmchar.projection.data_sheets import get_gpu
from mmchar.request import Request
from mmchar.study.projected_ladder import of_kind, project_levers

Cases = Mapping[str, tuple[str, int]]
_WAYS: dict[str, dict[str, Any]] = {  # what of the ladder a CPU can do without compiling for minutes
    "eager fp32": {"attention": "eager"},
    "SDPA fp32": {},
    "SDPA bf16": {"dtype": "bfloat16"},
    "channels last": {"levers": Levers(channels_last=True)},
    "fused QKV": {"levers": Levers(fused_qkv=True)},
    "guidance split": {"levers": Levers(cfg="split")},
    "half the steps": {"request": Request(steps=1)},
}
_UNFIT = {"diffusion_transformer": ("channels last", "guidance split")}  # no convolutions, no doubled batch
_GAINS = {
    "half the steps": (1, 2),
    "compile": (1, 2.5),
    "graphs": (1, 1.1),
    "float32": (0, 1),
    "eager attention": (0, 1),
}


def checked_cases(
    models: Sequence[str], gpus: Sequence[str], steps: Sequence[int], *, tiny: bool = False
) -> dict[str, tuple[str, int]]:
    """The cases of a ladder: GPU and denoising steps by model.

    Raises a ValueError for a model without a ladder, steps that it cannot do, a GPU without bfloat16, and for lists of
    different lengths.
    """
    if not len(models) == len(gpus) == len(steps):
        given = f"{len(models)}, {len(gpus)} and {len(steps)}"
        raise ValueError(f"models, ladder_gpus and ladder_steps have {given} entries; give as many of each")
    for name, gpu, many in zip(models, gpus, steps, strict=True):
        ladder(name)
        get_spec(name, tiny=tiny).resolve(Request(steps=many))
        get_gpu(gpu).check_dtype("bfloat16")
    return {name: (gpu, many) for name, gpu, many in zip(models, gpus, steps, strict=True)}


def bounds(tables: Mapping[str, pd.DataFrame], cases: Cases) -> pd.DataFrame:
    """What the data sheet says of counted tables of cases: FLOPs, seconds at the bf16 peak, what number types can give.

    Columns: ``model, gpu, steps, TFLOP, at peak (s), bf16 / TF32 peak (x), Linear (% of FLOP), 8 bit at most (x)``.
    """
    rows = []
    for name, (gpu, steps) in cases.items():
        sheet, table = get_gpu(gpu), tables[name]
        total = (table["flop"] * table["repeats"]).groupby(table["category"].astype(str)).sum()
        flop, linear, peak = total.sum(), total.get("Linear", 0) / total.sum(), sheet.peak("bfloat16")
        eight = sheet.peak_flop_s.get("fp8", sheet.peak_flop_s.get("int8", peak))
        most = 1 / (1 - linear + linear * peak / eight)
        types = peak / sheet.peak("float32", tf32=True), 100 * linear, most
        rows.append((name, gpu, steps, flop / 1e12, flop / peak, *types))
    columns = ["model", "gpu", "steps", "TFLOP", "at peak (s)"]
    return pd.DataFrame(rows, columns=[*columns, "bf16 / TF32 peak (x)", "Linear (% of FLOP)", "8 bit at most (x)"])


def published_gains(climbed: pd.DataFrame) -> pd.DataFrame:
    """Published rungs of a table of `climb` with ``gain``, over the first one that was published of the model."""
    said = of_kind(climbed, "published")
    if said.empty:
        return said
    return said.assign(gain=said.groupby("model")["value"].transform("first") / said["value"])


def levers_alone(models: Iterable[str], *, gpu: str, tiny: bool = False, progress: bool = True) -> pd.DataFrame:
    """`projected_ladder.project_levers` of each model, below each other."""
    bar = tqdm(list(models), desc="levers", disable=not progress)
    return pd.concat([project_levers(name, gpu=gpu, tiny=tiny) for name in bar], ignore_index=True)


def judged_gains(levers: pd.DataFrame) -> pd.DataFrame:
    """Gains of single levers over all models beside what is expected of them: ``name, expected, got, good``."""
    gains, rows = levers.pivot(index="model", columns="lever", values="gain"), []
    for lever, (low, high) in _GAINS.items():
        least, most = gains[lever].min(), gains[lever].max()
        slack = 1e-3 if lever == "half the steps" else 1e-9
        name = f"gain of {lever}" + " alone" * (lever != "half the steps")
        good = bool(least >= low - 1e-9 and most <= high + slack)
        rows.append((name, f"{low:g} to {high:g}x", f"{least:.2f} to {most:.2f}x", good))
    return pd.DataFrame(rows, columns=["name", "expected", "got", "good"])


@alone()
def measured_ways(models: Iterable[str], *, samples: int, few: bool = False, progress: bool = True) -> pd.DataFrame:
    """All denoising steps of scaled-down models on this CPU, by lever, as `projection_plots.ladder_bars` draws it.

    Columns: ``model, rung, steps, median_s, iqr_s`` (of a step), ``value`` (s), ``spread`` (IQR / median), and the gain
    over SDPA in float32. `few`: only the first two ways.
    """
    rows = []
    for name in tqdm(list(models), desc="measure", disable=not progress):
        unfit = _UNFIT.get(get_spec(name).family, ())
        for way in [way for way in list(_WAYS)[: 2 if few else None] if way not in unfit]:
            table = measure(name, tiny=True, stages=["denoise"], samples=samples, progress=False, **_WAYS[way])
            seconds = {key: table.attrs[key]["denoise"] for key in ("median_s", "iqr_s")}
            rows.append({"model": name, "rung": way, "steps": int(table["repeats"].max()), **seconds})
    out = pd.DataFrame(rows).assign(time_kind="measured", machine="this CPU, scaled down")
    out = out.assign(value=out["median_s"] * out["steps"], spread=out["iqr_s"] / out["median_s"])
    start = out[out["rung"] == "SDPA fp32"].set_index("model")["value"]
    return out.assign(**{"gain over SDPA fp32": out["model"].map(start) / out["value"]})


def learned(climbed: pd.DataFrame, levers: pd.DataFrame, cases: Cases, *, gpu: str) -> str:
    """What the ladders of the cases and the levers alone on a GPU say, as a list in Markdown."""
    ours, said, lines = of_kind(climbed, "projected"), of_kind(climbed, "published"), []
    for name, (card, _) in cases.items():
        part = ours[ours["model"] == name]
        start, best = part.iloc[0], part.loc[part["value"].idxmin()]
        text = f"{start['value']:.3g} s to {best['value']:.3g} s ({best['rung']}), {best['gain']:.2f}x"
        lines.append(f"- **{name}** on {card}: {text}, projected.")
        seconds = said.loc[said["model"] == name, "value"] if len(said) else said
        if len(seconds):
            low, high = seconds.min(), seconds.max()
            lines.append(f"  Published: {high:.3g} s to {low:.3g} s, {high / low:.2f}x.")
    gain = levers[levers["lever"] == "compile"].set_index("model")["gain"]
    reach = f"{gain.min():.2f}x ({gain.idxmin()}) to {gain.max():.2f}x ({gain.idxmax()})"
    return "\n".join([*lines, f"- Compilation alone gives {reach} on {gpu}."])
