"""Diffusion models of video that no library generates with: Make-A-Video and Open-Sora 2."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mmchar.generation.inputs import Inputs
from mmchar.generation.own.loops import Networks, Steps, denoise, encode_prompt, guided, rows_of, steps_each


class MakeAVideoPipeline:
    """An image embedding, a few frames from it, the frames between them, then every frame at two larger sizes.

    The embedding's own way into the denoisers is left out: they see the text. Guidance is in the embedding and in the
    first frames only. The last size is made frame by frame. ``frame_skip`` is from one key frame to the next; the
    divisors are the final side over that of the key frames, and over that of the first super-resolution.

    **Source**: Make-A-Video, arXiv 2209.14792, sec. 3.
    """

    def __init__(
        self, networks: Networks, inputs: Inputs, *, frame_skip: int, keyframe_divisor: int, superres_divisor: int
    ) -> None:
        self.networks, self.inputs = networks, inputs
        self.frame_skip, self.divisors = frame_skip, (keyframe_divisor, superres_divisor)
        self.scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
        self.prior_scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")

    def __call__(
        self, *, batch: int, prompt_tokens: int, height: int, width: int, frames: int, steps: Steps, guidance: float
    ) -> Tensor:
        """Videos ``(batch, 3, frames, height, width)``."""
        prior, first, between, small, large = steps_each(steps, 5)
        low, middle = ((height // divisor, width // divisor) for divisor in self.divisors)
        encoder = self.networks["text_encoder"]
        text = encode_prompt(encoder, self.inputs, batch=batch, tokens=prompt_tokens, guidance=guidance)
        both, prompt = text.last_hidden_state, text.last_hidden_state[-batch:]
        self._image_embedding(text, batch, steps=prior, guidance=guidance)
        many = (frames - 1) // self.frame_skip + 1
        keys = self._clip("decoder_t", (batch, 3, many, *low), both, steps=first, guidance=guidance)
        video = self._clip("interp", (batch, 3, frames, *low), prompt, steps=between, beside=self._spread(keys, frames))
        larger = F.interpolate(video, (frames, *middle))
        video = self._clip("sr_l", larger.shape, prompt, steps=small, beside=larger)
        every = [self._enlarge(frame, (height, width), steps=large) for frame in video.unbind(2)]
        return torch.stack(every, dim=2)

    def _image_embedding(self, text: Any, batch: int, **how: Any) -> Tensor:
        """An image embedding ``(batch, width)`` of the text."""
        prior, tokens = self.networks["prior"], text.last_hidden_state
        told = {"proj_embedding": text.text_embeds, "encoder_hidden_states": tokens}
        told["attention_mask"] = self.inputs.ones(*tokens.shape[:2])
        noise = self.inputs.normal(batch, prior.config.embedding_dim)
        return denoise(prior, noise, scheduler=self.prior_scheduler, **how, **told)

    def _clip(self, role: str, shape: Sequence[int], text: Tensor, **how: Any) -> Tensor:
        """A video of ``shape`` ``(batch, 3, frames, height, width)``."""
        noise = self.inputs.normal(*shape)
        return denoise(self.networks[role], noise, scheduler=self.scheduler, encoder_hidden_states=text, **how)

    def _spread(self, keys: Tensor, frames: int) -> Tensor:
        """Key frames at their places among all frames, empty ones between, and a channel that says which are known."""
        batch, channels, _, height, width = keys.shape
        video = keys.new_zeros(batch, channels + 1, frames, height, width)
        video[:, :channels, :: self.frame_skip] = keys
        video[:, channels, :: self.frame_skip] = 1
        return video

    def _enlarge(self, frame: Tensor, size: tuple[int, int], *, steps: int) -> Tensor:
        """One frame ``(batch, 3, …)`` at its final size."""
        larger = F.interpolate(frame, size, mode="bilinear")
        noise = self.inputs.normal(*larger.shape)
        return denoise(self.networks["sr_h"], noise, scheduler=self.scheduler, steps=steps, beside=larger)


class OpenSoraPipeline:
    """Encode the prompt twice, denoise packed latents of all frames with FLUX's transformer, decode videos in tiles.

    Guidance makes a batch of three: with the prompt, without it, and without the image either; here nothing differs
    but the text, as the layer for the image is not in FLUX's class.

    - ``latent_scale``, ``frame_scale``: the side of a frame over its latent's, and the same of frames.
    - ``guided_batch``: rows of the batch per video where guidance is on.
    - ``text_tokens``: tokens of a text encoder whose prompts have a length of their own.
    - ``decode_tiles``: size and stride of the decoder's tiles in latent places, by axis (``height``, ``width``).

    **Source**: Open-Sora 2.0, arXiv 2503.09642; hpcaitech/Open-Sora ``opensora/utils/sampling.py`` (recalled).
    """

    def __init__(
        self,
        networks: Networks,
        inputs: Inputs,
        *,
        latent_scale: int,
        frame_scale: int,
        guided_batch: int,
        text_tokens: Mapping[str, int],
        decode_tiles: Mapping[str, Sequence[int]],
    ) -> None:
        self.networks, self.inputs, self.text_tokens = networks, inputs, text_tokens
        self.latent_scale, self.frame_scale, self.guided_batch = latent_scale, frame_scale, guided_batch
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        sizes = {axis: [latent_scale * places for places in tile] for axis, tile in decode_tiles.items()}
        networks["vae"].enable_slicing()  # one video after the other
        networks["vae"].enable_tiling(
            **{f"tile_sample_min_{axis}": size for axis, (size, _) in sizes.items()},
            **{f"tile_sample_stride_{axis}": stride for axis, (_, stride) in sizes.items()},
        )

    def __call__(
        self, *, batch: int, prompt_tokens: int, height: int, width: int, frames: int, steps: Steps, guidance: float
    ) -> Tensor:
        """Videos ``(batch, 3, frames, height, width)``."""
        rows = self.guided_batch if rows_of(guidance) == 2 else 1
        grid = ((frames - 1) // self.frame_scale + 1, height // self.latent_scale, width // self.latent_scale)
        told = self._told(rows * batch, prompt_tokens, grid)
        channels = self.networks["vae"].config.latent_channels
        sample = self._packed(self.inputs.normal(batch, channels, *grid))
        self.scheduler.set_timesteps(*steps_each(steps, 1))
        for time in self.scheduler.timesteps:
            seen = torch.cat([sample] * rows)
            now = (time / 1000).expand(seen.shape[0]).to(seen)
            found = self.networks["transformer"](seen, timestep=now, **told, return_dict=False)[0]
            sample = self.scheduler.step(self._combined(found, rows, guidance), time, sample).prev_sample
        latent = self._unpacked(sample, grid)
        return self.networks["vae"].decode(latent / self.networks["vae"].config.scaling_factor).sample

    def _told(self, rows: int, prompt_tokens: int, grid: tuple[int, int, int]) -> dict[str, Tensor]:
        """What the transformer is told besides the latents: T5's tokens, CLIP's one, and where all tokens are."""
        t5, clip = (self._encode(role, rows, prompt_tokens) for role in ("text_encoder", "text_encoder_2"))
        places = torch.cartesian_prod(
            *(torch.arange(size // (1 if axis == 0 else 2)) for axis, size in enumerate(grid))
        )
        return {
            "encoder_hidden_states": t5.last_hidden_state,
            "pooled_projections": clip.pooler_output,
            "img_ids": places.to(self.inputs.device, self.inputs.dtype),  # [tokens, 3]
            "txt_ids": torch.zeros(prompt_tokens, 3, device=self.inputs.device, dtype=self.inputs.dtype),
        }

    def _encode(self, role: str, rows: int, prompt_tokens: int) -> Any:
        tokens = self.text_tokens.get(role, prompt_tokens)
        return encode_prompt(self.networks[role], self.inputs, batch=rows, tokens=tokens)

    def _combined(self, found: Tensor, rows: int, guidance: float) -> Tensor:
        """One row per video: towards the prompt from the row without it, which is towards the image from the last."""
        if rows < 3:
            return guided(found, guidance)
        prompt, no_prompt, nothing = found.chunk(3)
        by_image = nothing + guidance * (no_prompt - nothing)
        return by_image + guidance * (prompt - no_prompt)

    def _packed(self, latent: Tensor) -> Tensor:
        """``(batch, channels, frames, height, width)`` to ``(batch, tokens, 4 * channels)``, 2x2 places a token."""
        parts = latent.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))  # [b, c, t, h, 2, w, 2]
        return parts.permute(0, 2, 3, 5, 1, 4, 6).flatten(4, 6).flatten(1, 3)

    def _unpacked(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        frames, height, width = grid
        parts = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (frames, height // 2, width // 2))  # [b, t, h, w, c, 2, 2]
        return parts.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
