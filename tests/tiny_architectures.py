"""Real runs of transformers' architectures at tiny widths, counted by torch's own `FlopCounterMode`: a ground truth.

`architectures/*.json` says what is built, what it is given and what it does. Nothing here uses mmchar. An entry has

- ``class`` and ``config``: a class of transformers and the arguments of its configuration;
- ``inputs``: a tensor per argument, see `_tensor`;
- ``generate``: ``prompt_tokens`` in ``input_ids`` (0 where there are none) and ``new_tokens`` made one after the
  other, with ``options`` of `generate` where the usual ones do not fit (null takes one away); or null for one forward;
- ``generation_config``: settings that a published checkpoint brings along and a configuration does not;
- ``lacks``: what the counter has no formula for, or leaves out, in words;
- ``note``: what else is unusual about the run;
- ``by_submodule``: true where several networks take turns, so that `measured_flop` tells their calls apart.

``architectures/unsupported.json`` has the reasons why others are left out.
"""

import json
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parent / "architectures"
ORDINARY = (10, 90)  # token ids drawn at random; the placeholders of all entries lie outside
# Operators that multiply matrices or transform signals, for which the counter has no formula: it counts them as 0.
_UNKNOWN = {
    *("_grouped_mm", "mv", "addmv", "dot", "vdot", "addr", "addbmm", "_cdist_forward", "_euclidean_dist", "_trilinear"),
    *("linalg_solve_triangular", "_fft_r2c", "_fft_c2r", "_fft_c2c"),
    *("lstm", "gru", "mkldnn_rnn_layer", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_transformer_encoder_layer_fwd", "_native_multi_head_attention"),
}


@dataclass(frozen=True)
class Run:
    """What one real run did.

    Attributes
    ----------
    flop : int
        Of everything the counter knows; one multiply-add is 2.
    calls : dict
        Calls of the outermost modules, by their name inside the model; "" is the model itself.
    unknown : tuple of str
        Operators that ran and that the counter took for 0 though they multiply matrices or transform signals.
    """

    flop: int
    calls: dict[str, int]
    unknown: tuple[str, ...]


@cache
def _entries() -> dict[str, dict[str, Any]]:
    files = sorted(path for path in FOLDER.glob("*.json") if path.stem != "unsupported")
    return {name: entry for path in files for name, entry in json.loads(path.read_text()).items()}


def names() -> list[str]:
    """Every architecture that runs."""
    return list(_entries())


def unsupported() -> dict[str, str]:
    """Architectures that do not run here, each with the reason in one line."""
    return json.loads((FOLDER / "unsupported.json").read_text())


def entry(name: str) -> dict[str, Any]:
    """What the JSON says of one architecture."""
    return _entries()[name]


def build(name: str, device: str = "cpu") -> nn.Module:
    """The model with random float32 weights, the same ones every time, ready to run and not to train.

    Each network inside takes the library's own choice of attention: "sdpa" where it has that, else "eager". Experts
    run one by one, on their own tokens only.
    """
    spec = entry(name)
    kind = getattr(transformers, spec["class"])
    config = kind.config_class(**deepcopy(spec["config"]))  # configurations change what they are given
    torch.manual_seed(0)
    with torch.device(device):
        model = kind._from_config(config, dtype=torch.float32, experts_implementation="eager")
    return model.to(device).eval().requires_grad_(False)  # moved too: some parameters are made on the CPU in any case


def inputs(name: str) -> dict[str, Tensor]:
    """The tensors that ``generate`` or ``forward`` is given, on the CPU, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return {key: _tensor(spec, generator) for key, spec in entry(name)["inputs"].items()}


def _tensor(spec: dict[str, Any], generator: torch.Generator) -> Tensor:
    """A tensor as one of these describes it.

    - ``{"ids": shape}``: random ordinary tokens;
    - ``{"normal": shape}``: standard normal numbers;
    - ``{"full": shape, "value": 1, "dtype": "int64"}``: one number everywhere;
    - ``{"value": [[1, 4, 6]], "dtype": "int64"}``: these numbers.

    With ``"runs": [[first, count, number], ...]`` parts of the last dimension are overwritten, as by a special token.
    """
    tensor = _drawn(spec, generator)
    for first, count, number in spec.get("runs", []):
        tensor[..., first : first + count] = number
    return tensor


def _drawn(spec: dict[str, Any], generator: torch.Generator) -> Tensor:
    dtype = getattr(torch, spec.get("dtype", "int64"))
    if "ids" in spec:
        return torch.randint(*ORDINARY, spec["ids"], generator=generator)
    if "normal" in spec:
        return torch.randn(spec["normal"], generator=generator)
    if "full" in spec:
        return torch.full(spec["full"], spec["value"], dtype=dtype)
    return torch.tensor(spec["value"], dtype=dtype)


def generate_options(name: str) -> dict[str, Any]:
    """What ``generate`` is called with besides the inputs: greedy, and exactly as many tokens as the entry says."""
    asked = entry(name)["generate"]
    usual = {"max_new_tokens": asked["new_tokens"], "min_new_tokens": asked["new_tokens"]}
    options = {**usual, "do_sample": False, "pad_token_id": 0, **asked.get("options", {})}
    return {key: value for key, value in options.items() if value is not None}


def execute(name: str, model: nn.Module, given: dict[str, Tensor]) -> Any:
    """Run ``generate`` or ``forward`` once, as the entry says, and return what it returns.

    The generator is seeded, for models that draw noise in their forward.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        if entry(name)["generate"] is None:
            return model(**given)
        _prepare(model, entry(name).get("generation_config", {}))
        return model.generate(**given, **generate_options(name))


def _prepare(model: nn.Module, settings: dict[str, Any]) -> None:
    """Take the end-of-sequence token away from the model and from those inside it; then set what the entry asks for."""
    for module in model.modules():
        if isinstance(own := getattr(module, "generation_config", None), transformers.GenerationConfig):
            own.eos_token_id = None
    for key, value in settings.items():
        setattr(model.generation_config, key, deepcopy(value))


@cache
def run(name: str) -> Run:
    """Run the architecture for real on the CPU.

    Attention takes the math path and an LSTM torch's own, not oneDNN's: the counter knows the products in them.
    """
    model, given = build(name), inputs(name)
    calls = _count_outermost(model)
    counter, unknown = FlopCounterMode(display=False), _Unknown()
    with sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False), counter, unknown:
        execute(name, model, given)
    return Run(counter.get_total_flops(), dict(calls), tuple(sorted(unknown.seen)))


