"""What a generation was seen to do: the calls of its networks, told apart by signature, each with how often it came."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmchar.generation import caches, parts
from mmchar.generation.structure import Change, as_it_is, is_cache, leaves, mapped, tensors
from mmchar.tracing import known_values
from mmchar.tracing.trace import Row


@dataclass(frozen=True)
class Subject:
    """One generation, ready to run: its networks by role, on ``meta`` or on a device, and the work that calls them.

    ``renamed`` and ``makes`` say how its stages are called (`names.names`).
    """

    name: str
    networks: Mapping[str, nn.Module]
    work: Callable[[], Any]
    asked: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    makes: str | None = None


@dataclass(frozen=True)
class Call:
    """Arguments of a network's call, with tensors on ``meta`` (few small ones keep their values), or real ones.

    A cache among them is a copy, as it was before the call.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def copied(self, change: Change = as_it_is) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments to call with once: caches are copied, as the call may change them; leaves go through ``change``."""
        return mapped((self.args, dict(self.kwargs)), change)

    @property
    def cache(self) -> Any:
        """The cache among the arguments; None where there is none."""
        every = leaves((self.args, dict(self.kwargs)), whole=is_cache)
        return next((leaf for _, leaf in every if is_cache(leaf)), None)


@dataclass(frozen=True)
class Growth:
    """How the calls of a stage differ from step to step: the dimensions that grow, and the cache.

    ``dims`` holds, for each step, the sizes that change, in the order of ``places`` (path of the tensor, dimension; the
    cache's is ``None``). ``layers`` are those of the cache that become longer.
    """

    places: tuple[tuple[Any, int] | None, ...]
    dims: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]

    @classmethod
    def between(cls, structure: tuple, numbers: list[tuple[int, ...]], layers: tuple[int, ...]) -> "Growth":
        """The growth of calls of one structure, given their `signature` numbers."""
        every: list[tuple[Any, int] | None] = []
        for part in structure:
            if len(part) == 3:  # a tensor
                every += [(part[0], dim) for dim in range(part[1])]
            elif isinstance(part[0], str):  # a cache
                every.append(None)
        changed = [index for index, sizes in enumerate(zip(*numbers, strict=True)) if len(set(sizes)) > 1]
        dims = tuple(tuple(sizes[index] for index in changed) for sizes in numbers)
        return cls(tuple(every[index] for index in changed), dims, layers)

    def cached(self, step: int) -> int:
        """Tokens in the cache before a step."""
        return self.dims[step][self.places.index(None)] if None in self.places else 0


@dataclass(frozen=True)
class Stage:
    """A part of a generation: one method of one network, called ``repeats`` times with the same signature.

    Where ``growth`` is set the calls differ by a cache that grows; ``step`` says which of them ``call`` is. ``inner``
    holds what parts of the network with stages of their own returned, by method: they are not run with this one.
    """

    name: str
    component: str
    method: str
    repeats: int
    call: Call
    growth: Growth | None = None
    step: int = 0
    inner: Mapping[str, Any] = field(default_factory=dict)

    @property
    def grows(self) -> bool:
        """Whether every execution finds a longer cache than the one before."""
        return self.growth is not None

    def at(self, step: int) -> "Stage":
        """The stage at one of its steps: same shapes, but for a cache that has grown."""
        if self.growth is None or step == self.step:
            return self
        sizes = dict(zip(self.growth.places, self.growth.dims[step], strict=True))

        def resized(path: Any, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            shape = [sizes.get((path, dim), size) for dim, size in enumerate(leaf.shape)]
            return leaf if shape == list(leaf.shape) else _resized(leaf, shape)

        args, kwargs = self.call.copied(resized)
        moved = Call(args, kwargs)
        caches.advance(moved.cache, self.growth.cached(step) - self.growth.cached(self.step), self.growth.layers)
        return replace(self, call=moved, step=step)

    def work(self, network: nn.Module) -> Callable[[], Any]:
        """One execution, with arguments of its own: the network's method called as it was seen to be."""
        args, kwargs = self.call.copied()
        run = self.called(network)
        return parts.answered(network, self.inner, lambda: run(*args, **kwargs))

    def called(self, network: nn.Module) -> Callable[..., Any]:
        """What is called: the network, one of its modules, or a method."""
        path, _, method = self.method.rpartition(".")
        owner = network.get_submodule(path)
        return owner if method == "forward" else getattr(owner, method)

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that the network is called with, by the argument's name or place."""
        named = {str(index): value for index, value in enumerate(self.call.args)} | dict(self.call.kwargs)
        return {name: tuple(value.shape) for name, value in named.items() if isinstance(value, Tensor)}


@dataclass
class Seen:
    """All calls of one signature, or of a cache that grows from call to call."""

    role: str
    method: str
    call: Call
    structure: tuple
    numbers: list[tuple[int, ...]]
    rows: list[Row]
    output: Any = None
    layers: tuple[int, ...] = ()
    tokens: int = 0
    after: Any = None  # the call's cache, as it was left
    wraps: bool = False  # whether it gives back another cache than it was given, e.g. one with the encoder's beside it
    touched: tuple[int, ...] = ()  # what the cache held after the last call
    quiet: int = 0  # calls in a row between which nothing else touched the cache
    inner: dict[str, Any] = field(default_factory=dict)  # what parts with stages of their own returned, by method
    inside: list[tuple["Seen", tuple[int, ...]]] = field(default_factory=list)  # their calls, made with each of these
    values: list[list[Tensor]] | None = None  # what its masks and places said, of a network that reads them

    def is_for(self, arguments: Any) -> bool:
        """Whether a call with such masks and places does the same; looked at only where the network reads them."""
        if self.values is None:
            return True
        values = whole_numbers(arguments)
        return any(len(one) == len(values) and all(map(torch.equal, one, values)) for one in self.values)

    def stage(self, name: str) -> Stage:
        """The calls as a stage of a generation."""
        grows = self.numbers if len(set(self.numbers)) > 1 else None
        growth = Growth.between(self.structure, self.numbers, self.layers) if grows else None
        return Stage(name, self.role, self.method, len(self.numbers), self.call, growth, inner=self.inner)


@dataclass(frozen=True)
class Recording:
    """The stages of a generation in the order of their first calls, and the rows of those that were traced.

    ``outside`` holds the rows of what ran outside the networks: schedulers, guidance, latents, sampling.
    """

    stages: tuple[Stage, ...]
    rows: Mapping[str, list[Row]] = field(default_factory=dict)
    outside: list[Row] = field(default_factory=list)
    output: Any = None


def _resized(leaf: Tensor, shape: list[int]) -> Tensor:
    if leaf.is_meta or leaf.numel() == 0:
        made = torch.empty(shape, dtype=leaf.dtype, device=leaf.device)
        if hasattr(leaf, "known"):
            made.known = _resized(leaf.known, shape)
        return made
    for dim, size in enumerate(shape):
        index = torch.arange(size, device=leaf.device).clamp(max=leaf.shape[dim] - 1)
        leaf = leaf.index_select(dim, index)
    return leaf


def signature(args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, tuple[int, ...]]:
    """What tells calls apart: their structure, and the sizes of the tensors in it (of a cache, how long it is)."""
    structure: list[Any] = []
    numbers: list[int] = []

    for path, leaf in leaves((args, dict(kwargs)), whole=is_cache):
        if isinstance(leaf, Tensor):
            a_time = leaf.dim() < 2 and leaf.is_floating_point()  # some pipelines change the type of times on the way
            structure.append((path, leaf.dim(), "real" if a_time else leaf.dtype))
            numbers.extend(leaf.shape)
        elif is_cache(leaf):
            structure.append((type(leaf).__name__, caches.layer_kinds(leaf)))
            numbers.append(caches.length(leaf))
        elif isinstance(leaf, int | str | type(None) | torch.dtype):
            structure.append((path, leaf))
        else:
            structure.append((path, type(leaf).__name__))
    return tuple(structure), tuple(numbers)


def whole_numbers(arguments: Any) -> list[Tensor]:
    """Values of the masks, places and sizes among arguments, as far as they are known; of rows, not of single times."""
    found = [known_values.known(tensor) for tensor in tensors(arguments) if tensor.dim() > 1]
    return [values for values in found if values is not None and not values.is_floating_point()]
