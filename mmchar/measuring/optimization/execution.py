"""What the levers do: to a model before it runs, and to each execution of a stage.

Every lever is refused where it cannot be had, before anything is built where that can be known, and what it changed is
counted: nothing is left out silently.
"""

import copy
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mmchar.measuring.optimization.cuda_graphs import SETTLE, as_captured, capture, keep_indices
from mmchar.measuring.optimization.ladder import Levers
from mmchar.models.loading import Model

if TYPE_CHECKING:
    from torch import nn

    from mmchar.generation.recording import Stage

Work = Callable[[], Any]
_QUANTIZERS = {
    "int8-weight-only": "Int8WeightOnlyConfig",
    "int8-dynamic": "Int8DynamicActivationInt8WeightConfig",
    "fp8-weight-only": "Float8WeightOnlyConfig",
    "fp8-dynamic": "Float8DynamicActivationFloat8WeightConfig",
}
_FP8_PRODUCTS = (8, 9)  # compute capability from which a GPU multiplies fp8: CUDA programming guide, Ada and Hopper
_MULTIPLE = 16  # torch._scaled_mm takes fp8 matrices whose sides are multiples of 16; the same ones for every scheme


def check_levers(levers: Levers, *, device: str) -> None:
    """Refuse levers that this machine cannot pull, before a model is built.

    Raises
    ------
    ValueError
        With the lever, what it needs, and what is possible instead.
    """
    on_gpu = device.startswith("cuda")
    if levers.on_graphs and not on_gpu:
        raise ValueError(f"execution {levers.execution!r} needs an NVIDIA GPU; on a cpu use eager or compiled")
    if levers.quantization == "none":
        return
    if find_spec("torchao") is None:
        raise ValueError(f"quantization {levers.quantization!r} needs torchao: pip install 'mmchar[quantize]'")
    if levers.quantization == "fp8-dynamic":
        import torch

        if not on_gpu or torch.cuda.get_device_capability(device) < _FP8_PRODUCTS:
            raise ValueError(
                "quantization 'fp8-dynamic' needs a GPU of compute capability 8.9 or newer; use int8-dynamic"
            )


def choose_stages(plan: "Sequence[Stage]", names: Sequence[str] | None, *, model: str) -> "tuple[Stage, ...]":
    """The stages of a plan that are asked for by name, in the plan's order; all where none is named."""
    if names is None:
        return tuple(plan)
    have = [stage.name for stage in plan]
    for name in names:
        if name not in have:
            raise ValueError(f"{model} has no stage {name!r} for this request; it has {', '.join(have)}")
    return tuple(stage for stage in plan if stage.name in names)


def apply_levers(model: Model, levers: Levers, plan: "Sequence[Stage]", *, own: bool) -> tuple[Model, dict[str, Any]]:
    """The model with the levers pulled that change its networks, and by network what was changed, in counts.

    Parameters
    ----------
    plan : sequence of Stage
        What will be measured; networks that no stage runs stay as they are.
    own : bool
        Whether the model may be changed in place; otherwise the networks are copied first.

    Raises
    ------
    ValueError
        A lever that finds nothing to change in any network.
    """
    changes: dict[str, Callable[[nn.Module], int]] = {}
    if levers.channels_last:
        changes["channels_last"] = _channels_last
    if levers.fused_qkv:
        changes["fused_qkv"] = _fuse_qkv
    if levers.quantization != "none":
        changes["quantized"] = lambda module: _quantize(module, levers.quantization)
    if levers.execution == "compiled":
        changes["compiled_blocks"] = _compile_blocks
    if levers.on_graphs:
        keep_indices(model)
    if not changes:
        return model, {}
    roles = list(dict.fromkeys(stage.component for stage in plan))
    denoisers = {stage.component for stage in plan if stage.name.startswith(("denoise", "parallel_decode"))}
    parts = dict(model.components)
    if not own:
        parts |= {role: copy.deepcopy(parts[role]) for role in roles}
    done: dict[str, Any] = {role: {} for role in roles}
    for name, change in changes.items():
        for role in roles:
            done[role][name] = change(parts[role]) if name != "fused_qkv" or role in denoisers else 0
        if not any(done[role][name] for role in roles):
            raise ValueError(f"{name} is not possible: {_NOTHING[name]} in {', '.join(roles)} of {model.spec.name}")
    return replace(model, components=parts), done


_NOTHING = {
    "channels_last": "there is no 2-D convolution",
    "fused_qkv": "there is no denoiser whose projections the library can fuse",
    "quantized": "there is no linear layer whose sides are multiples of 16",
    "compiled_blocks": "the library names no repeated block",
}


def _channels_last(module: "nn.Module") -> int:
    import torch

    convolutions = [each for each in module.modules() if isinstance(each, torch.nn.Conv2d)]
    for each in convolutions:
        each.to(memory_format=torch.channels_last)  # their outputs follow the weights
    return len(convolutions)


def _fuse_qkv(module: Any) -> int:
    if not hasattr(module, "fuse_qkv_projections"):
        return 0
    try:
        module.fuse_qkv_projections()
    except ValueError:  # diffusers: not for attention with added projections
        return 0
    return sum(bool(getattr(each, "fused_projections", False)) for each in module.modules())


def _quantize(module: "nn.Module", scheme: str) -> int:
    import torch
    import torchao.quantization as torchao

    def fits(layer: "nn.Module", _name: str) -> bool:
        if not isinstance(layer, torch.nn.Linear):
            return False
        return layer.in_features % _MULTIPLE == 0 and layer.out_features % _MULTIPLE == 0

    many = sum(fits(layer, "") for layer in module.modules())
    if many:
        # its settings of the compiler would last as long as the process; `compiling` has those that matter
        torchao.quantize_(module, getattr(torchao, _QUANTIZERS[scheme])(set_inductor_config=False), filter_fn=fits)
    return many


