"""Diffusion models of images that no library generates with: Imagen, Emu (the characterization paper's), and ADM."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from mmchar.generation.inputs import Inputs
from mmchar.generation.own.loops import (
    Networks,
    Steps,
    at_width,
    denoise,
    denoise_latent,
    encode_prompt,
    first_of,
    steps_each,
)


class ImagenPipeline:
    """A cascade in pixels: a small image from noise and text, then larger ones, each beside the one before.

    ``denoisers`` are given from small to large: ``component`` is a denoiser's role, ``divisor`` the final side over its
    own. Noise on the small image (conditioning augmentation) and dynamic thresholding are left out.

    **Source**: Imagen, arXiv 2205.11487, sec. 2.2 to 2.4.
    """

    def __init__(self, networks: Networks, inputs: Inputs, *, denoisers: Sequence[Mapping[str, Any]]) -> None:
        self.networks, self.inputs, self.denoisers = networks, inputs, denoisers
        self.scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")

    def __call__(
        self, *, batch: int, prompt_tokens: int, height: int, width: int, steps: Steps, guidance: float
    ) -> Tensor:
        """Images ``(batch, 3, height, width)``."""
        encoder, image = self.networks["text_encoder"], None
        text = encode_prompt(encoder, self.inputs, batch=batch, tokens=prompt_tokens, guidance=guidance)
        for denoiser, many in zip(self.denoisers, steps_each(steps, len(self.denoisers)), strict=True):
            size = (height // denoiser["divisor"], width // denoiser["divisor"])
            image = denoise(
                self.networks[denoiser["component"]],
                self.inputs.normal(batch, 3, *size),
                scheduler=self.scheduler,
                steps=many,
                guidance=guidance,
                beside=None if image is None else F.interpolate(image, size, mode="bilinear"),
                encoder_hidden_states=text.last_hidden_state,
            )
        assert image is not None, "a cascade without denoisers makes no image"
        return image


class EmuPipeline:
    """Latent diffusion on the tokens of several text encoders, one after the other in one sequence.

    ``context`` holds the roles of the text encoders in the order of their tokens. Tokens narrower than the denoiser's
    text are padded: the projection of CLIP's is left out.

    **Source**: Emu, arXiv 2309.15807, sec. 3.1.
    """

    def __init__(self, networks: Networks, inputs: Inputs, *, context: Sequence[str]) -> None:
        self.inputs, self.encoders = inputs, [networks[role] for role in context]
        self.unet, self.vae = networks["unet"], networks["vae"]
        self.scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    def __call__(
        self, *, batch: int, prompt_tokens: int, height: int, width: int, steps: Steps, guidance: float
    ) -> Tensor:
        """Images ``(batch, 3, height, width)``."""
        text = torch.cat([self._encode(encoder, batch, prompt_tokens, guidance) for encoder in self.encoders], dim=1)
        latent = denoise_latent(
            self.unet,
            self.vae,
            self.inputs,
            batch=batch,
            size=(height, width),
            scheduler=self.scheduler,
            steps=steps,
            guidance=guidance,
            encoder_hidden_states=text,
        )
        return self.vae.decode(latent).sample

    def _encode(self, encoder: nn.Module, batch: int, tokens: int, guidance: float) -> Tensor:
        """One encoder's tokens at the width of the denoiser's text, ``(rows * batch, tokens, width)``."""
        found = encode_prompt(encoder, self.inputs, batch=batch, tokens=tokens, guidance=guidance)
        return at_width(first_of(found), self.unet.config.cross_attention_dim)


class ADMPipeline:
    """Denoise images of given classes in pixels; the denoiser says its variance too.

    Guidance by a separate classifier is left out.

    **Source**: ADM, arXiv 2105.05233, sec. 3 and 4; openai/guided-diffusion ``scripts/image_sample.py``.
    """

    def __init__(self, networks: Networks, inputs: Inputs) -> None:
        self.unet, self.inputs = networks["unet"], inputs
        learned = self.unet.config.out_channels == 2 * self.unet.config.in_channels
        self.scheduler = DDPMScheduler(variance_type="learned_range" if learned else "fixed_small")

    def __call__(self, *, batch: int, height: int, width: int, steps: Steps) -> Tensor:
        """Images ``(batch, 3, height, width)``."""
        noise = self.inputs.normal(batch, self.unet.config.in_channels, height, width)
        labels = self.inputs.tokens(batch, vocabulary=self.unet.config.num_class_embeds)
        return denoise(self.unet, noise, scheduler=self.scheduler, steps=steps, class_labels=labels)
