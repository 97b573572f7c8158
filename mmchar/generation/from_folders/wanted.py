"""What a pipeline's call wants besides a text: images, masks, videos and sound of the right size, by argument name.

What has no default is wanted; so is what the class is named after: an ``Img2Img`` pipeline is given an image.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mmchar.generation.from_folders import standins
from mmchar.request import Request

_SIDE = 512  # pixels, where neither the request nor the pipeline says one
_FRAMES = 16
_SECONDS = 10
_IMAGES = re.compile(r"\w*image(_reference)?|original_image|condtioning_image|hint|depth_map|images|input_images")
_MASKS = re.compile(r"mask|mask_image|control_mask")
_VIDEOS = re.compile(r"(\w+_)?video|conditioning_frames|controls")
_SOUNDS = re.compile(r"(\w+_)?audio|\w*waveforms?")
_TEXTS = re.compile(r"\w*prompt|\w*category")

# The arguments that a class is named after, although they have a default.
_NAMED_AFTER = tuple(
    (re.compile(name), re.compile(arguments))
    for name, arguments in (
        (r"Img2Img|Image(To|2)|I2[IV]|Variation|Pix2Pix|Edit|Kontext|Redux|Layered|CycleDiff", r"images?"),
        (r"Fill|Upscale|SuperResolution|Inpaint|Depth2Img|Refiner|Adapter|UnCLIPImg|PIA|I2VGen", r"image"),
        (r"SuperResolution", r"original_image"),
        (r"ControlNet", r"control_image|control_video|conditioning_frames|image"),
        (r"Control", r"control_image|control_video|conditioning_frames"),
        (r"Inpaint|Fill|DiffEdit", r"mask|mask_image|control_mask|mask_video"),
        (r"VideoToVideo|LatentUpsample|VideoInpaint", r"video"),
        (r"AudioToAudio|AudioInpaint|Audio\dInpaint", r"audio"),
    )
)
_EMBEDDINGS = re.compile(r"(negative_)?image_embeds")


@dataclass
class Wanted:
    """Arguments of a call, and the fields of the request that they follow."""

    arguments: dict[str, Any] = field(default_factory=dict)
    follows: set[str] = field(default_factory=set)


def wanted(pipe: Any, request: Request, given: Mapping[str, Any]) -> Wanted:
    """What a pipeline's call is to be given for a request, by its signature, beyond what is ``given``."""
    takes = inspect.signature(pipe.__call__).parameters
    made = Wanted()
    for name, parameter in takes.items():
        needed = parameter.default is parameter.empty or _is_named_after(pipe, name, takes)
        if needed and name not in given:
            _add(made, pipe, name, takes, request)
    return made


def picture(value: Any) -> Any:
    """The grey picture that ``"640x480"`` (width x height) asks for; any other value as it is."""
    size = re.fullmatch(r"(\d+)x(\d+)", value) if isinstance(value, str) else None
    return standins.image(int(size[2]), int(size[1])) if size else value


def is_picture(name: str) -> bool:
    """Whether an argument is an image, by its name."""
    return bool(_IMAGES.fullmatch(name) or _MASKS.fullmatch(name))


def _is_named_after(pipe: Any, name: str, takes: Mapping[str, Any]) -> bool:
    cls = type(pipe).__name__
    if name == "image" and "control_image" in takes and not re.search(r"Img2Img|Inpaint", cls):
        return False
    return any(kind.search(cls) and arguments.fullmatch(name) for kind, arguments in _NAMED_AFTER)


def _add(made: Wanted, pipe: Any, name: str, takes: Mapping[str, Any], request: Request) -> None:
    many = request.batch or 1
    height, width = sides(pipe, takes, request)
    if _MASKS.fullmatch(name):
        made.arguments[name] = standins.image(height, width).convert("L").point(lambda _: 255)
        made.follows |= {"height", "width"}
    elif name == "hint":
        made.arguments[name] = torch.zeros(many, 3, height, width)
        made.follows |= {"height", "width"}
    elif _VIDEOS.fullmatch(name):
        made.arguments[name] = [standins.image(height, width)] * _frames(takes, request)
        made.follows |= {"height", "width", "frames"}
    elif _EMBEDDINGS.fullmatch(name):
        config = pipe.unet.config
        by_images = config.encoder_hid_dim_type == "image_proj"
        made.arguments[name] = torch.zeros(many, config.encoder_hid_dim if by_images else config.cross_attention_dim)
    elif _IMAGES.fullmatch(name):
        image = standins.image(height, width)
        one = "prompt" in takes or many == 1  # of several prompts too
        made.arguments[name] = [image] if name.endswith("images") else image if one else [image] * many
        made.follows |= {"height", "width"}
    elif _SOUNDS.fullmatch(name):
        rate = getattr(getattr(getattr(pipe, "vae", None), "config", None), "sampling_rate", None) or 16_000
        made.arguments[name] = torch.zeros(many, 2, rate * (request.audio_s or _SECONDS))
        made.follows.add("audio_s")
    elif _TEXTS.fullmatch(name):
        made.arguments[name] = [standins.prompt(request.prompt_tokens)] * many


def sides(pipe: Any, takes: Mapping[str, Any], request: Request) -> tuple[int, int]:
    """Height and width in pixels: as asked, as the call's own default, or as the denoiser was made for."""
    said = [request.height, request.width]
    defaults = [getattr(takes.get(name), "default", None) for name in ("height", "width")]
    own = _own_sides(pipe)
    height, width = (s or (d if isinstance(d, int) else None) or o for s, d, o in zip(said, defaults, own, strict=True))
    return height, width


def _own_sides(pipe: Any) -> tuple[int, int]:
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    size = getattr(getattr(network, "config", None), "sample_size", None)
    scale = getattr(pipe, "vae_scale_factor", None) or 1
    if re.search(r"Upscale|SuperResolution", type(pipe).__name__):
        scale = 1  # the latent has the size of the image that is made larger
    if size is None and isinstance(getattr(pipe, "default_sample_size", None), int):
        size = pipe.default_sample_size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0] * scale), int(size[1] * scale)
    side = int(size * scale) if isinstance(size, int | float) else _SIDE
    return side, side


def _frames(takes: Mapping[str, Any], request: Request) -> int:
    names = ("num_frames", "video_length", "segment_frame_length", "frames")
    defaults = [getattr(takes.get(name), "default", None) for name in names]
    return request.frames or next((many for many in defaults if isinstance(many, int)), _FRAMES)
