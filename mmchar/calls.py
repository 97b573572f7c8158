"""How one execution of a component is called, with inputs of the right shapes, on meta or on real tensors.

Each call, in the module of its group, takes the component, an :class:`Inputs` and the stage's sizes, makes the inputs
(and a filled KV cache where there is one), and returns the work: a function without arguments that runs one execution.
What is made outside the work is neither counted nor timed.
"""

from mmchar import audio_calls, core_calls, diffusion_calls, language_calls, speech_calls, video_calls
from mmchar.inputs import Inputs, Work
from mmchar.models import Model
from mmchar.stage import Stage

GROUPS = (core_calls, diffusion_calls, video_calls, audio_calls, language_calls, speech_calls)


def prepare(model: Model, stage: Stage) -> Work:
    """One execution of a stage, ready to run: its component called with inputs of the stage's sizes.

    Raises
    ------
    ValueError
        The stage names a call that no group has.
    """
    for group in GROUPS:
        call = vars(group).get(str(stage.call))  # a model file may name it: only what the group itself defines
        if callable(call) and getattr(call, "__module__", "") == group.__name__ and not stage.call.startswith("_"):
            make = Inputs(model.device, model.dtype)
            return call(model.components[stage.component], make, **stage.sizes)
    raise ValueError(f"{model.spec.name}: stage {stage.name!r} asks for an unknown call {stage.call!r}")
