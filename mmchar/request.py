"""What one generation is asked for: sizes, steps and guidance, validated before any heavy work."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from msgspec import Meta, Struct

from mmchar.faults import check_fields, did_you_mean

UNSET: Any = None  # the model's own default, filled in by resolve
Positive = Annotated[int, Meta(ge=1, description="a whole number of 1 or more")]
Scale = Annotated[float, Meta(ge=0, le=1e300, description="a number of 0 or more; 1 turns guidance off")]
Steps = Annotated[Positive | tuple[Positive, ...], Meta(description="a whole number of 1 or more")]


class Limit(Struct, frozen=True, forbid_unknown_fields=True):
    """What a model takes for a field: from ``min`` to ``max``, in steps of ``multiple_of``, or ``a*k + b``."""

    min: int = 1
    max: int | None = None
    multiple_of: Positive = 1
    of_form: tuple[Positive, int] | None = None


@dataclass(frozen=True)
class Request:
    """One generation; ``None`` stands for the model's own default. ValueError for a field that is no positive number.

    - ``batch``: images, videos or prompts generated together.
    - ``prompt_tokens``: text tokens per prompt; items and actions of a recommender's history.
    - ``images``: images in one prompt, all of one size, of a model that writes about images.
    - ``height``, ``width``: size of the final image or video in pixels.
    - ``frames``: frames of the final video.
    - ``steps``: denoising or parallel-decoding steps; one number, or one per denoiser in the order of the stages.
    - ``guidance``: guidance scale; above 1 classifier-free guidance runs, which doubles the batch.
    - ``new_tokens``: tokens generated autoregressively.
    - ``classes``: classes of a zero-shot classifier, each a prompt of its own.
    - ``candidates``: items that a recommender ranks.
    - ``beams``: beams of a beam search; 1 is greedy.
    - ``audio_s``: length of the speech that goes in, in whole seconds.
    """

    batch: Positive = UNSET
    prompt_tokens: Positive = UNSET
    images: Positive = UNSET
    height: Positive = UNSET
    width: Positive = UNSET
    frames: Positive = UNSET
    steps: Steps = UNSET
    guidance: Scale = UNSET
    new_tokens: Positive = UNSET
    classes: Positive = UNSET
    candidates: Positive = UNSET
    beams: Positive = UNSET
    audio_s: Positive = UNSET

    def __post_init__(self) -> None:
        if isinstance(self.steps, list):
            object.__setattr__(self, "steps", tuple(self.steps))
        if self.steps == ():
            raise ValueError("steps is an empty list; give one number, or one per denoiser, e.g. 256,128,32")
        check_fields(self)

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs, i.e. every denoising step sees twice the batch."""
        return self.guidance is not None and self.guidance > 1

    def given(self) -> dict[str, Any]:
        """The fields that are set."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


FIELDS = tuple(f.name for f in fields(Request))


def resolve(
    request: Request | None, *, model: str, defaults: Mapping[str, Any], limits: Mapping[str, Limit]
) -> Request:
    """Fill a request with a model's defaults and check it against the model's limits.

    Parameters
    ----------
    defaults : mapping
        Default of every request field that the model has; other fields are refused.
    limits : mapping
        Of a field, or of a sum of fields, ``"a+b"``, each perhaps so many times: ``"a+576*b"``.

    Raises ValueError for a field that the model does not have, or a value outside its limits.
    """
    asked = (request or Request()).given()
    for name in asked:
        if name not in defaults:
            raise ValueError(f"{model} takes no {name!r}; its request fields are {', '.join(defaults)}")
    full = replace(Request(**defaults), **asked)
    _check_steps(full, model, defaults)
    for key, limit in limits.items():
        _check_limit(model, key, sum(times * getattr(full, field) for field, times in terms(key).items()), limit)
    return full


def terms(key: str) -> dict[str, int]:
    """What a limit is of: how many times each field, ``{"a": 1, "b": 576}`` of ``"a+576*b"``.

    Raises ValueError for a factor that is no whole number.
    """
    parts = [part.rpartition("*") for part in key.split("+")]
    for times, _, _ in parts:
        if times and not times.isdecimal():
            raise ValueError(f"limit {key!r}: {times!r} is not a whole number")
    return {field: int(times or 1) for times, _, field in parts}


def from_mapping(values: Mapping[str, Any]) -> Request:
    """A Request from plain values; an unknown name is refused with the nearest valid one."""
    for name in values:
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS)
            raise ValueError(f"unknown request field {name!r}; {hint}fields are {', '.join(FIELDS)}")
    return Request(**values)


def _check_steps(request: Request, model: str, defaults: Mapping[str, Any]) -> None:
    default = defaults.get("steps")
    many = len(default) if isinstance(default, list | tuple) else 1
    if isinstance(request.steps, tuple) and len(request.steps) != many:
        want = f"{many} numbers, one per denoiser" if many > 1 else "one number"
        raise ValueError(f"steps={','.join(map(str, request.steps))} does not fit {model}; give {want}")


def _check_limit(model: str, key: str, value: int, limit: Limit) -> None:
    low, high = limit.min, limit.max
    if value < low or (high is not None and value > high):
        reach = f"from {low} to {high}" if high is not None else f"at least {low}"
        raise ValueError(f"{key}={value} is outside the reach of {model}; it takes {reach}")
    step, offset = limit.of_form or (limit.multiple_of, 0)
    if (value - offset) % step:
        want = f"a multiple of {step}" if not offset else f"{step}k+{offset}"
        below = (value - offset) // step * step + offset
        near = [n for n in (below, below + step) if n >= low and (high is None or n <= high)]
        raise ValueError(f"{key}={value} does not fit {model}; it must be {want}, e.g. {' or '.join(map(str, near))}")
