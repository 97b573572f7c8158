"""A generation's network calls on a device, with inputs to time them with.

- A model of the zoo, or a name, has random weights and a stand-in prompt: no real inputs. Its calls were seen on
  ``meta``, and `realized` makes their arguments up. What is timed is then exactly what was counted, and only the
  networks that are asked for are built.
- An object of the user's own has weights and inputs that may matter (which experts are chosen, what a mask hides).
  `record_on_device` watches its own code run: each call of a signature is executed once, with its real arguments kept.

Both go through `realized`: kernels run faster on zeros than on numbers.
"""

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmchar.generation.recording import Call, Recording, Stage, Subject
from mmchar.generation.run import recording_of
from mmchar.generation.structure import as_it_is, mapped, tensors
from mmchar.generation.watch import Execution, Watch
from mmchar.tracing.known_values import known

PLANNED = torch.bfloat16  # the number type that generations are planned in, on ``meta``: the model's own
_SETTING = re.compile(r"mask|time|ids|sigma|guidance|scale|size|length")  # may be the same everywhere on purpose
_MARKS = ("_token_id", "_token_index")  # how configurations name the token ids that stand for no text
_UNKNOWN = 1000  # unknown whole numbers are below, and in the reach of every table: diffusion times, places


def in_type(stage: Stage, dtype: str) -> Stage:
    """A planned stage for networks on ``meta`` of another number type."""

    def cast(_path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype != PLANNED:
            return leaf
        made = torch.empty_strided(leaf.shape, leaf.stride(), dtype=getattr(torch, dtype), device="meta")
        if hasattr(leaf, "known"):
            made.known = leaf.known.to(made.dtype)
        return made

    args, kwargs = stage.call.copied(cast)
    inner = mapped(dict(stage.inner), cast)
    return replace(stage, call=Call(args, kwargs), inner=inner)


def _cloned(_path: Any, leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


ON_DEVICE = Execution(as_it_is, as_it_is, kept=_cloned)


def record_on_device(subject: Subject) -> Recording:
    """The stages of a generation with the real arguments of their calls; fifty steps cost one execution.

    As `run.record`, with networks on their device, and without the rows of what ran outside them, which is timed as a
    whole.
    """
    watch = Watch(subject.networks, ON_DEVICE)
    with torch.inference_mode(), watch.catching():
        output = subject.work()
    return recording_of(watch, subject, output, [])


def realized(stage: Stage, network: nn.Module, *, device: str, dtype: str, seed: int = 0) -> Stage:
    """The stage with arguments to run on a device: those that have no values are made up, the others stay.

    - Real numbers that nobody knows, or that are not finite or all the same (what random weights or an empty input
      give), are normal noise; a mask, a time or a scale may be all the same.
    - Whole numbers that nobody knows are random below the vocabulary, a mask hides nothing. Token ids that are all the
      same, as of a prompt of one word, are random too: a mixture of experts would send them all to the same ones.

    The stage is at the step that is wanted, on ``meta`` as planned in bfloat16, or as recorded on the device; one that
    was planned takes ``dtype``, the network's number type. The network's configuration tells the vocabulary.
    """
    make = _Maker(network, device, dtype, seed)
    if not any(tensor.is_meta for tensor in tensors((stage.call.args, dict(stage.call.kwargs), dict(stage.inner)))):
        make.types = {}  # nothing was planned
    call = Call(*stage.call.copied(make))
    return replace(stage, call=call, inner=mapped(dict(stage.inner), make))


class _Maker:
    """Makes an argument's tensor, by its place in the call and what is known of it."""

    def __init__(self, network: nn.Module, device: str, dtype: str, seed: int) -> None:
        self.types = {PLANNED: getattr(torch, dtype)}
        self._device = torch.device(device)
        config: Any = getattr(network, "config", None)
        self._config = config.get_text_config() if hasattr(config, "get_text_config") else config
        tables = [part.num_embeddings for part in network.modules() if isinstance(part, nn.Embedding)]
        self._least = min([*tables, _UNKNOWN])
        self._vocabulary = getattr(self._config, "vocab_size", None) or self._least
        self._random = torch.Generator(self._device).manual_seed(seed)

    def __call__(self, path: Any, leaf: Any) -> Any:
        if isinstance(leaf, torch.dtype):
            return self.types.get(leaf, leaf)
        if isinstance(leaf, torch.device):
            return self._device if leaf.type == "meta" else leaf
        if not isinstance(leaf, Tensor):
            return leaf
        name = next((part for part in reversed(path) if isinstance(part, str)), "")
        values = known(leaf)
        if values is None:
            return self._made(name, leaf)
        if values.is_floating_point() and _says_nothing(name, values):
            return self._noise(leaf)
        if name.endswith("input_ids") and values.numel() > 1 and _is_constant(values):
            return self._text(leaf, plain=int(values.flatten()[0]))
        return self._empty(leaf).copy_(values) if leaf.is_meta else leaf

    def _made(self, name: str, leaf: Tensor) -> Tensor:
        if leaf.is_floating_point() or leaf.is_complex():
            return self._noise(leaf)
        if leaf.dtype == torch.bool or "mask" in name:
            return self._empty(leaf).fill_(1)
        if name.endswith("input_ids"):
            return self._text(leaf, plain=self._least - 1)
        return self._empty(leaf).random_(0, self._least, generator=self._random)

    def _noise(self, leaf: Tensor) -> Tensor:
        return self._empty(leaf).normal_(generator=self._random)

    def _text(self, leaf: Tensor, *, plain: int) -> Tensor:
        """Token ids, ``plain`` in the place of those that the configuration names, which stand for no text."""
        ids = self._empty(leaf).random_(0, self._vocabulary, generator=self._random)
        named = [value for name, value in vars(self._config or object).items() if name.endswith(_MARKS)]
        marks = [value for value in named if isinstance(value, int)]
        return ids.masked_fill_(torch.isin(ids, ids.new_tensor(marks)), plain)

    def _empty(self, leaf: Tensor) -> Tensor:
        """Room of a tensor's shape and layout, in its number type or the network's."""
        return torch.empty_like(leaf, device=self._device, dtype=self.types.get(leaf.dtype, leaf.dtype))


def _says_nothing(name: str, values: Tensor) -> bool:
    """Whether real numbers are none that kernels should be timed with: not finite, or all the same by accident."""
    if values.dim() < 2 or _SETTING.search(name):
        return False
    return _is_constant(values) or not bool(torch.isfinite(values).all())


def _is_constant(values: Tensor) -> bool:
    return values.numel() > 1 and bool((values == values.flatten()[0]).all())