def repeated_blocks(module: "nn.Module") -> "list[nn.Module]":
    """The blocks that a network repeats, outermost only, as its library names their classes.

    diffusers: ``_repeated_blocks``, which ``compile_repeated_blocks`` reads; where there are none, and in transformers,
    ``_no_split_modules``.
    """
    names: set[str] = set()
    for part in module.modules():
        names |= set(getattr(part, "_repeated_blocks", None) or getattr(part, "_no_split_modules", None) or ())
    found: list[nn.Module] = []
    inside: set[int] = set()
    for part in module.modules():  # parents come before their children
        if type(part).__name__ in names and id(part) not in inside:
            found.append(part)
            inside |= {id(child) for child in part.modules()}
    return found


def _compile_blocks(module: "nn.Module") -> int:
    blocks = repeated_blocks(module)
    for block in blocks:
        block.compile(dynamic=False)
    return len(blocks)


@dataclass(frozen=True)
class _Ready:
    """One execution: the arguments that it holds, the work, and what the work runs in that is no part of it."""

    held: Any
    work: Work
    around: Callable[[Work], Work] = lambda work: work
    growing: Collection[int] | None = None
    before: Any = None


def _ready(model: Model, stage: "Stage") -> _Ready:
    """An execution of a stage whose arguments have values, with caches of its own."""
    from mmchar.generation import parts

    network = model.components[stage.component]
    args, kwargs = held = stage.call.copied()
    run, growth = stage.called(network), stage.growth
    return _Ready(
        held,
        lambda: run(*args, **kwargs),
        lambda work: parts.answered(network, stage.inner, work),
        growth.layers if growth else None,
        (stage.call.args, dict(stage.call.kwargs)),
    )


def with_values(model: Model, stage: "Stage") -> "Stage":
    """A stage whose arguments have values on the model's device."""
    from mmchar.generation.on_device import realized

    return realized(stage, model.components[stage.component], device=model.device, dtype=model.dtype)


def preparer(model: Model, stage: "Stage", levers: Levers) -> Callable[[], Work]:
    """A function that makes one execution of a stage ready to run, with its inputs, as the levers say.

    Compiled and captured executions keep their KV cache, if they have one, in a static one of the stage's full length.
    A captured execution is captured once; its inputs are always the same.
    """
    from mmchar.measuring.optimization.static_cache import make_static, rewind

    made = functools.cache(lambda: with_values(model, stage))

    def eager() -> _Ready:
        ready = _ready(model, made())
        if levers.compiles or levers.on_graphs:
            make_static(ready.held, room=stage.repeats + SETTLE + 1, growing=ready.growing)
        return ready

    def prepared() -> Work:
        ready = eager()
        return ready.around(ready.work)

    if levers.execution in ("eager", "compiled"):
        return prepared
    import torch

    def compiled() -> Work:
        ready = eager()
        return ready.around(torch.compile(ready.work, dynamic=False))

    if levers.execution == "compiled-full":
        return compiled
    captured: list[tuple[Work, Work]] = []  # what is replayed, and how its cache is rewound

    def replayed() -> Work:
        if not captured:
            ready = eager()

            def back() -> Any:
                return rewind(ready.held, ready.before)

            run = ready.around(torch.compile(ready.work, dynamic=False) if levers.compiles else ready.work)
            with nullcontext() if levers.compiles else as_captured():
                captured.append((capture(run, back, model.device), back))
        replay, back = captured[0]
        back()
        return replay

    return replayed


def settle(levers: Levers, warmup: int) -> int:
    """Untimed executions before the first sample: those asked for, and more where something is compiled or captured."""
    return max(warmup, SETTLE) if levers.compiles or levers.on_graphs else warmup


@contextmanager
def compiling(levers: Levers) -> Iterator[dict[str, int]]:
    """What ``torch.compile`` did meanwhile: graphs, graph breaks. Too many recompilations are an error, not eager."""
    counts: dict[str, int] = {}
    if not levers.compiles:
        yield counts
        return
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    settings = {"recompile_limit": 256, "accumulated_recompile_limit": 4096, "fail_on_recompile_limit_hit": True}
    try:
        with torch._dynamo.config.patch(**settings), _inductor_settings(levers):
            yield counts
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise ValueError(f"execution {levers.execution!r} is not possible: compiled over and over ({error})") from error
    finally:
        torch._dynamo.reset()  # what was compiled holds on to the model
    counts["graphs"] = counters["stats"]["unique_graphs"]
    counts["graph_breaks"] = sum(counters["graph_break"].values())


def _inductor_settings(levers: Levers) -> Any:
    """Inductor's loops on a CPU inside ranges that the profiler sees; what torchao recommends where it quantizes.

    Source of the latter: torchao's ``recommended_inductor_config_setter``. Without it the product of one token with an
    int8 weight is no single loop, and the weight is written out in bfloat16 each time.
    """
    import torch._inductor.config as inductor

    settings = {"cpp.enable_kernel_profile": True}
    if levers.quantization != "none":
        tuned = ("coordinate_descent_tuning", "coordinate_descent_check_all_directions", "force_fuse_int_mm_with_mul")
        settings |= dict.fromkeys(tuned, True)
    return inductor.patch(settings)


def by_kernel_name(levers: Levers) -> bool:
    """Whether time can only be told by kernel: compiled, captured and quantized executions run no eager operators."""
    return levers.execution != "eager" or levers.quantization != "none"
