"""What attention over frames takes of a video model's attention: counted, projected, scaled up, and measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

from mmchar.counting.operator_table import count
from mmchar.models.loading import get_spec
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.roofline import project
from mmchar.request import Request
from mmchar.study.drawing.length_plots import curves, matrix
from mmchar.study.drawing.look import KIND_COLORS
from mmchar.study.experiments import compare_attention
from mmchar.study.measured_runs import Run
from mmchar.study.measured_shares import temporal_shares
from mmchar.study.temporal import temporal_readings
from mmchar.tables.totals import totals

BY = ["model", "stage", "attention"]
AMOUNTS = ["flop", "bytes_fused", "time_fused_s", "time_eager_s", "time_ideal_s"]
KERNELS = ("flash", "eager", "ideal")
JUDGED = ("flash, core", "eager, core", "flash, block", "flash, module")  # kernel and reading that c005 is held against
STAGE = "denoise_keyframes"
_PLACE = 1  # of its steps in a request: after the prior's
_SIDE_FRAMES = 16  # key frames of the sweep over sides
_BETWEEN = ["spatial", "temporal"]
_SHAPE = ["attention", "batch", "heads", "q_len", "kv_len", "head_dim"]
_COLUMNS = {"flop": "FLOP", "time_fused_s": "fused (s), projected", "time_eager_s": "eager (s), projected"}


def key_frames(model: str, frames: int, side: int, **more: Any) -> Request:
    """What a cascade of video models is asked for, so that it makes so many key frames of such a side (pixels).

    `more` is what else a `Request` has. Raises a ValueError for a model without key frames, or what it cannot be asked.
    """
    spec = get_spec(model)
    if spec.family != "video_cascade":
        raise ValueError(f"scaled_model={model!r} has no key-frame stage; choose make-a-video")
    options = spec.pipeline.arguments
    pixels, between = options["keyframe_divisor"] * side, options["frame_skip"]
    request = Request(frames=between * (frames - 1) + 1, height=pixels, width=pixels, **more)
    spec.resolve(request)
    return request


def sweep_requests(model: str, frames: Sequence[int], sides: Sequence[int]) -> dict[tuple[int, int], Request]:
    """Requests by (key frames, side): all `frames` at the first side, then 16 key frames at all `sides`."""
    pairs = [(many, sides[0]) for many in frames] + [(_SIDE_FRAMES, side) for side in sides]
    return {pair: key_frames(model, *pair) for pair in pairs}


def expected_by_level(positions: Sequence[int], *, frames: int, tile: int = 128) -> pd.DataFrame:
    """What one spatial attention does over the two temporal ones beside it, per level of so many positions.

    Columns: ``positions``, FLOPs as such, FLOPs of whole tiles of a flash kernel, and frames of equal FLOPs.
    """
    at = pd.Series(positions)
    whole = np.ceil(at / tile) * tile
    return pd.DataFrame(
        {
            "positions": at,
            "spatial / temporal FLOP": at / (2 * frames),
            "the same in whole tiles": whole**2 * frames / (2 * at * tile**2),
            "frames of equal FLOP": at // 2,
        }
    )


def by_kernel(table: pd.DataFrame, *, gpu: str) -> dict[str, pd.DataFrame]:
    """The projected table with each of `KERNELS`; ``ideal`` is fused and wastes no tile.

    An ideal core takes the larger of arithmetic and traffic, at the efficiencies of all projections.
    """
    timed = {kernel: project(table, gpu=gpu, attention=kernel) for kernel in ("flash", "eager")}
    fused, sheet, reached = timed["flash"], get_gpu(gpu), Efficiency()
    moved_s = (fused["read_bytes"] + fused["write_bytes"]) / (sheet.bandwidth_bytes_s * reached.bandwidth)
    pace = 1 + reached.softmax_depth / fused["head_dim"].clip(lower=1)  # the exponentials of each pair
    core_s = np.maximum(fused["flop"] * pace / (sheet.peak(table.attrs["dtype"]) * reached.flash), moved_s)
    return timed | {"ideal": fused.assign(time_s=fused["time_s"].where(table["attention"] == "", core_s))}


def cores_by_stage(timed: Mapping[str, Mapping[str, pd.DataFrame]], *, gpu: str) -> pd.DataFrame:
    """Spatial and temporal cores of each stage of models with tables of `by_kernel`: `BY`, ``calls``, `AMOUNTS`.

    The columns of `experiments.compare_attention` are there besides.
    """
    parts = []
    for kernels in timed.values():
        both = compare_attention(kernels["eager"], kernels["flash"], BY)
        parts.append(both.assign(time_ideal_s=totals(kernels["ideal"], BY)["time_s"]))
    out = pd.concat(parts, ignore_index=True).assign(gpu=gpu, time_kind="projected")
    return out[out["attention"].isin(_BETWEEN)]


def temporal_part(by_stage: pd.DataFrame) -> pd.DataFrame:
    """Share of temporal in spatial and temporal cores (%), of each of `AMOUNTS`, by model and stage."""
    wide = by_stage.pivot_table(index=BY[:2], columns="attention", values=AMOUNTS, sort=False)
    both = wide.T.groupby(level=0).sum().T
    return (100 * wide.xs("temporal", axis=1, level=1) / both)[AMOUNTS]


def under_assumptions(timed: Mapping[str, Mapping[str, pd.DataFrame]], *, gpu: str) -> pd.DataFrame:
    """Temporal share of attention time under every combination of stages that count, kernel and reading.

    Columns: ``model, stages, kernel, reading, share`` (%), ``total_s``, ``case`` (model and stages), ``how`` (kernel
    and reading).
    """
    rows = []
    for model, kernels in timed.items():
        for kernel, table in kernels.items():
            for what, counts in _stages_that_count(model, table).items():
                found = temporal_readings(table[counts]).itertuples(name=None)
                rows += [(model, what, kernel, *one) for one in found]
    out = pd.DataFrame(rows, columns=["model", "stages", "kernel", "reading", "share", "total_s"])
    out = out.assign(gpu=gpu, time_kind="projected", case=out["model"] + ", " + out["stages"])
    return out.assign(how=out["kernel"] + ", " + out["reading"])


def _stages_that_count(model: str, table: pd.DataFrame) -> dict[str, pd.Series]:
    """Rows of a table by the stages that may be meant."""
    stage, spatial = table["stage"].astype(str), table["attention"] == "spatial"
    everything = {"all stages": stage != ""}
    if get_spec(model).family != "video_cascade":
        return everything
    longest = spatial & (table["q_len"] == table.loc[spatial, "q_len"].max())
    first = {"key frames": stage == STAGE, "and frames between": stage.isin([STAGE, "denoise_frames"])}
    return first | {"all, less longest": ~longest} | everything


def assumption_panels(decides: pd.DataFrame, *, title: str) -> Figure:
    """A table of `under_assumptions`, a matrix for each kernel; shares over 60 % are framed."""
    rows = decides["case"].nunique()
    size = (6.6, 0.8 + len(KERNELS) * (0.75 + 0.3 * rows))
    figure, panels = plt.subplots(len(KERNELS), 1, figsize=size, layout="constrained", sharex=True)
    scale = (decides["share"].min(), decides["share"].max())
    for ax, kernel in zip(panels, KERNELS, strict=True):
        part = decides[decides["kernel"] == kernel]
        matrix(part, row="case", column="reading", value="share", band=(60, 100), digits=0, unit="%", ax=ax)
        ax.collections[0].set_clim(*scale)
        ax.set_title(f"{kernel} kernel", fontsize=10)
        ax.label_outer()
    figure.suptitle(title, fontsize=10)
    return figure


def scaled(
    model: str, requests: Mapping[tuple[int, int], Request], *, gpu: str, dtype: str, tiny: bool = False,
    progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Spatial and temporal cores of one key-frame stage for each of `sweep_requests`.

    Columns of `experiments.compare_attention` by ``attention``, and ``frames``, ``side`` (pixels).
    """
    parts = []
    for (frames, side), request in tqdm(requests.items(), desc="scale", disable=not progress):
        table = _key_frame_rows(model, request, dtype, tiny)
        eager, fused = (project(table, gpu=gpu, attention=kernel) for kernel in ("eager", "flash"))
        parts.append(compare_attention(eager, fused, ["attention"]).assign(frames=frames, side=side))
    out = pd.concat(parts, ignore_index=True).assign(gpu=gpu, time_kind="projected")
    return out[out["attention"].isin(_BETWEEN)]


