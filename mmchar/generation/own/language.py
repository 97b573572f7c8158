"""Models around a language model that no library generates with: LLaVA v1 and NExT-GPT."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from mmchar.generation.inputs import Inputs
from mmchar.generation.own.loops import denoise, rows_of, steps_each


class LinearAdaptorPipeline:
    """See an image through an encoder and one linear layer, then answer a question about it.

    ``generate()`` is the language model's own; on ``meta`` it runs only under `run`.

    **Source**: LLaVA, arXiv 2304.08485, sec. 4.1; here the features after the encoder's last layer.

    - Networks: ``image_encoder``, ``adaptor`` and ``lm``.
    - ``image_tokens``: tokens that an image becomes: one per patch, or one for the whole.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], inputs: Inputs, *, image_tokens: str = "patches", **_: Any
    ) -> None:
        self.networks, self.inputs, self.whole = networks, inputs, image_tokens == "one"

    def __call__(self, *, batch: int, prompt_tokens: int, new_tokens: int) -> Tensor:
        """Ids of answers, ``(batch, new_tokens)``."""
        return self.answer(batch, prompt_tokens, new_tokens).sequences

    def answer(self, batch: int, prompt_tokens: int, new_tokens: int, **more: Any) -> Any:
        """What ``generate()`` says after the image and a prompt: always ``new_tokens`` tokens."""
        lm = self.networks["lm"]
        ids = self.inputs.tokens(batch, prompt_tokens, vocabulary=lm.config.vocab_size)
        text = F.embedding(ids, lm.get_input_embeddings().weight)
        return lm.generate(
            inputs_embeds=torch.cat([self._see(batch), text], dim=1),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            **more,
        )

    def _see(self, batch: int) -> Tensor:
        """Images as tokens of the language model, ``(batch, image tokens, width)``."""
        vision = self.networks["image_encoder"].config
        found = self.networks["image_encoder"](
            self.inputs.normal(batch, vision.num_channels, vision.image_size, vision.image_size)
        )
        features = found.image_embeds[:, None] if self.whole else found.last_hidden_state[:, 1:]  # no class token
        return self.networks["adaptor"](features)


class NextGPTPipeline:
    """Answer an image and a prompt with text that ends in signal tokens, which drive a diffusion model.

    The states that the signal tokens came from are projected to the text of the denoiser; nothing stands for the empty
    prompt of guidance.

    **Source**: NExT-GPT, arXiv 2309.05519, sec. 3 and 4; NExT-GPT/NExT-GPT ``code/model/anyToImageVideoAudio.py``.

    - Networks: ``image_encoder``, ``adaptor``, ``lm``, ``output_projector``, ``unet`` and ``vae``.
    - ``signal_tokens``: tokens at the end of an answer that stand for what to draw.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], inputs: Inputs, *, signal_tokens: int, image_tokens: str, **_: Any
    ) -> None:
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
        steps: int | Sequence[int],
        guidance: float,
        frames: int | None = None,
    ) -> Tensor:
        """Images ``(batch, 3, height, width)``, or videos ``(batch, 3, frames, height, width)``."""
        said = self.reader.answer(batch, prompt_tokens, new_tokens, output_hidden_states=True)
        signal = [step[-1][:, -1:] for step in said.hidden_states[-self.signal_tokens :]]  # of the last layer
        text = self.networks["output_projector"](torch.cat(signal, dim=1))  # [b, queries, width]
        if rows_of(guidance) == 2:
            text = torch.cat([torch.zeros_like(text), text])
        vae, unet = self.networks["vae"], self.networks["unet"]
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        shape = [*([frames] if frames else []), height // scale, width // scale]
        latent = denoise(
            unet,
            self.inputs.normal(batch, unet.config.in_channels, *shape),
            scheduler=self.scheduler,
            steps=steps_each(steps, 1)[0],
            guidance=guidance,
            told={"encoder_hidden_states": text},
        )
        latent = latent / vae.config.scaling_factor
        if not frames:
            return vae.decode(latent).sample
        return torch.stack([vae.decode(frame).sample for frame in latent.unbind(2)], dim=2)
