"""What one generation does: the stages that its own code was seen to run."""

from typing import TYPE_CHECKING

from mmchar.models.specs import ModelSpec
from mmchar.request import Request

if TYPE_CHECKING:
    from mmchar.generation.recording import Stage


def stages(spec: ModelSpec, request: Request | None = None) -> "tuple[Stage, ...]":
    """The stages of one generation, in the order of their first calls; their calls hold tensors on ``meta``.

    Raises
    ------
    ValueError
        A request field that the model does not have or that is outside its limits; a generation that cannot be run.
    """
    full = spec.resolve(request)
    from mmchar.counting.operator_table import count_spec
    from mmchar.generation.programs import is_planned, plan

    if not is_planned(spec, full):
        count_spec(spec, full, {}, "bfloat16")  # where it has no table yet, one run gives both
    return plan(spec, full)
