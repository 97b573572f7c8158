"""What can be chosen on the page to play with: models, GPUs, batches, and the sizes and frames that a model takes."""

from collections.abc import Iterator
from itertools import product

from mmchar.models.specs import ModelSpec
from mmchar.request import Limit, Request

MODELS = (
    *("stable-diffusion-1.5", "sdxl-base-1.0", "pixart-sigma-1024", "sana-1.6b-1024", "sd3.5-large", "flux.1-dev"),
    *("qwen-image", "flux.2-dev", "z-image-turbo", "amused-512", "animatediff-v1.5.2", "svd-xt"),
    *("cogvideox-5b", "ltx-video-2b", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "hunyuanvideo"),
)
GPUS = ("a100-80gb", "h100-sxm", "h200-sxm", "b200", "mi300x", "l40s", "rtx-4090", "rtx-5090")
BATCHES = (1, 2, 4, 8)
IMAGE_SCALES, VIDEO_SCALES, FRAME_SCALES = (0.5, 1.0, 1.5), (0.5, 1.0), (0.5, 1.0)  # of a model's default


def requests(spec: ModelSpec) -> Iterator[Request]:
    """The requests at batch 1 that can be chosen: sizes and frames around the default, as the model takes them."""
    frames = spec.request.get("frames")
    lengths = {_nearest(frames * scale, spec.limits.get("frames")) for scale in FRAME_SCALES} if frames else {None}
    seen = set()
    for scale, many in product(VIDEO_SCALES if frames else IMAGE_SCALES, sorted(lengths, key=lambda n: n or 0)):
        size = {side: _nearest(spec.request[side] * scale, spec.limits.get(side)) for side in ("height", "width")}
        given = tuple((size | {"frames": many} if many else size).items())
        if given not in seen and _takes(spec, request := Request(**dict(given))):
            seen.add(given)
            yield request


def one_number_of_steps(spec: ModelSpec) -> bool:
    """Whether a model's steps are one number, which can be chosen; a cascade has one for each denoiser."""
    return isinstance(spec.request.get("steps"), int)


def _nearest(value: float, limit: Limit | None) -> int:
    """The value that a limit allows next to one."""
    limit = limit or Limit()
    step, offset = limit.of_form or (limit.multiple_of, 0)
    return max(round((value - offset) / step) * step + offset, limit.min)


def _takes(spec: ModelSpec, request: Request) -> bool:
    try:
        spec.resolve(request)
    except ValueError:
        return False
    return True