def measured_flop(name: str) -> tuple[int, int | dict[str, int]]:
    """FLOPs of a real run, and how often the model's forward was called.

    Returns
    -------
    flop : int
        One multiply-add is 2.
    calls : int or dict
        Top-level calls of the model's own forward; where several networks take turns, calls by sub-module.
    """
    done = run(name)
    return done.flop, done.calls if entry(name).get("by_submodule") else done.calls[""]


class _Unknown(TorchDispatchMode):
    """Collects the operators that the counter takes for 0 by mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        packet = getattr(func, "overloadpacket", func)
        operator = getattr(packet, "__name__", str(packet))
        if operator in _UNKNOWN:
            self.seen.add(operator)
        return func(*args, **(kwargs or {}))


def _count_outermost(root: nn.Module) -> Counter[str]:
    """Calls, by name, of the modules of ``root`` that run inside no other one; counted from now on.

    Each ``forward`` is wrapped, because some models call it directly, where hooks see nothing.
    """
    calls: Counter[str] = Counter()
    running: list[str] = []

    def counted(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not running:
                calls[name] += 1
            running.append(name)
            try:
                return forward(*args, **kwargs)
            finally:
                running.pop()

        return call

    for name, module in root.named_modules():
        module.forward = counted(name, module.forward)
    return calls
