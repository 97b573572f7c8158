"""How a model is run and what a projection assumes: the papers' GPU as it stands, or with one thing changed."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import count
from mmchar.models.loading import zoo_names
from mmchar.projection.columns import Columns, columns_of
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.kernel_times import kernel_times
from mmchar.projection.roofline import Rates, prepare, row_times
from mmchar.request import Request

AS_IT_IS, ON_H100 = "as projected", "on an H100"


@dataclass(frozen=True)
class Setting:
    """One way to run models on one GPU; by default the papers' GPU at batch 1, in eager mode with fused attention."""

    gpu: str = "a100-80gb"
    dtype: str = "bfloat16"
    attention: str = "flash"
    execution: str = "eager"
    batch: int = 1
    efficiency: Efficiency = field(default_factory=Efficiency)

    def but(self, **changes: Any) -> "Setting":
        """The same with fields changed; those of `Efficiency` go by their own names."""
        own = {name: changes.pop(name) for name in list(changes) if name in Setting.__dataclass_fields__}
        return replace(self, **own, efficiency=replace(self.efficiency, **changes))


HOST_FREE = {"dispatch_s": 0.0, "dispatch_compiled_s": 0.0}


def changes(start: Setting) -> dict[str, Setting]:
    """What may differ between a projection and the run of a paper, each changed alone, by name."""
    now, whole = start.efficiency, 1e6  # so fast that it takes no time
    return {
        AS_IT_IS: start,
        "no waiting for the host": start.but(**HOST_FREE),
        "host twice as slow": start.but(dispatch_s=2 * now.dispatch_s),
        "compiled": start.but(execution="compiled"),
        "float32": start.but(dtype="float32"),
        "batch 8": start.but(batch=8),
        "eager attention": start.but(attention="eager"),
        "fused attention of 2022": start.but(flash=now.flash * now.mem_efficient),
        "convolutions fed as products": start.but(fed_convolution=now.fed, fed_convolution_hopper=now.fed),
        "convolutions fed half as well": start.but(fed_convolution=now.fed_convolution / 2),
        "maps stay channels-last": start.but(layout=whole),
        "group norm by the whole GPU": start.but(statistics=whole),
        "broadcasts at full bandwidth": start.but(one_by_one=whole),
        "products fed half as well": start.but(fed=now.fed / 2),
        ON_H100: start.but(gpu="h100-sxm"),
    }


CONVOLUTIONS = ("convolutions fed as products", "convolutions fed half as well")
EVERYTHING = tuple(name for name in changes(Setting()) if name != AS_IT_IS)


def timed(model: str, setting: Setting, **request: Any) -> pd.DataFrame:
    """The model's operator table with projected seconds in ``time_s``.

    Raises a ValueError that names a model, or a GPU, that is not there, before anything is counted.
    """
    table, columns = _prepared(model, setting, request)
    device_s, wait_s, _ = row_times(columns, get_gpu(setting.gpu), _rates(setting), execution=setting.execution)
    out = table.assign(time_s=device_s + wait_s)
    out.attrs = {**table.attrs, "gpu": setting.gpu, "execution": setting.execution}
    return out


def around_convolutions_s(model: str, setting: Setting) -> np.ndarray:
    """Seconds of each row that are layout copies and bias additions around a convolution, not its kernel."""
    _, columns = _prepared(model, setting, {})
    times = kernel_times(columns, get_gpu(setting.gpu), setting.efficiency, execution=setting.execution)
    return times.layout_s + times.bias_s


def share(table: pd.DataFrame, rows: pd.Series | np.ndarray, seconds: np.ndarray | None = None) -> float:
    """Percent of the table's time that rows take, or that ``seconds`` of these rows do."""
    repeats = table["repeats"].to_numpy()
    part = table["time_s"].to_numpy() if seconds is None else seconds
    return float(100 * (part * repeats)[np.asarray(rows)].sum() / (table["time_s"].to_numpy() * repeats).sum())


def total_s(table: pd.DataFrame, rows: pd.Series | None = None) -> float:
    """Seconds of a whole generation, or of some rows of it."""
    seconds = table["time_s"] * table["repeats"]
    return float(seconds.sum() if rows is None else seconds[rows].sum())


def _rates(setting: Setting) -> Rates:
    return Rates(setting.efficiency)


def _prepared(model: str, setting: Setting, request: dict[str, Any]) -> tuple[pd.DataFrame, Columns]:
    if model not in zoo_names():
        raise ValueError(f"the zoo has no {model}")
    get_gpu(setting.gpu).check_dtype(setting.dtype)
    asked = tuple(sorted({**request, "batch": setting.batch}.items()))
    return _cached(model, setting.dtype, setting.attention, setting.execution, asked)


@lru_cache(maxsize=32)
def _cached(
    model: str, dtype: str, attention: str, execution: str, asked: tuple[tuple[str, Any], ...]
) -> tuple[pd.DataFrame, Columns]:
    table = prepare(count_once(model, dtype, asked), attention=attention, execution=execution)
    return table, columns_of(table)


@lru_cache(maxsize=32)
def count_once(model: str, dtype: str = "bfloat16", asked: tuple[tuple[str, Any], ...] = ()) -> pd.DataFrame:
    """The counted table, kept in memory: several claims ask for the same models."""
    return count(model, Request(**dict(asked)), dtype=dtype)
