"""What the levers do: to a model before it runs, and to each execution of a stage.

Every lever is refused where it cannot be had, before anything is built where that can be known, and what it changed is
counted: nothing is left out silently.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmchar.generation import parts
from mmchar.generation.on_device import realized
from mmchar.generation.recording import Stage
from mmchar.measuring.optimization.cuda_graphs import SETTLE, as_captured, capture, keep_indices
from mmchar.measuring.optimization.ladder import Levers
from mmchar.measuring.timing import Work
from mmchar.models.specs import Model

_QUANTIZERS = {
    "int8-weight-only": "Int8WeightOnlyConfig",
    "int8-dynamic": "Int8DynamicActivationInt8WeightConfig",
    "fp8-weight-only": "Float8WeightOnlyConfig",
    "fp8-dynamic": "Float8DynamicActivationFloat8WeightConfig",
}
_MULTIPLE = 16  # torch._scaled_mm takes fp8 matrices whose sides are multiples of 16; the same ones for every scheme


def apply_levers(model: Model, levers: Levers, plan: Sequence[Stage], *, own: bool) -> tuple[Model, dict[str, Any]]:
    """The model with the levers pulled that change its networks, and by network what was changed, in counts.

    Networks that no stage of the plan runs stay as they are. The others are changed in place if they are our ``own``,
    else they are copied first. A lever that finds nothing to change in any of them is a ValueError.
    """
    if levers.on_graphs:
        keep_indices(model)
    changes = list(_changes(levers))
    if not changes:
        return model, {}
    roles = list(dict.fromkeys(stage.component for stage in plan))
    denoisers = {stage.component for stage in plan if stage.name.startswith(("denoise", "parallel_decode"))}
    networks = dict(model.components)
    if not own:
        networks |= {role: copy.deepcopy(networks[role]) for role in roles}
    done: dict[str, Any] = {role: {} for role in roles}
    for name, change, lacking in changes:
        for role in roles:
            done[role][name] = change(networks[role]) if name != "fused_qkv" or role in denoisers else 0
        if not any(done[role][name] for role in roles):
            raise ValueError(f"{name} is not possible: {lacking} in {', '.join(roles)} of {model.spec.name}")
    return replace(model, components=networks), done


def _changes(levers: Levers) -> Iterator[tuple[str, Callable[[nn.Module], int], str]]:
    """What the levers change in a network: under which name it is counted, how, and why there may be nothing to it."""
    if levers.channels_last:
        yield "channels_last", _channels_last, "there is no 2-D convolution"
    if levers.fused_qkv:
        yield "fused_qkv", _fuse_qkv, "there is no denoiser whose projections the library can fuse"
    if levers.quantization != "none":
        quantize = functools.partial(_quantize, scheme=levers.quantization)
        yield "quantized", quantize, "there is no linear layer whose sides are multiples of 16"
    if levers.execution == "compiled":
        yield "compiled_blocks", _compile_blocks, "the library names no repeated block"


def _channels_last(module: nn.Module) -> int:
    convolutions = [each for each in module.modules() if isinstance(each, nn.Conv2d)]
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


def _quantize(module: nn.Module, scheme: str) -> int:
    import torchao.quantization as torchao

    def fits(layer: nn.Module, _name: str) -> bool:
        if not isinstance(layer, nn.Linear):
            return False
        return layer.in_features % _MULTIPLE == 0 and layer.out_features % _MULTIPLE == 0

    many = sum(fits(layer, "") for layer in module.modules())
    if many:
        # its settings of the compiler would last as long as the process; `compiling` has those that matter
        torchao.quantize_(module, getattr(torchao, _QUANTIZERS[scheme])(set_inductor_config=False), filter_fn=fits)
    return many


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
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


def _compile_blocks(module: nn.Module) -> int:
    blocks = repeated_blocks(module)
    for block in blocks:
        block.compile(dynamic=False)
    return len(blocks)


def with_values(model: Model, stage: Stage) -> Stage:
    """A stage whose arguments have values on the model's device."""
    return realized(stage, model.components[stage.component], device=model.device, dtype=model.dtype)


def preparer(model: Model, stage: Stage, levers: Levers) -> Callable[[], Work]:
    """A function that makes one execution of a stage ready to run, with its inputs, as the levers say.

    Compiled and captured executions keep their KV cache, if they have one, in a static one of the stage's full length.
    A captured execution is captured once; its inputs are always the same.
    """
    from mmchar.measuring.optimization.static_cache import make_static, rewind  # with transformers

    network = model.components[stage.component]
    made = functools.cache(lambda: with_values(model, stage))

    def ready() -> tuple[Any, Work]:
        """The arguments of one execution, with caches of its own, and the work that runs it."""
        one = made()
        args, kwargs = held = one.call.copied()
        if levers.settles:
            make_static(held, room=one.repeats + SETTLE + 1, growing=one.growth.layers if one.growth else None)
        run = one.called(network)

        def work() -> Any:
            return run(*args, **kwargs)

        whole = levers.execution in ("compiled-full", "compiled-graphs")
        return held, parts.answered(network, one.inner, torch.compile(work, dynamic=False) if whole else work)

    @functools.cache
    def captured() -> tuple[Work, Work]:
        """What is replayed, and how its cache is rewound."""
        call, (held, work) = made().call, ready()

        def back() -> Any:
            return rewind(held, (call.args, dict(call.kwargs)))

        with nullcontext() if levers.compiles else as_captured():
            return capture(work, back, model.device), back

    def replayed() -> Work:
        replay, back = captured()
        back()
        return replay

    return replayed if levers.on_graphs else lambda: ready()[1]


@contextmanager
def compiling(levers: Levers) -> Iterator[dict[str, int]]:
    """What ``torch.compile`` did meanwhile: graphs, graph breaks. Too many recompilations are an error, not eager."""
    counts: dict[str, int] = {}
    if not levers.compiles:
        yield counts
        return
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