def _key_frame_rows(model: str, request: Request, dtype: str, tiny: bool) -> pd.DataFrame:
    """Rows of the key-frame stage; the other denoisers take one step, as nothing of them is looked at."""
    steps = get_spec(model, tiny=tiny).resolve(request).steps
    if isinstance(steps, list | tuple):
        steps = tuple(many if place == _PLACE else 1 for place, many in enumerate(steps))
    table = count(model, replace(request, steps=steps), dtype=dtype, tiny=tiny)
    return table[table["stage"] == STAGE]


def scaling_panels(scaling: pd.DataFrame, *, title: str) -> Figure:
    """FLOPs and times of a table of `scaled` over key frames (left) and over the side of a frame (right)."""
    figure, panels = plt.subplots(3, 2, figsize=(6.8, 7.2), layout="constrained", sharex="col", sharey="row")
    for row, (column, label) in zip(panels, _COLUMNS.items(), strict=True):
        for ax, (x, part) in zip(row, _along(scaling).items(), strict=True):
            look: dict[str, Any] = {
                "colors": KIND_COLORS,
                "xlabel": {"frames": "key frames", "side": "side (pixels)"}[x],
            }
            curves(part, x=x, y=column, hue="attention", ylabel=label, ax=ax, **look).set_yscale("log", base=10)
            ax.tick_params(labelsize=9)
            ax.label_outer()
            ax.get_legend().remove()
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    figure.suptitle(title, fontsize=10)
    return figure


