"""Models as data: what is known of one, read from its file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchar.models.model_files import read_model_file
from mmchar.request import FIELDS, Request, resolve

if TYPE_CHECKING:
    import torch

ZOO = Path(__file__).parent / "zoo"


@dataclass(frozen=True)
class Component:
    """One network of a model: a library class and the configuration it was published with.

    ``tiny`` overrides ``config`` for the scaled-down variant. ``published_params`` is the count that the authors
    state; ``params_reason`` says why ours differs where it does by more than 2 %.
    """

    library: str
    cls: str
    config: Mapping[str, Any]
    source: str
    tiny: Mapping[str, Any] = field(default_factory=dict)
    published_params: int | None = None
    params_source: str = ""
    params_reason: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """Everything that is known of one model; ``docs/add_a_model.md`` describes the file format."""

    name: str
    family: str
    year: int
    summary: str
    components: Mapping[str, Component]
    request: Mapping[str, Any]
    request_source: str
    tiny_request: Mapping[str, Any]
    limits: Mapping[str, Any] = field(default_factory=dict)
    tiny_limits: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()  # the characterization papers that study it
    pipeline: Mapping[str, Any] = field(default_factory=dict)  # the class that generates, and what it is made with
    tiny: bool = False

    def resolve(self, request: Request | None = None) -> Request:
        """The request with this model's defaults filled in, checked against its limits.

        Of a folder any field may be asked for: the pipeline's own call says what it takes, and has its own defaults.
        """
        defaults = dict(self.request)
        if self.pipeline.get("any_request"):
            defaults = dict.fromkeys(FIELDS) | defaults
        return resolve(request, model=self.name, defaults=defaults, limits=self.limits)

    def scaled_down(self) -> "ModelSpec":
        """The tiny variant: same structure, small widths, for tests and for measuring on a CPU."""
        components = {
            role: replace(part, config=_overridden(part.config, part.tiny), published_params=None)
            for role, part in self.components.items()
        }
        limits = {**self.limits, **self.tiny_limits}
        request = {**self.request, **self.tiny_request}
        return replace(self, components=components, request=request, limits=limits, tiny=True)


@dataclass(frozen=True)
class Model:
    """A spec with its networks built: ``components[role]`` is an ``nn.Module`` in eval mode without gradients."""

    spec: ModelSpec
    components: Mapping[str, "torch.nn.Module"]
    device: str
    dtype: str

    @property
    def params(self) -> dict[str, int]:
        """Parameters of each component (buffers not included)."""
        return {role: sum(p.numel() for p in module.parameters()) for role, module in self.components.items()}


def read_spec(path: Path) -> ModelSpec:
    """The spec that a model file holds."""
    raw = read_model_file(path)
    parts = {
        role: Component(**{("cls" if key == "class" else key): value for key, value in part.items()})
        for role, part in raw["components"].items()
    }
    lists = {name: tuple(raw.get(name, ())) for name in ("notes", "papers")}
    return ModelSpec(**{**raw, "components": parts, **lists})


def copied(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as its class takes it: a copy, as classes change what they get, with infinite numbers as such."""
    return json.loads(json.dumps(dict(config)), object_hook=_number_of)


def _number_of(value: dict[str, Any]) -> Any:
    """Transformers writes a number that JSON does not have as ``{"__float__": "Infinity"}``."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def _overridden(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with some values changed, also inside the configs that it holds."""
    inner = {
        key: _overridden(config[key], new)
        for key, new in changes.items()
        if isinstance(config.get(key), dict) and isinstance(new, dict)
    }
    return {**config, **changes, **inner}
