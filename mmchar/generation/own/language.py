"""Models around a language model that no library generates with: LLaVA v1 and NExT-GPT."""

from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from mmchar.generation.inputs import Inputs
from mmchar.generation.own.loops import Networks, Steps, denoise_latent, embed_prompt, rows_of


class LinearAdaptorPipeline:
    """See images through an encoder and one linear layer, then answer a question about them.

    ``image_tokens`` says what an image becomes: a token per patch (``"patches"``), or ``"one"`` for the whole.
    ``generate()`` is the language model's own; on ``meta`` it runs only under `run`.

    **Source**: LLaVA, arXiv 2304.08485, sec. 4.1; here the features after the encoder's last layer.
    """

    def __init__(self, networks: Networks, inputs: Inputs, *, image_tokens: str = "patches") -> None:
        self.networks, self.inputs, self.whole = networks, inputs, image_tokens == "one"

    def __call__(self, *, batch: int, prompt_tokens: int, new_tokens: int, images: int = 1) -> Tensor:
        """Ids of answers, ``(batch, new_tokens)``."""
        return self.answer(batch, images, prompt_tokens, new_tokens).sequences

    def answer(self, batch: int, images: int, prompt_tokens: int, new_tokens: int, **more: Any) -> Any:
        """What ``generate()`` says after the images and a prompt: always ``new_tokens`` tokens."""
        lm = self.networks["lm"]
        text = embed_prompt(lm, self.inputs, batch=batch, tokens=prompt_tokens)
        return lm.generate(
            inputs_embeds=torch.cat([self._see(batch, images), text], dim=1),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            **more,
        )

    def _see(self, batch: int, images: int) -> Tensor:
        """Images as tokens of the language model, ``(batch, images * image tokens, width)``."""
        encoder = self.networks["image_encoder"]
        side, channels = encoder.config.image_size, encoder.config.num_channels
        found = encoder(self.inputs.normal(batch * images, channels, side, side))
        features = found.image_embeds[:, None] if self.whole else found.last_hidden_state[:, 1:]  # no class token
        return self.networks["adaptor"](features).unflatten(0, (batch, images)).flatten(1, 2)


class NextGPTPipeline:
    """Answer images and a prompt with text that ends in signal tokens, which drive a diffusion model.

    The states that the ``signal_tokens`` last tokens came from are projected to the text of the denoiser; nothing
    stands for the empty prompt of guidance.

    **Source**: NExT-GPT, arXiv 2309.05519, sec. 3 and 4; NExT-GPT/NExT-GPT ``code/model/anyToImageVideoAudio.py``.
    """

    def __init__(self, networks: Networks, inputs: Inputs, *, signal_tokens: int, image_tokens: str) -> None:
        self.networks, self.inputs, self.signal_tokens = networks, inputs, signal_tokens
        self.reader = LinearAdaptorPipeline(networks, inputs, image_tokens=image_tokens)
        self.scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    def __call__(
        self,
        *,
        batch: int,
        prompt_tokens: int,
        new_tokens: int,
        height: int,
        width: int,
        steps: Steps,
        guidance: float,
        images: int = 1,
        frames: int | None = None,
    ) -> Tensor:
        """Images ``(batch, 3, height, width)``, or videos ``(batch, 3, frames, height, width)``."""
        said = self.reader.answer(batch, images, prompt_tokens, new_tokens, output_hidden_states=True)
        signal = [step[-1][:, -1:] for step in said.hidden_states[-self.signal_tokens :]]  # of the last layer
        text = self.networks["output_projector"](torch.cat(signal, dim=1))  # [b, queries, width]
        vae = self.networks["vae"]
        latent = denoise_latent(
            self.networks["unet"],
            vae,
            self.inputs,
            batch=batch,
            size=(frames, height, width) if frames else (height, width),
            scheduler=self.scheduler,
            steps=steps,
            guidance=guidance,
            encoder_hidden_states=text if rows_of(guidance) == 1 else torch.cat([torch.zeros_like(text), text]),
        )
        if not frames:
            return vae.decode(latent).sample
        return torch.stack([vae.decode(frame).sample for frame in latent.unbind(2)], dim=2)