def _along(scaling: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of `scaled` over frames, all of one side, and those over sides."""
    first = scaling["side"] == scaling["side"].iloc[0]
    return {"frames": scaling[first], "side": scaling[scaling["frames"] == _SIDE_FRAMES]}


def exponents(scaling: pd.DataFrame) -> pd.DataFrame:
    """The power of frames and of the side with which FLOPs grow: ``over, attention, expected, exponent``."""
    rows, want = [], {"frames": {"temporal": 2, "spatial": 1}, "side": {"temporal": 2, "spatial": 4}}
    for over, part in _along(scaling).items():
        for kind, power in want[over].items():
            one = part[part["attention"] == kind]
            slope = np.polyfit(np.log(one[over]), np.log(one["flop"].astype(float)), 1)[0]
            rows.append((over, kind, power, float(slope)))
    return pd.DataFrame(rows, columns=["over", "attention", "expected", "exponent"])


def temporal_over_spatial(scaling: pd.DataFrame) -> pd.DataFrame:
    """Temporal over spatial FLOPs and times of a table of `scaled`, a row for each number of frames and side."""
    over = scaling.pivot(index=["frames", "side"], columns="attention", values=["flop", "time_fused_s", "time_eager_s"])
    ratio = over.xs("temporal", axis=1, level=1) / over.xs("spatial", axis=1, level=1)
    return ratio.add_prefix("temporal / spatial, ").reset_index()


def frames_of_equal_flop(ratio: pd.DataFrame, *, side: int) -> float:
    """Key frames of a side at which temporal FLOPs reach the spatial ones, all levels together."""
    rows = ratio[ratio["side"] == side]
    slope = rows["temporal / spatial, flop"] / rows["frames"]  # constant: the ratio is proportional to frames
    return float(1 / slope.mean())


def core_sites(model: str, *, part: int, tiny: bool = False) -> pd.DataFrame:
    """Distinct cores of a key-frame stage without guidance, at a part of their batch: ``attention``, shape, ``calls``.

    A core whose batch is smaller than `part` is left out.
    """
    table = _key_frame_rows(model, Request(guidance=1.0), "bfloat16", tiny).astype({"attention": str})
    sites = table[table["attention"].isin(_BETWEEN)].groupby(_SHAPE)["calls"].sum().reset_index()
    sites["batch"] //= part
    return sites[sites["batch"] > 0].reset_index(drop=True)


def core_shares(cores: pd.DataFrame) -> pd.DataFrame:
    """Temporal share (%) of a table of `temporal.measure_cores` by kernel: ``case, share, total_s, time_kind``."""
    seconds = cores[["eager_s", "fused_s"]].mul(cores["calls"], axis=0).groupby(cores["attention"]).sum()
    copies = (cores["copy_s"] * cores["calls"])[cores["attention"] == "temporal"].sum()  # one per call, in and out
    seconds["copied"] = seconds["fused_s"] + copies * (seconds.index == "temporal")
    case = [f"published shapes, {how}" for how in ("eager", "flash", "fused with copies")]
    share, total = 100 * seconds.loc["temporal"] / seconds.sum(), seconds.sum()
    found = {"case": case, "share": share.to_numpy(), "total_s": total.to_numpy()}
    return pd.DataFrame(found).assign(time_kind="measured")


def scaled_down_shares(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Temporal share (%) of one execution of a measured stage by kernel: ``case, share, total_s, time_kind``."""
    rows = []
    for kernel, table in tables.items():
        found = temporal_readings(table.assign(repeats=1)).itertuples(name=None)
        rows += [(f"scaled down, {kernel}, {reading}", share, total) for reading, share, total in found]
    return pd.DataFrame(rows, columns=["case", "share", "total_s"]).assign(time_kind="measured")


def published_scale(runs: Iterable[Run], *, gpu: str, dtype: str) -> pd.DataFrame:
    """Temporal share of measured runs and of their projections, three readings: columns of `temporal_shares`."""
    out = temporal_shares(list(runs), gpu=gpu, dtype=dtype).query("reading in ['core', 'block', 'module']")
    out = out.sort_values(["case", "reading"], kind="stable")
    made = out["time_kind"] + ", " + out["machine"] + ", " + out["dtype"]
    return out.assign(case=out["case"] + ", " + out["reading"] + ": " + made)


def learned(by_stage: pd.DataFrame, measured: pd.DataFrame, *, model: str, equal: float, gpu: str) -> str:
    """What the tables of a model's cores (`cores_by_stage`) and of measured shares say, as a list in Markdown."""
    core = by_stage[by_stage["model"] == model].set_index(["stage", "attention"])[AMOUNTS]
    of_frames = core.xs("spatial", level="attention").index
    stage, last = of_frames[0], of_frames[-1]  # the key frames, the largest frames (one stage in most models)
    over = core.loc[(stage, "temporal")] / core.loc[(stage, "spatial")]
    said = ", ".join(f"{over[name]:.2f}x ({name.split('_')[1]})" for name in AMOUNTS[2:])
    outer = 100 * core.loc[(last, "spatial"), "time_fused_s"] / core["time_fused_s"].sum()
    low, high = measured.loc[measured["time_kind"] == "measured", "share"].agg(["min", "max"])
    return f"""- {model}, {stage}, projected on {gpu}: temporal attention does {1 / over["flop"]:.1f}x fewer FLOPs than
  spatial and takes {said} its time. Remembered of the paper, not judged: 9x fewer FLOPs and 2x the time.
- Spatial attention of {last} alone is {outer:.0f} % of all spatial and temporal core time, fused.
- FLOPs are equal at {equal:.0f} key frames. Measured: {low:.0f} to {high:.0f} % of attention time."""
