"""Tiny pipelines of diffusers that run on a CPU: the library's own code, random weights, a second or two each.

The folder ``pipelines`` holds them as data. A file has two parts:

- ``networks``: components by key. ``library`` and ``class`` say what to build from ``config``, ``config_class`` which
  configuration where the class does not say it rightly, ``dtype`` a type other than float32; ``like`` takes another
  network's values first.
- ``pipelines``: by class name, with ``module`` where the library may hide it. ``components`` gives each role its
  network's key (a list of keys makes a list, null leaves the role empty); ``scheduler``, and ``schedulers`` for further
  roles; ``tokens``: the tokenizers and their longest prompt; ``parts``: other objects without weights, such as feature
  extractors; ``init``: plain arguments of the class; ``attributes``: settings of the finished pipeline that it takes
  from nowhere; ``prepare``: methods of it to call before it runs; ``call``: plain arguments of the call; ``needs``:
  inputs to make up (see `tiny_parts.make_input`); ``like`` takes another pipeline's values first, and ``without`` names
  what of them, or of the usual arguments of a call, does not belong here.

Keys are shared by all files. What cannot be built or run is named, with the reason, in ``unsupported.json``; what one
run measured is kept in ``measured.json``.
"""

import functools
import importlib
import inspect
import json
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny_parts
import torch
import transformers
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parent / "pipelines"
NOT_PIPELINES = ("unsupported.json", "measured.json")
# The ways in which a pipeline calls a network as a whole.
ENTRIES = ("forward", "encode", "decode")
# What a call gets when its pipeline takes it and the data says nothing else.
USUAL: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt"}


@functools.cache
def _read() -> tuple[dict[str, dict], dict[str, dict]]:
    """All networks and all pipelines of the folder, by key and by class name."""
    networks: dict[str, dict] = {}
    pipelines: dict[str, dict] = {}
    for path in sorted(FOLDER.glob("*.json")):
        if path.name in NOT_PIPELINES:
            continue
        data = json.loads(path.read_text())
        for known, new in ((networks, data.get("networks", {})), (pipelines, data["pipelines"])):
            twice = known.keys() & new.keys()
            if twice:
                raise ValueError(f"{path.name} names again: {sorted(twice)}; keys are shared by all files")
            known.update(new)
    return networks, pipelines


def _resolved(entries: dict[str, dict], key: str) -> dict[str, Any]:
    """An entry on top of the one it is like: sections are joined value by value, then lose what it is without."""
    entry = dict(entries[key])
    whole = _resolved(entries, entry.pop("like")) if "like" in entry else {}
    without = set(entry.get("without", ()))
    for name, value in entry.items():
        old = whole.get(name)
        joined = isinstance(old, dict) and isinstance(value, dict) and name != "scheduler"
        whole[name] = {**old, **value} if joined else value
    for name in without:
        for section in whole:
            if isinstance(whole[section], dict) and name in whole[section]:
                whole[section] = {key: value for key, value in whole[section].items() if key != name}
    return whole


def names() -> list[str]:
    """The pipeline classes, in alphabetical order."""
    return sorted(_read()[1])


def unsupported() -> dict[str, str]:
    """The pipeline classes that cannot be built or run here, each with the reason."""
    return json.loads((FOLDER / "unsupported.json").read_text())


def pipeline(name: str) -> dict[str, Any]:
    """The data of a pipeline, complete."""
    return _resolved(_read()[1], name)


def _class(library: str, name: str) -> Any:
    """A class of a library; a dotted name says the module under the library, for classes that it does not list."""
    module, _, last = name.rpartition(".")
    if library == "tiny_parts":
        return getattr(tiny_parts, last)
    return getattr(importlib.import_module(f"{library}.{module}" if module else library), last)


def _part(spec: dict[str, Any]) -> Any:
    """An object without weights, from its class and its arguments."""
    return _class(spec.get("library", "diffusers"), spec["class"])(**spec.get("config", {}))


def _network(key: str) -> nn.Module:
    """A network with random weights, on the device that is the default just now."""
    spec = _resolved(_read()[0], key)
    build = _class(spec["library"], spec["class"])
    config = spec["config"]
    if issubclass(build, transformers.PreTrainedModel) and isinstance(build.config_class, type):
        kind = getattr(transformers, spec["config_class"]) if "config_class" in spec else build.config_class
        made = build(kind(**config))
    else:
        made = build(**config)
    made = _frozen(made)
    return made.to(getattr(torch, spec["dtype"])) if "dtype" in spec else made


