"""Where the tokens of a tensor come from: the image that a network works on, the context that it was given, or both.

What a network is called with says which argument is which. From there each operator's output has the tokens of its
largest input; joining sequences joins their tokens, and a slice of a joined sequence has those of its part. So the
kind of an attention call follows from what its queries and keys hold, whatever the network is called.

A tensor's tokens are parts in order, each a source and how many: ``(("context", 512), ("image", 4096))``. Where there
is one source, or where the order is not known, there are no numbers: ``(("image", 0),)``.
"""

import functools
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from mmchar.tracing import operators
from mmchar.tracing.question import tensors

Parts = tuple[tuple[str, int], ...]
IMAGE, CONTEXT, OTHER = "image", "context", ""  # an image may also be sound or video; other: an embedding, a class
# How the libraries name a forward's arguments: the tokens or the grid to work on, and what to attend to besides.
_IMAGE = re.compile(r"^(hidden_states|sample|x|img|image|latents?|noisy_\w+|pixel_values|vision_tokens)$")
_CONTEXT = re.compile(r"^(encoder_hidden_states|text|txt|cap_feats|captions?|prompt_embeds|context$|input_ids)")
_NO_TOKENS = re.compile(r"mask|pooled|time|len|ind(ex|ices)|(?<!input)_ids$|pos")
_WRITES = operators.words("copy index_put index_copy slice_scatter select_scatter masked_scatter scatter")
_QUERY = dict.fromkeys((*operators.ATTENTION_CORES, "bmm"), 0) | {"baddbmm": 1}  # whose tokens the output has
_CUTS = operators.words("slice split split_with_sizes unsafe_split unsafe_split_with_sizes")


