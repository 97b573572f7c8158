"""An efficiency file: what a fit to the measurements of one's own GPU found, for projections to take.

``mmchar fit`` writes one; it is JSON with the fields of `EfficiencyFile`, of which all but the first three say where it
comes from. A field of the first three that is left out is as we ship it.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
from msgspec import field

from mmchar.faults import did_you_mean
from mmchar.files import atomic_write
from mmchar.projection.communication import Interconnect
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.energy_model import Power
from mmchar.projection.roofline import Rates
from mmchar.projection.uncertainty import ENOUGH

_PARTS = {"efficiency": Efficiency, "messages": Interconnect, "power": Power}


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Errors (predicted / measured - 1) that 80 % of ``n`` measurements lie between, and ``how`` they were made."""

    low: float
    high: float
    median_absolute: float
    n: int
    how: str


class EfficiencyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What kernels, messages and boards do, and the evidence for it.

    ``priors`` are expected value and spread of each fitted parameter, ``spread`` is what is left of the latter;
    ``rows_sha256`` is of the file of measurements, ``n`` how many of its rows were used, on the ``gpus``; ``utc`` is
    when.
    """

    efficiency: Efficiency = field(default_factory=Efficiency)
    messages: Interconnect = field(default_factory=Interconnect)
    power: Power = field(default_factory=Power)
    priors: dict[str, tuple[float, float]] = {}
    spread: dict[str, float] = {}
    errors: Range | None = None
    n: int = 0
    gpus: list[str] = []
    models: list[str] = []
    rows_sha256: str = ""
    software: str = ""
    utc: str = ""

    @property
    def rates(self) -> Rates:
        """What `project` takes as ``efficiency``."""
        return Rates(self.efficiency, self.messages)

    def time_range(self, time_s: float) -> dict[str, Any] | None:
        """The range around a projected time that the measurements give, as `uncertainty.time_range`; None of few."""
        if self.errors is None or self.errors.n < ENOUGH:
            return None
        about = {"kind": f"your own measurements, {self.errors.how}", "n": self.errors.n, "why": ""}
        low, high = min(self.errors.low, 0.0), max(self.errors.high, 0.0)
        return {"low_s": time_s / (1 + high), "high_s": time_s / (1 + low), **about}


def read_efficiency(path: str | Path) -> EfficiencyFile:
    """The efficiency file; ``project(..., efficiency=read_efficiency("my-gpu.json").rates)`` projects with it.

    Raises ValueError, in one line, for a file that cannot be read, an unknown field, or a number that cannot be.
    """
    path = Path(path)
    try:
        raw = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        _check_names(raw)
        found = msgspec.convert(raw, EfficiencyFile)
        _check_numbers(found)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}; give a file of mmchar fit") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no efficiency file: {error}") from error
    return found


def write_efficiency(path: str | Path, found: EfficiencyFile) -> Path:
    """The path, holding the file as `read_efficiency` reads it."""
    try:
        return atomic_write(path, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}; choose a folder you can write to") from error


def _check_names(raw: dict[str, Any]) -> None:
    """Refuse what none of the parts has; msgspec looks at the names of the whole."""
    for part, kind in _PARTS.items():
        able = [each.name for each in fields(kind)]
        given = raw.get(part, {})
        for name in given if isinstance(given, dict) else ():
            if name not in able:
                raise ValueError(f"{part} has no {name!r}; {did_you_mean(name, able)}it has {', '.join(able)}")


def _check_numbers(found: EfficiencyFile) -> None:
    for part in _PARTS:
        for name, value in vars(getattr(found, part)).items():
            rate = part != "power" and not name.endswith("_s")  # which something is divided by
            if not 0 <= value < float("inf") or (rate and value == 0):
                raise ValueError(f"{part}.{name}={value!r} is not a number {'above 0' if rate else 'of 0 or more'}")
