"""A grid: which measurements a campaign shall make, as a YAML file of points and products of points.

Checked whole, against the zoo and the requests that its models take, before anything is measured. Where points name
stages, the scaled-down variants of their models say which there are; else torch is not needed.
"""

import difflib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mmchar.counting.planned_stages import stages
from mmchar.files import canonical_json, checksum
from mmchar.measuring.optimization import ladder as levers
from mmchar.measuring.optimization.backends import MEASURED
from mmchar.measuring.optimization.execution import choose_stages
from mmchar.measuring.optimization.split_guidance import split_guidance
from mmchar.models.loading import DTYPES, ModelSpec, get_spec
from mmchar.request import Request, from_mapping

if TYPE_CHECKING:
    from mmchar.generation.recording import Stage

DEVICES = ("cpu", "cuda")
KEYS = ("model", "request", "device", "dtype", "attention", "levers", "ladder", "stages", "tiny", "samples", "warmup",
        "value", "expect_s")  # fmt: skip
_PRODUCT = ("model", "device", "dtype", "attention", "tiny")  # one value, or a list of which each makes a point
_MAPPINGS = ("request", "levers")  # one mapping, or a list of which each makes a point


@dataclass(frozen=True)
class Point:
    """One measurement that a grid asks for.

    Parameters
    ----------
    model : str
        A zoo name, or a model file.
    request, levers : dict
        The fields that are given; the model's defaults, and PyTorch as it is, for the others.
    stages : tuple of str, optional
        Measure only these stages.
    value : float
        The points of the highest value are measured first; of equal ones, the first in the file.
    expect_s : float, optional
        Guess of its seconds, loading included; else it is counted.
    where : str
        File and line that it stands in.
    """

    model: str
    request: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    attention: str = "flash"
    levers: dict[str, Any] = field(default_factory=dict)
    stages: tuple[str, ...] | None = None
    tiny: bool = False
    samples: int = 5
    warmup: int = 1
    value: float = 0.0
    expect_s: float | None = None
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


def identity(point: Point, hardware: str, versions: dict[str, str | None]) -> str:
    """The name of a measurement: the same for the same model, request, settings, hardware and library versions."""
    spec = get_spec(point.model, tiny=point.tiny)
    request = spec.resolve(from_mapping(point.request)).given()
    asked = {**point.asked(), "request": request, "model": spec.name}
    stated = {"spec": _built(spec), "asked": asked, "hardware": hardware, "versions": versions}
    return f"{spec.name}-{checksum(canonical_json(stated).encode())[:12]}"


def _built(spec: ModelSpec) -> dict[str, Any]:
    """What decides which networks are built and how they are run; not their sources and notes."""
    parts = {role: [part.library, part.cls, dict(part.config)] for role, part in spec.components.items()}
    run = {key: value for key, value in msgspec.to_builtins(spec.pipeline).items() if key != "source"}
    return {"family": spec.family, "components": parts, "pipeline": run}


def read_grid(path: str | Path) -> list[Point]:
    """The points of a grid file, the most valuable first, all checked; what stands in it twice is one point.

    Raises
    ------
    ValueError
        The file is no grid, or a point of it is not possible, with its line.
    """
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        grid, tree = yaml.safe_load(text), yaml.compose(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the grid {path.name}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(grid, dict) or not isinstance(grid.get("points"), list) or not grid["points"]:
        raise ValueError(f"{path.name} is no grid; it needs a list 'points' with at least one")
    _check_keys(path.name, grid, ("about", "defaults", "points"))
    defaults = grid.get("defaults") or {}
    _check_keys(f"{path.name}, defaults", defaults, KEYS)
    points = []
    for entry, line in zip(grid["points"], _lines(tree), strict=True):
        where = f"{path.name}, line {line}"
        _check_keys(where, entry, KEYS)
        try:
            points += [_checked(point) for point in _expand({**defaults, **entry}, where)]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from error
    points.sort(key=lambda point: -point.value)
    first: dict[str, Point] = {}
    for point in points:
        first.setdefault(canonical_json(point.asked()), point)
    return list(first.values())


def _lines(tree: Any) -> list[int]:
    (nodes,) = [node for key, node in tree.value if key.value == "points"]
    return [node.start_mark.line + 1 for node in nodes.value]


def _check_keys(where: str, given: Any, known: tuple[str, ...]) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{where}: expected keys with values, found {given!r}")
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{where}: unknown key {key!r}; {hint}keys are {', '.join(known)}")


def _expand(entry: dict[str, Any], where: str) -> Iterator[Point]:
    """The points of one entry: the product of its lists, times the rungs of a ladder."""
    entry = dict(entry)
    if "model" not in entry:
        raise ValueError("the key 'model' is missing")
    climbs = entry.pop("ladder", False)
    entry["stages"] = tuple(_as_list(entry["stages"])) if entry.get("stages") else None
    many = {key: _as_list(entry[key]) for key in (*_PRODUCT, *_MAPPINGS) if key in entry}
    for values in itertools.product(*many.values()):
        one = {**entry, **dict(zip(many, values, strict=True)), "where": where}
        one.setdefault("dtype", "float32" if one.get("device", "cpu") == "cpu" else "bfloat16")
        point = Point(**one)
        yield from _rungs(point) if climbs else [point]


def _rungs(point: Point) -> Iterator[Point]:
    for rung in levers.ladder(point.model):
        yield replace(point, dtype=rung.dtype, attention=rung.attention, levers=rung.levers.given())


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _checked(point: Point) -> Point:
    """The point, if a machine exists that can measure it; ValueError otherwise."""
    for name, possible in (("dtype", DTYPES), ("device", DEVICES), ("attention", MEASURED), ("tiny", (True, False))):
        if getattr(point, name) not in possible:
            raise ValueError(
                f"{name} {getattr(point, name)!r} is not possible; choose of {', '.join(map(str, possible))}"
            )
    for name, least in (("samples", 1), ("warmup", 0)):
        value = getattr(point, name)
        if type(value) is not int or value < least:
            raise ValueError(f"{name}={value!r} is not a whole number of {least} or more")
    for name in ("value", "expect_s"):
        given = getattr(point, name)
        if given is not None and (type(given) not in (int, float) or not 0 <= given < float("inf")):
            raise ValueError(f"{name}={given!r} is not a number of 0 or more")
    for name in _MAPPINGS:
        if not isinstance(getattr(point, name), dict):
            raise ValueError(f"{name}={getattr(point, name)!r} has no keys; write {name}: {{key: value}}")
    pulled, spec = levers.from_mapping(point.levers), get_spec(point.model, tiny=point.tiny)
    spec.resolve(from_mapping(point.request))
    if point.stages or pulled.cfg == "split":
        plan_of(point)
    return point


def plan_of(point: Point) -> "tuple[Stage, ...]":
    """The stages that a point measures; as the scaled-down variant of its model has them, if it has all of them.

    Raises
    ------
    ValueError
        The generation has no such stage, or its guidance cannot be split.
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
    plan = choose_stages(stages(spec, full), point.stages, model=spec.name)
    if levers.from_mapping(point.levers).cfg == "split":
        split_guidance(plan, full, model=spec.name)
    return plan
