"""Models as data: what is known of one, read from its file and checked before anything is made of it.

``docs/howto/own_model.md`` describes the file; ``mmchar models --schema`` prints its JSON Schema, for editors.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from mmchar.files import check_file_name
from mmchar.request import FIELDS, Limit, Request, from_mapping, resolve, terms

if TYPE_CHECKING:
    import torch

ZOO = Path(__file__).parent / "zoo"
Library = Literal["transformers", "diffusers", "mmchar"]
ClassName = Annotated[str, Meta(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
Said = Annotated[str, Meta(min_length=1)]
Kind = TypeVar("Kind")
_MARKUP = re.compile(r"<[a-zA-Z/!?]|\]\(|[\x00-\x1f]")  # HTML, a Markdown link, a control character


class Component(Struct, frozen=True, forbid_unknown_fields=True):
    """One network of a model: a library class and the configuration it was published with.

    ``tiny`` overrides ``config`` for the scaled-down variant. ``published_params`` is the count that the authors
    state; ``params_reason`` says why ours differs where it does by more than 2 %.
    """

    library: Library
    cls: ClassName = field(name="class")
    config: dict[str, Any]
    source: Said
    tiny: dict[str, Any] = {}
    published_params: Annotated[int, Meta(ge=1)] | None = None
    params_source: str = ""
    params_reason: str = ""


class Pipeline(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What generates: a pipeline of diffusers, ``generate`` or ``forward`` of a transformers model, or one of our own.

    ``schedulers``, ``arguments``, ``tokens`` and ``files`` are what it is made with besides its networks; ``call`` what
    it is called with; ``request`` what it calls a field of a request; ``stages`` what we call its stages.
    ``any_request`` is true of a folder, whose pipeline's own call says what it takes.
    """

    library: Library
    cls: ClassName = field(name="class")
    source: str = ""
    methods: tuple[str, ...] = ()
    schedulers: dict[str, dict[str, Any]] = {}
    arguments: dict[str, Any] = {}
    tokens: dict[str, dict[str, Any]] = {}
    files: dict[str, dict[str, str]] = {}
    call: dict[str, Any] = {}
    request: dict[str, Any] = {}
    stages: dict[str, str] = {}
    generation: dict[str, Any] = {}
    any_request: bool = False


class ModelSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that is known of one model."""

    name: str
    family: str
    year: int
    summary: str
    components: Annotated[dict[str, Component], Meta(min_length=1)]
    request: dict[str, Any]
    request_source: str
    tiny_request: dict[str, Any]
    limits: dict[str, Limit] = {}
    tiny_limits: dict[str, Limit] = {}
    notes: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()  # the characterization papers that study it
    pipeline: Pipeline = Pipeline("diffusers", "")  # no class: told by the networks, see `guess`
    tiny: bool = False

    def resolve(self, request: Request | None = None) -> Request:
        """The request with this model's defaults filled in, checked against its limits.

        Of a folder any field may be asked for: the pipeline's own call says what it takes, and has its own defaults.
        """
        defaults = dict(self.request)
        if self.pipeline.any_request:
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
    """The spec in a model file.

    Raises ValueError for a file that is not there, or a field that is missing, unknown or does not fit: one line.
    """
    try:
        raw = msgspec.json.decode(path.read_bytes())
        parts = raw.get("components") if isinstance(raw, dict) else None
        for role, part in parts.items() if isinstance(parts, dict) else ():
            _convert(part, Component, f"component {role!r}: ")
        spec = _convert(raw, ModelSpec)
        _check(spec)
    except FileNotFoundError as error:
        raise ValueError(f"no model file {path}; 'mmchar models' lists the zoo") from error
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"{path.name} is no model file: {error}") from error
    return spec


def _convert(raw: Any, kind: type[Kind], where: str = "") -> Kind:
    """A mapping as its type; where it does not fit, the line says where (msgspec names no key of a mapping)."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}{error}") from error


def schema() -> dict[str, Any]:
    """The JSON Schema of a model file."""
    return msgspec.json.schema(ModelSpec)


def _check(spec: ModelSpec) -> None:
    """Refuse what types do not tell: a name that is no file's, markup, requests and limits of no field."""
    check_file_name(spec.name)
    for where, text in _texts(spec):
        if found := _MARKUP.search(text):
            raise ValueError(f"{where} holds {found.group()!r}; notebooks show it, so write it without markup")
    for name, request in (("request", spec.request), ("tiny_request", spec.tiny_request)):
        empty = [key for key, value in request.items() if value is None]
        if empty:
            raise ValueError(f"{name}.{empty[0]} has no value; leave it out, or give a number")
        from_mapping(request)
    for key in {**spec.limits, **spec.tiny_limits}:
        for part in terms(key):
            if type(spec.request.get(part)) is not int:
                raise ValueError(f"limits: {part!r} is no field of 'request' with a whole number")


def _texts(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """What a notebook or a page may show, with where it stands."""
    for name in ("name", "family", "summary", "request_source"):
        yield name, getattr(spec, name)
    for line in (*spec.notes, *spec.papers):
        yield "notes or papers", line
    for role, part in spec.components.items():
        for name in ("source", "params_source", "params_reason"):
            yield f"components.{role}.{name}", getattr(part, name)


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
