"""diffusers' pipelines: build one around networks, copy one onto ``meta``, check what its call is given."""

import copy
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from mmchar.faults import did_you_mean, typed
from mmchar.generation.from_folders import standins
from mmchar.generation.run import meta_memo
from mmchar.models.folders import library_class
from mmchar.models.pipeline_folders import lacking, scheduler_class

# Outputs as tensors, which a counted run can do without computing any.
_QUIET = {"output_type": "pt"}
_LISTED = 40  # names that a line lists


def networks_of(pipe: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline by role."""
    return {role: part for role, part in pipe.components.items() if isinstance(part, nn.Module)}


def on_meta(pipe: Any) -> Any:
    """A pipeline of the same class with its networks on ``meta``; the one given stays as it is."""
    memo: dict[int, Any] = {}
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            memo |= meta_memo(part)
        elif hasattr(part, "batch_decode") or hasattr(part, "preprocess"):  # tokenizers and processors have no state
            memo[id(part)] = part
    twin = copy.deepcopy(pipe, memo)
    twin.set_progress_bar_config(disable=True)
    return twin


def build(
    cls: Any,
    networks: Mapping[str, nn.Module],
    *,
    arguments: Mapping[str, Any],
    tokens: Mapping[str, Any],
) -> Any:
    """A pipeline around networks by role, with stand-ins for the tokenizers and processors that it asks for.

    ``arguments`` are further ones of its ``__init__``, ``tokens`` those of `standins.tokenizer` by tokenizer. Raises
    ValueError for a network that the class does not take, or lacks.
    """
    parameters = dict(inspect.signature(cls).parameters)
    for role in networks:
        if role not in parameters:
            raise ValueError(f"{cls.__name__} has no network {role!r}; it has {', '.join(parameters)}")
    check_names(arguments, parameters, owner=cls.__name__)
    said = {name: part for name, part in arguments.items() if part is not None or "tokenizer" not in name}
    given = {**standins.missing(parameters, networks, tokens), **networks, **said}
    lacks = lacking(cls, given)
    if lacks is not None:
        raise ValueError(f"{cls.__name__} cannot run without its network {lacks!r}")
    for role, part in parameters.items():
        if "scheduler" in role and part.default is part.empty and role not in given:
            given[role] = scheduler_class(cls, role)()
    if "requires_safety_checker" in parameters:
        given.setdefault("requires_safety_checker", False)
    chosen = {name: given.get(name) for name, part in parameters.items() if name in given or part.default is part.empty}
    with _where_networks_are(cls, networks):
        pipe = cls(**chosen)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def loaded(files: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Tokenizers and processors by role, each from its class and folder; what cannot be loaded is a warning."""
    found = {}
    for role, made in files.items():
        try:
            cls = library_class(f"component {role!r}", made["library"], made["class"])
            found[role] = cls.from_pretrained(made["folder"], local_files_only=True)
        except (ImportError, OSError, ValueError, AttributeError) as error:  # a package or a file is missing
            said = typed(error, 200)
            warnings.warn(f"component {role!r} cannot be loaded, a stand-in takes its place: {said}", stacklevel=1)
    return found


def _where_networks_are(cls: Any, networks: Mapping[str, nn.Module]) -> AbstractContextManager[Any]:
    """A class that makes one network of another (``from_unet2d``) makes it on ``meta`` too, where the other is."""
    first = next((part for network in networks.values() for part in network.parameters()), None)
    on_meta = first is not None and first.is_meta and "from_unet" in inspect.getsource(cls.__init__)
    return torch.device("meta") if on_meta else nullcontext()


def check_arguments(call: Callable[..., Any], arguments: Mapping[str, Any], *, owner: str) -> None:
    """Refuse an argument that a call does not take, with the nearest that it does, before anything runs."""
    parameters = inspect.signature(call).parameters
    plain = {name for name, part in parameters.items() if part.kind is not part.VAR_KEYWORD}
    names = [name for name in parameters if name in plain and name != "self"]
    if len(plain) == len(parameters):
        check_names(arguments, names, owner=owner)
    elif call.__module__.startswith("diffusers.pipelines"):  # they take old names so, and no others
        old = re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(call))
        check_names(arguments, [*names, *old], owner=owner)


def check_complete(call: Callable[..., Any], arguments: Mapping[str, Any], *, owner: str) -> None:
    """Refuse a call that lacks an argument without a default."""
    for name, part in inspect.signature(call).parameters.items():
        plain = part.kind not in (part.VAR_KEYWORD, part.VAR_POSITIONAL)
        if plain and part.default is part.empty and name not in arguments:
            raise ValueError(f"{owner} needs {name!r}; give it by mmchar.count(..., {name}=...) or --call {name}=...")


def check_names(arguments: Iterable[str], known: Iterable[str], *, owner: str) -> None:
    """Refuse a name that is not known, with the nearest that is."""
    names = list(known)
    for name in arguments:
        if name not in names:
            listed = ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
            raise ValueError(f"{owner} takes no {name!r}; {did_you_mean(name, names)}it takes {listed}")


def work(pipe: Any, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """One call of a pipeline, ready to run."""
    check_arguments(pipe.__call__, arguments, owner=type(pipe).__name__)
    takes = inspect.signature(pipe.__call__).parameters
    quiet = {name: value for name, value in _QUIET.items() if name in takes}

    def run() -> Any:
        with _as_it_is(type(pipe)):
            return pipe(**{**quiet, **arguments})

    return run


class _PlainText:
    """Stands in for the package ftfy, which mends prompts."""

    @staticmethod
    def fix_text(text: str) -> str:
        """The text as it is."""
        return text


@contextmanager
def _as_it_is(cls: type) -> Iterator[None]:
    """Prompts are not mended where the package for it is missing: many pipelines do not ask whether it is there."""
    names = dict.fromkeys(part.__module__ for part in cls.__mro__ if part.__module__.startswith("diffusers.pipelines"))
    with ExitStack() as stack:
        for name in names:
            if not hasattr(sys.modules[name], "ftfy"):
                stack.enter_context(patch.object(sys.modules[name], "ftfy", _PlainText, create=True))
        yield
