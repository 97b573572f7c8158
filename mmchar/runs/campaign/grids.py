"""A grid: which measurements a campaign shall make, as a YAML file of points and products of points.

Checked whole, against the zoo and the requests that its models take, before anything is measured. Where points name
stages, the scaled-down variants of their models say which there are; else torch is not needed.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from mmchar.counting.planned_stages import stages
from mmchar.files import canonical_json
from mmchar.measuring.optimization import ladder as levers
from mmchar.measuring.optimization.backends import MEASURED
from mmchar.measuring.optimization.chosen_stages import chosen
from mmchar.models.loading import DTYPES, ModelSpec, get_spec
from mmchar.request import Request, from_mapping
from mmchar.runs.identity import run_id

if TYPE_CHECKING:
    from mmchar.generation.recording import Stage

_PRODUCT = ("model", "device", "dtype", "attention", "tiny", "request", "levers")  # of a list each makes a point
_Positive = Annotated[float, msgspec.Meta(ge=0)]


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measurement that a grid asks for; ``model`` is a zoo name or a model file.

    ``request`` and ``levers`` hold the fields that are given; the others are the model's defaults, and PyTorch as it
    is. The points of the highest ``value`` are measured first. ``expect_s`` is a guess of its seconds, loading
    included; else it is counted. ``where`` is the entry that it stands in.
    """

    model: str
    request: dict[str, Any] = {}
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal[DTYPES] = "float32"  # type: ignore[valid-type]
    attention: Literal[MEASURED] = "flash"  # type: ignore[valid-type]
    levers: dict[str, Any] = {}
    stages: tuple[str, ...] | None = None
    tiny: bool = False
    samples: Annotated[int, msgspec.Meta(ge=1)] = 5
    warmup: Annotated[int, msgspec.Meta(ge=0)] = 1
    value: _Positive = 0.0
    expect_s: _Positive | None = None
    where: str = ""

    def asked(self) -> dict[str, Any]:
        """What is measured, in JSON types: all that decides the result, not its worth or expected cost."""
        request = {key: list(value) if isinstance(value, tuple) else value for key, value in self.request.items()}
        plain = {key: getattr(self, key) for key in ("model", "device", "dtype", "attention", "tiny", "samples")}
        stages = sorted(self.stages) if self.stages else None
        return {**plain, "request": request, "levers": self.levers, "stages": stages, "warmup": self.warmup}

    def title(self) -> str:
        """One line for people."""
        parts = [self.model + (" (tiny)" if self.tiny else ""), self.dtype, self.attention]
        parts += [f"{key} {value}" for key, value in {**self.request, **self.levers}.items()]
        return ", ".join(parts) + (f" [{' '.join(self.stages)}]" if self.stages else "")


class _Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    points: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    defaults: dict[str, Any] = {}
    about: str = ""


def identity(point: Point, hardware: str, versions: dict[str, str | None]) -> str:
    """The name of a measurement: the same for the same model, request, settings, hardware and library versions."""
    spec = get_spec(point.model, tiny=point.tiny)
    request = spec.resolve(from_mapping(point.request)).given()
    asked = {**point.asked(), "request": request, "model": spec.name}
    stated = {"spec": _built(spec), "asked": asked, "hardware": hardware, "versions": versions}
    return f"{spec.name}-{run_id(stated)}"


def _built(spec: ModelSpec) -> dict[str, Any]:
    """What decides which networks are built and how they are run; not their sources and notes."""
    parts = {role: [part.library, part.cls, dict(part.config)] for role, part in spec.components.items()}
    run = {key: value for key, value in msgspec.to_builtins(spec.pipeline).items() if key != "source"}
    return {"family": spec.family, "components": parts, "pipeline": run}


def read_grid(path: str | Path) -> list[Point]:
    """The points of a grid file, the most valuable first, all checked; what stands in it twice is one point.

    ValueError, with the file and the entry, if that is no grid or asks for what is not possible.
    """
    path = Path(path)
    try:
        grid = msgspec.yaml.decode(path.read_bytes(), type=_Grid)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"cannot read the grid {path.name}: {reason}") from error
    points: list[Point] = []
    for number, entry in enumerate(grid.points):
        where = f"{path.name}, points[{number}]"
        try:
            points += [_checked(point) for point in _expand({**grid.defaults, **entry, "where": where})]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from error
    first: dict[str, Point] = {}
    for point in sorted(points, key=lambda point: -point.value):
        first.setdefault(canonical_json(point.asked()), point)
    return list(first.values())


def _expand(entry: dict[str, Any]) -> Iterator[Point]:
    """The points of one entry: the product of its lists, times the rungs of a ladder."""
    climbs = entry.pop("ladder", False)
    entry["stages"] = _as_list(entry["stages"]) if entry.get("stages") else None
    many = {key: _as_list(entry[key]) for key in _PRODUCT if key in entry}
    for values in itertools.product(*many.values()):
        one = {**entry, **dict(zip(many, values, strict=True))}
        one.setdefault("dtype", "float32" if one.get("device", "cpu") == "cpu" else "bfloat16")
        point = msgspec.convert(one, Point)
        if not climbs:
            yield point
        for rung in levers.ladder(point.model) if climbs else ():
            pulled = {"dtype": rung.dtype, "attention": rung.attention, "levers": rung.levers.given()}
            yield msgspec.structs.replace(point, **pulled)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _checked(point: Point) -> Point:
    """The point, if its model takes what it asks for; else ValueError."""
    pulled, spec = levers.from_mapping(point.levers), get_spec(point.model, tiny=point.tiny)
    spec.resolve(from_mapping(point.request))
    if point.stages or pulled.cfg == "split":
        plan_of(point)
    return point


def plan_of(point: Point) -> "tuple[Stage, ...]":
    """The stages that a point measures; as the scaled-down variant of its model has them, if it has all of them.

    ValueError if the generation has no such stage, or its guidance cannot be split.
    """
    spec = get_spec(point.model, tiny=point.tiny)
    full = spec.resolve(from_mapping(point.request))
    if not point.tiny and not Path(point.model).is_dir():
        small = get_spec(point.model, tiny=True)
        kept = {name: getattr(full, name) for name in ("batch", "guidance") if name in small.request}
        try:
            return _chosen(point, small, small.resolve(Request(**kept)))
        except ValueError:  # some stages come only at full size
            pass
    return _chosen(point, spec, full)


def _chosen(point: Point, spec: ModelSpec, full: Request) -> "tuple[Stage, ...]":
    pulled = levers.from_mapping(point.levers)
    return chosen(stages(spec, full), full, stages=point.stages, levers=pulled, model=spec.name)