class TokenSources:
    """The parts of every tensor that one execution of a network makes out of its marked inputs."""

    def __init__(self) -> None:
        self._own = object()  # says of what is noted on a tensor that it was noted here
        self._any = False
        self._written: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parts of memory that was written into

    @contextmanager
    def marking(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """While it is open, what these modules are called with says where tokens come from."""
        hooks = [
            module.register_forward_pre_hook(self.mark, with_kwargs=True)
            for module in modules
            if {IMAGE, CONTEXT} <= set(_roles(module).values())
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def mark(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Write down the sources of a forward's arguments, if it was given both an image and a context."""
        roles = _roles(module)
        given = {**dict(zip(roles, args, strict=False)), **kwargs}
        found = {name: list(_sequences(given.get(name))) for name, role in roles.items() if role != OTHER}
        if {roles[name] for name, sequences in found.items() if sequences} != {IMAGE, CONTEXT}:
            return
        for name, sequences in found.items():
            for tensor in sequences:
                if not self.parts(tensor):  # an outer module knows better
                    self._note(tensor, ((roles[name], 0),))

    def parts(self, tensor: Tensor) -> Parts:
        """The parts of a tensor; of a buffer, which others see through views, those of all that was written into it."""
        noted = getattr(tensor, "token_parts", None)
        own: Parts = noted[1] if noted is not None and noted[0] is self._own else ()
        return self._written.get(tensor.untyped_storage(), ()) if self._written and not own else own

    def sources(self, tensor: Tensor) -> set[str]:
        """The sources of a tensor's tokens, as far as they are known."""
        return _sources([self.parts(tensor)])

    def follow(self, name: str, args: tuple, inputs: Sequence[Tensor], out: Any) -> None:
        """Write down the parts of what an operator returned."""
        if not self._any:
            return
        known = [self.parts(tensor) for tensor in inputs]
        if not any(known):
            return
        outputs = tensors((out,))
        if not outputs or operators.makes_new(name):
            return
        parts = _output_parts(operators.out_of_place(name), args, inputs, known, outputs[0])
        cuts = _cuts(name, args, parts)
        for place, tensor in enumerate(outputs):
            self._note(tensor, _between(parts, cuts[place], cuts[place + 1]) if cuts else parts)
        if operators.out_of_place(name) in _WRITES:
            self._written[outputs[0].untyped_storage()] = parts

    def _note(self, tensor: Tensor, parts: Parts) -> None:
        tensor.token_parts = self._own, parts
        self._any = True


def _output_parts(name: str, args: tuple, inputs: Sequence[Tensor], known: Sequence[Parts], out: Tensor) -> Parts:
    if name in _WRITES:
        return _mixed(known)
    if name in _QUERY:
        return known[_QUERY[name]]
    if name == "cat" and not _is_width(out, axis := _axis(args, 1, out)):
        return _joined(inputs, known, axis)
    if len(inputs) == 1:
        return known[0]
    # of those that are equally large, one that says where each part is
    largest = max((n for n, parts in enumerate(known) if parts), key=lambda n: (inputs[n].numel(), _total(known[n])))
    same = [parts for tensor, parts in zip(inputs, known, strict=True) if tensor.shape == inputs[largest].shape]
    if name in ("add", "where") and out.dim() == 3 and out.shape[1] > 1 and _sources(same) > _sources([known[largest]]):
        return _mixed(same)  # text in some places of a sequence and an image in the others
    return known[largest]


def _joined(tensors: Sequence[Tensor], known: Sequence[Parts], axis: int) -> Parts:
    """The parts of sequences that follow each other along an axis."""
    joined: list[tuple[str, int]] = []
    for tensor, parts in zip(tensors, known, strict=True):
        length = tensor.shape[axis] if tensor.dim() > axis else 0
        if len(parts) > 1 and _total(parts) != length:
            return _mixed(known)
        joined += parts if len(parts) > 1 else [(parts[0][0] if parts else OTHER, length)]
    return _simple(joined)


def _cuts(name: str, args: tuple, parts: Parts) -> list[int]:
    """Where an operator cuts a joined sequence, the places of the first cut and of the last included; else none."""
    if name not in _CUTS or len(parts) < 2:
        return []
    x, total = args[0], _total(parts)
    axis = _axis(args, 1 if name == "slice" else 2, x)
    if x.shape[axis] != total or _is_width(x, axis):
        return []
    if name == "slice":
        start, end = (*args[2:4], None, None)[:2]
        return list(slice(start, end).indices(total)[:2])
    sizes = [args[1]] * -(-total // args[1]) if isinstance(args[1], int) else args[1]
    return [min(end, total) for end in accumulate(sizes, initial=0)]


def _between(parts: Parts, start: int, end: int) -> Parts:
    """The parts between two places of a joined sequence."""
    bounds = pairwise(accumulate((many for _, many in parts), initial=0))
    kept = [(source, min(end, high) - max(start, low)) for (source, _), (low, high) in zip(parts, bounds, strict=True)]
    return _simple([(source, many) for source, many in kept if many > 0])


def _simple(parts: Sequence[tuple[str, int]]) -> Parts:
    if len({source for source, _ in parts}) > 1:
        return tuple(parts)
    return tuple((source, 0) for source, _ in parts[:1])


def _mixed(known: Iterable[Parts]) -> Parts:
    return tuple((source, 0) for source in sorted(_sources(known)))


def _sources(known: Iterable[Parts]) -> set[str]:
    return {source for parts in known for source, _ in parts} - {OTHER}


def _total(parts: Parts) -> int:
    return sum(many for _, many in parts)


def _axis(args: tuple, place: int, tensor: Tensor) -> int:
    return (args[place] if len(args) > place else 0) % max(tensor.dim(), 1)


def _is_width(tensor: Tensor, axis: int) -> bool:
    """Whether an axis holds the numbers of one token, not tokens."""
    return axis == tensor.dim() - 1 and tensor.is_floating_point()


def _roles(module: nn.Module) -> dict[str, str]:
    """The names of a forward's arguments in order, each with its source; none where it is not written in Python."""
    kind: Any = type(module)
    return _roles_of(kind)


@functools.cache
def _roles_of(kind: Any) -> dict[str, str]:
    forward = inspect.unwrap(inspect.getattr_static(kind, "forward"))
    names = list(inspect.signature(forward).parameters)[1:] if inspect.isfunction(forward) else []
    return {name: _role(name) for name in names}


def _role(name: str) -> str:
    if _NO_TOKENS.search(name):
        return OTHER
    return IMAGE if _IMAGE.search(name) else CONTEXT if _CONTEXT.search(name) else OTHER


def _sequences(value: Any, *, batched: bool = True) -> Iterator[Tensor]:
    """The tensors of an argument that hold tokens: ``(batch, tokens, width)``, a grid, ids, or a list without batch."""
    if isinstance(value, Tensor):
        if value.dim() >= 1 + batched + value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _sequences(part, batched=False)
