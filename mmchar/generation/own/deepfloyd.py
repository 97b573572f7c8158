"""DeepFloyd IF: three of the library's pipelines, one after the other."""

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
)
from torch import Tensor

from mmchar.generation.inputs import Inputs
from mmchar.generation.own.loops import Networks, Steps, encode_prompt, rows_of, steps_each

LATER_GUIDANCE = (4.0, 9.0)  # defaults of the second and the third pipeline in diffusers 0.42.1
_NOT_USED = ("tokenizer", "text_encoder", "safety_checker", "feature_extractor")


class DeepFloydPipeline:
    """An image of 1/16 of the final side, one of 1/4 from it, then a latent upscaler to the whole.

    Each text is encoded once and handed to the library's pipelines. Where guidance is on in the first, it is on in the
    others, with their own scale. The library's code asks tensors for values: on ``meta`` it runs only under `run`.

    **Source**: deep-floyd/IF's README, which has Stable Diffusion's x4 upscaler in place of the unreleased third stage.
    """

    def __init__(self, networks: Networks, inputs: Inputs) -> None:
        self.networks, self.inputs = networks, inputs
        noise = {"beta_schedule": "squaredcos_cap_v2"}
        shared = {**dict.fromkeys(_NOT_USED), "watermarker": None, "requires_safety_checker": False}
        learned = DDPMScheduler(**noise, variance_type="learned_range")
        self.small = IFPipeline(unet=networks["unet_64"], scheduler=learned, **shared)
        self.medium = IFSuperResolutionPipeline(
            unet=networks["unet_256"], scheduler=learned, image_noising_scheduler=DDPMScheduler(**noise), **shared
        )
        self.large = StableDiffusionUpscalePipeline(
            vae=networks["x4_vae"],
            unet=networks["x4_unet"],
            low_res_scheduler=DDPMScheduler(**noise),
            scheduler=DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False),
            **dict.fromkeys(_NOT_USED),
        )
        for pipe in (self.small, self.medium, self.large):
            pipe.set_progress_bar_config(disable=True)

    def __call__(
        self, *, batch: int, prompt_tokens: int, height: int, width: int, steps: Steps, guidance: float
    ) -> Tensor:
        """Images ``(batch, 3, height, width)`` between 0 and 1."""
        text = self._encode("text_encoder", batch, prompt_tokens, guidance)
        x4_text = self._encode("x4_text_encoder", batch, prompt_tokens, guidance)
        second, third = LATER_GUIDANCE if rows_of(guidance) == 2 else (guidance, guidance)
        first, then, last = ({"num_inference_steps": many, "output_type": "pt"} for many in steps_each(steps, 3))
        size = {"height": height // 16, "width": width // 16}
        image = self.small(**text, **size, **first, guidance_scale=guidance).images
        size = {"height": height // 4, "width": width // 4}
        image = self.medium(**text, image=image, **size, **then, guidance_scale=second).images
        image = (image / 2 + 0.5).clamp(0, 1)
        return self.large(**x4_text, image=image, **last, guidance_scale=third).images

    def _encode(self, role: str, batch: int, tokens: int, guidance: float) -> dict[str, Tensor]:
        """A prompt, and with guidance the empty one, as the library's pipelines take them."""
        rows = rows_of(guidance)
        found = encode_prompt(self.networks[role], self.inputs, batch=batch, tokens=tokens, guidance=guidance)
        halves = torch.chunk(found.last_hidden_state, rows)
        return dict(zip(("negative_prompt_embeds", "prompt_embeds")[-rows:], halves, strict=True))
