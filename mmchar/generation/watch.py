"""Catch every call of a generation's networks while its own code runs, and answer those that were seen before.

A call is told apart by its signature. The first of a signature is executed, the others are answered with the output of
the first: a generation of fifty steps executes its denoiser once.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from mmchar.generation import caches, parts
from mmchar.generation.recording import Call, Seen, signature, whole_numbers
from mmchar.generation.structure import Change, copied, is_cache, leaves, mapped
from mmchar.tracing import known_values
from mmchar.tracing.trace import trace

# Methods besides ``forward`` that pipelines call networks by; ``generate`` is a loop of calls and no call itself.
_CALLED = re.compile(r"^(encode|decode)(_\w+)?$|^get_\w*(features|image_tokens)$|^(rank|retrieve)$")


@dataclass(frozen=True)
class Execution:
    """What becomes of tensors where a call is executed, on ``meta`` or on a device.

    So an argument is ``given`` to the network, and a part of an output ``returned`` to the pipeline; what may be
    written to later is ``kept`` as it is now.
    """

    given: Change
    returned: Change
    kept: Change


class Watch:
    """The networks of a generation, and what was seen of them.

    Parts of a network that do another thing than the rest (a vision tower, a projector) are stages of their own: what
    they run is theirs and not the network's (`parts`).
    """

    def __init__(self, networks: Mapping[str, nn.Module], execution: Execution) -> None:
        self.networks = networks
        self.seen: list[Seen] = []
        self._execution = execution
        self._running: list[_Running] = []
        self._parts = {id(part) for network in networks.values() for part in parts.parts_of(network)}
        self._index: dict[Any, list[Seen]] = {}
        self._owners: dict[int, tuple[str, str]] = {}
        for role, network in networks.items():
            for path, module in network.named_modules():
                self._owners.setdefault(id(module), (role, path))

    @property
    def is_inside(self) -> bool:
        """Whether a network is running."""
        return bool(self._running)

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Catch the networks' calls meanwhile; the networks are as before afterwards."""
        with ExitStack() as stack:
            stack.enter_context(patch.object(nn.Module, "__call__", self._catching_call()))
            for role, network in self.networks.items():
                for path, module in network.named_modules():
                    kind: Any = type(module)
                    for name in _methods(kind):
                        caught = self._catching_method(role, f"{path}.{name}" if path else name, module, name)
                        stack.enter_context(patch.object(module, name, caught))
            yield

    def _catching_call(self) -> Callable[..., Any]:
        original = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            owner = None if self._running and id(module) not in self._parts else self._owners.get(id(module))
            if owner is None:
                return original(module, *args, **kwargs)
            role, path = owner
            method = f"{path}.forward" if path else "forward"
            if self._running and method == self._running[-1].method:
                return original(module, *args, **kwargs)
            return self._caught(role, method, functools.partial(original, module), args, kwargs)

        return call

    def _catching_method(self, role: str, method: str, network: nn.Module, name: str) -> Callable[..., Any]:
        original = getattr(network, name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            # a method that cuts its input into tiles is a loop of calls: its parts are caught one by one
            is_loop = getattr(network, "use_tiling", False)
            if self._running or is_loop or not any(isinstance(part, Tensor) for part in (*args, *kwargs.values())):
                return original(*args, **kwargs)
            return self._caught(role, method, original, args, kwargs)

        return call

    def _caught(self, role: str, method: str, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        with _disable_current_modes():  # what is done here is no part of the generation
            structure, numbers = signature(args, kwargs)
            found = self._find(role, method, structure, numbers, (args, kwargs))
            if found is None:
                return self._first(role, method, func, args, kwargs, structure, numbers)
            self._count(found, numbers)
            self._inside(found, numbers)
            return self._answer(found, args, kwargs, grown=numbers != found.numbers[0])

    def _count(self, seen: Seen, numbers: tuple[int, ...]) -> None:
        """One more call of a signature, and of what it calls inside."""
        seen.numbers.append(numbers)
        for part, its_numbers in seen.inside:
            self._count(part, its_numbers)

    def _inside(self, seen: Seen, numbers: tuple[int, ...]) -> None:
        """Note a call as one of what is running around it."""
        if self._running:
            self._running[-1].calls.append((seen, numbers))

    def _noted(self, method: str, output: Any) -> Any:
        """An output, noted as a part's where a network around it is running."""
        if self._running:  # copied, as the network around may write to it
            self._running[-1].outputs[method] = mapped(output, self._execution.kept)
        return output

    def _find(self, role: str, method: str, structure: tuple, numbers: tuple[int, ...], arguments: Any) -> Seen | None:
        followed = [
            seen
            for seen in self.seen
            if (seen.role, seen.method, seen.structure) == (role, method, structure)
            and seen.layers
            and all(0 <= new - old <= seen.tokens for new, old in zip(numbers, seen.numbers[-1], strict=True))
        ]
        if not followed:  # the same call again, or the first step of another text of the same length
            alike = self._index.get((role, method, structure, numbers), ())
            return next((seen for seen in alike if seen.is_for(arguments)), None)
        return min(followed, key=lambda seen: sum(numbers) - sum(seen.numbers[-1]))

    def _first(
        self, role: str, method: str, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any], *key: tuple
    ) -> Any:
        given = mapped((args, kwargs), self._execution.given, keep=is_cache)
        call = Call(*given)
        cache = call.cache
        if cache is not None:
            self._catch_up(cache)
            self._execution.given((), cache)
        kept = Call(*mapped(given, self._execution.kept))
        before = caches.lengths(cache) if cache is not None else ()
        running, reads = _Running(method), known_values.reads()
        self._running.append(running)
        outputs: list[Any] = []
        try:
            rows = trace(self.networks[role], lambda: outputs.append(func(*given[0], **given[1])))
        except Exception as error:
            error.add_note(f"network {role!r} ({method})")
            raise
        finally:
            self._running.pop()
        (out,) = outputs
        seen = Seen(role, method, kept, key[0], [key[1]], rows, inner=running.outputs, inside=running.calls)
        if known_values.reads() > reads:
            seen.values = [whole_numbers((kept.args, kept.kwargs))]
        if cache is not None:
            after = caches.lengths(cache)
            seen.layers = caches.growing(before, after)
            seen.tokens = max((b - a for a, b in zip(before, after, strict=False)), default=0)
            seen.after = mapped(cache, self._execution.kept)
            returned = [part for _, part in leaves(out, whole=is_cache) if is_cache(part)]
            seen.wraps = bool(returned) and all(part is not cache for part in returned)
        seen.output = out if self._running else mapped(out, self._execution.returned, keep=is_cache)
        if before:
            seen.layers = seen.layers if any(before) else ()
        seen = self._remembered(seen, *key)
        self._inside(seen, key[1])
        return self._noted(method, self._given_back(seen, cache))

    def _remembered(self, seen: Seen, structure: tuple, numbers: tuple[int, ...]) -> Seen:
        """What is known of a call from now on: with other values, and still the same operators, an earlier one."""
        alike = self._index.setdefault((seen.role, seen.method, structure, numbers), [])
        twin = next((one for one in alike if seen.after is None and one.rows == seen.rows), None)
        if twin is not None and twin.values is not None:
            twin.values += seen.values or []
            twin.numbers.append(numbers)
            return twin
        self.seen.append(seen)
        alike.append(seen)
        return seen

    def _answer(self, seen: Seen, args: tuple, kwargs: dict[str, Any], *, grown: bool) -> Any:
        cache = Call(args, kwargs).cache
        if cache is not None:
            self._execution.given((), cache)
            if grown:
                self._advance(seen, cache)
            elif seen.after is not None:
                caches.restore(cache, copied(seen.after))
        return self._noted(seen.method, self._given_back(seen, cache))

    def _catch_up(self, cache: Any) -> None:
        behind = getattr(cache, "behind", 0)
        if behind:
            nearest = next(seen for seen in reversed(self.seen) if seen.layers and seen.quiet > 1)
            caches.catch_up(cache, nearest.layers)

    def _advance(self, seen: Seen, cache: Any) -> None:
        """Make a cache longer as the call would; where nobody else touches it, only as far as one can see."""
        touched = caches.fingerprint(cache)
        seen.quiet = seen.quiet + 1 if touched == seen.touched else 0
        if seen.quiet > 1:
            caches.advance_first(cache, seen.tokens, seen.layers)
        else:
            caches.catch_up(cache, seen.layers)
            caches.advance(cache, seen.tokens, seen.layers)
            seen.touched = caches.fingerprint(cache)

    def _given_back(self, seen: Seen, cache: Any) -> Any:
        """The output of a signature, with the cache of this call in it."""
        out = mapped(seen.output, self._execution.kept, keep=is_cache)
        return copied(out) if cache is None or seen.wraps else _with_cache(out, cache)


@dataclass
class _Running:
    """A method that is being executed, and what its parts with stages of their own were called with and returned."""

    method: str
    outputs: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[Seen, tuple[int, ...]]] = field(default_factory=list)


def _with_cache(value: Any, cache: Any) -> Any:
    if is_cache(value):
        return cache
    if isinstance(value, tuple | list) and any(is_cache(part) for part in value):
        return type(value)(cache if is_cache(part) else part for part in value)
    if hasattr(value, "to_tuple"):
        for name, part in list(value.items()):
            if is_cache(part):
                value[name] = cache
    return value


@functools.cache
def _methods(cls: Any) -> tuple[str, ...]:
    return tuple(name for name in dir(cls) if _CALLED.match(name) and inspect.isfunction(getattr(cls, name)))
