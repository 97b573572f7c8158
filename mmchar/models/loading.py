"""Models as data: read a zoo file, build its components with random weights, or load saved weights."""

import gc
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from mmchar.faults import did_you_mean, typed
from mmchar.models import hub
from mmchar.models.folders import class_of
from mmchar.models.network_folders import network_spec
from mmchar.models.pipeline_folders import pipeline_spec
from mmchar.models.pretrained import load_pretrained
from mmchar.models.specs import ZOO, Component, Model, ModelSpec, copied, read_spec

if TYPE_CHECKING:
    import pandas as pd
    import torch

OWN = {
    "HSTU": "mmchar.models.networks.hstu",
    "LinearAdaptor": "mmchar.models.networks.projectors",
    "OutputProjector": "mmchar.models.networks.projectors",
}
DTYPES = ("float32", "bfloat16", "float16")


def zoo_names(paper: str | None = None) -> list[str]:
    """Names of all models in the zoo, or of those that a characterization paper studies (``arXiv 2312.14385``)."""
    names = sorted(path.stem for path in ZOO.glob("*.json"))
    return names if paper is None else [name for name in names if paper in get_spec(name).papers]


def get_spec(name: str, *, tiny: bool = False) -> ModelSpec:
    """The spec of a zoo model, of a model file of your own (``path/to/mine.json``), of a folder, or of a hub id.

    A folder is a local diffusers pipeline or transformers model; only its configuration files are read. Of a hub id
    (``organization/model``) those are downloaded first. A zoo name stands for the zoo, also where a folder is called
    the same (``./name`` is the folder). What of a folder is left out is a warning, and in the spec's ``notes``.

    Raises ValueError for an unknown name (with the nearest), or a file that is no valid spec (with file and field).
    """
    if str(name).endswith(".json"):
        spec = read_spec(Path(name))
    elif name in zoo_names():
        spec = read_spec(ZOO / f"{name}.json")
    elif name and (Path(name).is_dir() or hub.is_id(str(name))):
        if tiny:
            raise ValueError(f"{name!r} has no scaled-down variant; write smaller numbers into its config.json files")
        return _folder_spec(str(name))
    else:
        hint = did_you_mean(name, zoo_names())
        raise ValueError(f"unknown model {name!r}; {hint}'mmchar models' lists all {len(zoo_names())}")
    return spec.scaled_down() if tiny else spec


def _folder_spec(given: str) -> ModelSpec:
    """The spec of a folder or a hub id, whose request has no defaults but those that a prompt needs."""
    folder = Path(given)
    name = folder.absolute().name
    if not folder.is_dir():
        folder = hub.download_configs(given, zoo=zoo_names())
    name = re.sub(r"[^\w.-]+|^[^\w]+|\.+$", "-", name)
    if (folder / "model_index.json").is_file():
        spec = pipeline_spec(folder, name)
    elif (folder / "config.json").is_file():
        spec = network_spec(folder, name)
    else:
        raise ValueError(f"{given!r} holds neither model_index.json (diffusers) nor config.json (transformers)")
    for note in spec.notes:
        warnings.warn(f"{spec.name}: {note}", stacklevel=1)
    return spec


def list_models() -> "pd.DataFrame":
    """One row per zoo model: model, family, year, published_params (a count), unpublished, request, summary.

    ``published_params`` adds what is published; ``unpublished`` names the components of which no count is.
    """
    import pandas as pd

    rows = []
    for name in zoo_names():
        spec = get_spec(name)
        published = {role: part.published_params for role, part in spec.components.items()}
        rows.append(
            {
                "model": name,
                "family": spec.family,
                "year": spec.year,
                "published_params": sum(count for count in published.values() if count),
                "unpublished": [role for role, count in published.items() if not count],
                "request": spec.resolve().given(),
                "summary": spec.summary,
            }
        )
    return pd.DataFrame(rows).sort_values(["family", "model"], ignore_index=True)