def _frozen(network: nn.Module) -> nn.Module:
    """The network without training and gradients; the counter follows gradients, also those of buffers."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.requires_grad_(False)
    return network.eval()


def _networks(keys: Any) -> Any:
    if isinstance(keys, list):
        return [_network(key) for key in keys]
    return None if keys is None else _network(keys)


def _tokenizer(spec: Any) -> Any:
    if spec is None:
        return None
    options = {"max_length": spec} if isinstance(spec, int) else dict(spec)
    make = getattr(tiny_parts, options.pop("class", "make_tokenizer"))
    return make(**options)


def pipeline_class(name: str) -> Any:
    """The class; some entries name its module, as the library hides it where a package for its tokenizer is missing."""
    module = pipeline(name).get("module", "")
    found = _class("diffusers", f"{module}.{name}" if module else name)
    code = sys.modules[found.__module__]
    if hasattr(code, "is_ftfy_available") and not hasattr(code, "ftfy"):
        code.ftfy = tiny_parts.PlainText  # type: ignore[attr-defined]  # or prompts could not be cleaned at all
    return found


def build(name: str, device: str = "cpu") -> Any:
    """The pipeline with random weights; on ``meta`` only its networks are there, and they hold no numbers."""
    entry = pipeline(name)
    torch.manual_seed(0)
    with torch.device(device):
        made = {role: _networks(keys) for role, keys in entry.get("components", {}).items()}
    made |= {role: _tokenizer(length) for role, length in entry.get("tokens", {}).items()}
    schedulers = {"scheduler": entry.get("scheduler"), **entry.get("schedulers", {})}
    made |= {role: _part(spec) for role, spec in schedulers.items() if spec}
    made |= {role: spec and _part(spec) for role, spec in entry.get("parts", {}).items()}
    built = pipeline_class(name)(**made, **entry.get("init", {}))
    built.set_progress_bar_config(disable=True)
    for attribute, value in entry.get("attributes", {}).items():
        setattr(built, attribute, value)
    for method in entry.get("prepare", []):
        operator.attrgetter(method)(built)()
    return built


def call_arguments(name: str) -> dict[str, Any]:
    """Everything that the pipeline's call gets: plain values, made-up inputs and a seeded generator."""
    entry = pipeline(name)
    taken = inspect.signature(pipeline_class(name).__call__).parameters
    arguments = {key: value for key, value in USUAL.items() if key in taken}
    if "generator" in taken:
        arguments["generator"] = torch.Generator("cpu").manual_seed(0)
    torch.manual_seed(0)  # for the few pipelines that draw without a generator
    arguments |= {key: tiny_parts.make_input(need) for key, need in entry.get("needs", {}).items()}
    arguments |= entry.get("call", {})
    return {key: value for key, value in arguments.items() if key not in entry.get("without", ())}


def run(name: str, **overrides: Any) -> Any:
    """What the pipeline returns, run for real on the CPU in float32."""
    built = build(name)
    with torch.no_grad():
        return built(**{**call_arguments(name), **overrides})


def measured_flop(name: str, **overrides: Any) -> tuple[int, dict[str, int]]:
    """FLOP of one real run, and how often the pipeline called each network, by role.

    PyTorch's own counter adds up the matrix products and convolutions, 2 FLOP per multiply-add; under the math
    backend attention is made of matrix products, so that the counter sees it on a CPU too.

    Parameters
    ----------
    **overrides
        Arguments of the call that take the place of those in the data.
    """
    rows = measured_calls(name, **overrides)
    calls: Counter[str] = Counter()
    for role, method, count, _flop in rows:
        if method:
            calls[role] += count
    return sum(row[3] for row in rows), dict(calls)


def measured_calls(name: str, **overrides: Any) -> list[tuple[str, str, int, int]]:
    """The same run taken apart: (role, method, calls, FLOP), with ("", "", 0, FLOP) for work outside every call."""
    built = build(name)
    arguments = {**call_arguments(name), **overrides}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter, _watched(built, counter) as seen:
        built(**arguments)
        inside = sum(flop for _count, flop in seen.values())
        outside = counter.get_total_flops() - inside
    rows = [(role, method, count, flop) for (role, method), (count, flop) in seen.items()]
    return [*rows, ("", "", 0, outside)]


@contextmanager
def _watched(built: Any, counter: FlopCounterMode) -> Iterator[dict[tuple[str, str], list[int]]]:
    """Counts the calls of each network, and the FLOP in them, as {(role, method): [calls, FLOP]}.

    A call inside another call belongs to the outer one.
    """
    seen: dict[tuple[str, str], list[int]] = {}
    depth = [0]

    def watch(role: str, method: str, entry: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(entry)
        def call(*args: Any, **kwargs: Any) -> Any:
            before = counter.get_total_flops()
            depth[0] += 1
            try:
                return entry(*args, **kwargs)
            finally:
                depth[0] -= 1
                if not depth[0]:
                    row = seen.setdefault((role, method), [0, 0])
                    row[0] += 1
                    row[1] += counter.get_total_flops() - before

        return call

    for role, network in _roles(built):
        for method in ENTRIES:
            if hasattr(network, method):
                setattr(network, method, watch(role, method, getattr(network, method)))
    yield seen


def _roles(built: Any) -> Iterator[tuple[str, nn.Module]]:
    """The networks of a pipeline by role; several in one role are told apart by their place."""
    for role, part in built.components.items():
        if isinstance(part, nn.Module):
            yield role, part