def load(
    name: str,
    *,
    weights: str = "random",
    device: str = "meta",
    dtype: str = "bfloat16",
    tiny: bool = False,
    roles: Collection[str] | None = None,
) -> Model:
    """Build the networks of a zoo name, a model file, a local folder or a hub id, or only those of some roles.

    Random ``weights`` need no download. ``"pretrained"`` ones, of a folder or a hub id, go through ``from_pretrained``
    with safetensors only and never run remote code. The device is ``"meta"`` (shapes only), ``"cpu"`` or ``"cuda"``.
    The dtype is set while building, so that buffers that a class keeps in float32 stay so.

    Raises ValueError for an unknown name, device or dtype; a config that its class rejects (with component and class).
    """
    check_device(device, dtype)
    if weights == "pretrained":
        if device == "meta":
            raise ValueError(
                "weights='pretrained' needs a real device; use device='cpu' or 'cuda', or weights='random'"
            )
        return load_pretrained(str(name), get_spec(str(name)), device=device, dtype=dtype)
    if weights != "random":
        raise ValueError(f"weights={weights!r} is not possible; choose 'random' or 'pretrained'")
    return build_model(get_spec(name, tiny=tiny), device=device, dtype=dtype, roles=roles)


def build_model(spec: ModelSpec, *, device: str, dtype: str, roles: Collection[str] | None = None) -> Model:
    """The networks of a spec with random weights; all of them, or those of some roles."""
    with uncollected():
        parts = {
            role: build(part, role=role, model=spec.name, device=device, dtype=dtype)
            for role, part in spec.components.items()
            if roles is None or role in roles
        }
    return Model(spec, parts, device, dtype)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector: it would look at all modules so far each time that some more were made."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def check_device(device: str, dtype: str) -> None:
    """Refuse a device or dtype that this machine does not have."""
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    kind = str(device).split(":")[0]
    if kind not in ("meta", "cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; choose meta, cpu or cuda")
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("device 'cuda' asked for, but torch sees no CUDA GPU here; use device cpu")
        if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError(f"{torch.cuda.get_device_name()} has no bfloat16; use dtype float16 or float32")


def build(part: Component, *, role: str, model: str, device: str, dtype: str) -> "torch.nn.Module":
    """One component with random weights, in eval mode, without gradients."""
    import torch

    cls = _network_class(part, f"{model}, component {role!r}: ")
    config = copied(part.config)
    try:
        with ExitStack() as stack:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(getattr(torch, dtype))
            stack.enter_context(torch.device(device))
            for layer in _filled_layers() if device == "meta" else ():  # there is nothing to fill
                stack.enter_context(patch.object(layer, "reset_parameters", lambda _: None))
            module = _from_config(cls, config, dtype) if hasattr(cls, "_from_config") else cls(**config)
    except Exception as error:
        raise ValueError(f"{model}, component {role!r}: {part.cls} rejects its config: {typed(error)}") from error
    module = module.to(device)  # parameters made with the legacy torch.Tensor([x]) ignore the device context
    return module.eval().requires_grad_(False)


@cache
def _filled_layers() -> list[Any]:
    """The layers of torch that fill their weights as they are made."""
    from torch import nn

    kinds = {base for layer in vars(nn).values() if isinstance(layer, type) for base in layer.__mro__}
    return [kind for kind in kinds if "reset_parameters" in vars(kind)]


def _from_config(cls: Any, config: dict[str, Any], dtype: str) -> "torch.nn.Module":
    """A transformers class with fused attention, where it has that; of several networks each as it has it."""
    import torch

    settings = cls.config_class(**config)
    fused = "sdpa" if cls._supports_sdpa else "eager"
    try:
        return cls._from_config(settings, attn_implementation=fused, dtype=getattr(torch, dtype))
    except ValueError as error:
        if "attention implementation" not in str(error):
            raise
    settings._attn_implementation = None  # the library chooses, network by network
    return cls._from_config(settings, dtype=getattr(torch, dtype))


def _network_class(part: Component, where: str) -> Any:
    from torch.nn import Module

    own = part.library == "mmchar"
    module = OWN.get(part.cls, "mmchar.models.networks.architectures") if own else part.library
    cls = class_of(module, part.cls, where=where, library=part.library)
    if not (isinstance(cls, type) and issubclass(cls, Module)):  # a function such as transformers.pipeline loads files
        raise ValueError(f"{where}{part.cls!r} of {part.library} is not a network (nn.Module)")
    return cls
