"""How audio diffusion models are called, by the rules of :mod:`mmchar.calls`."""

from torch import nn

from mmchar.calls import Inputs, Work
from mmchar.diffusion_calls import flow_time


def denoise_spectrogram(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int) -> Work:
    """AudioLDM's U-Net on the latent of a spectrogram; the text comes in beside the time, as one embedding."""
    sample = make.normal(batch, module.config.in_channels, height, width)
    text, t = make.normal(batch, module.config.projection_class_embeddings_input_dim), make.timestep(batch)
    return lambda: module(sample, t, encoder_hidden_states=None, class_labels=text, return_dict=False)


def denoise_waveform(module: nn.Module, make: Inputs, *, batch: int, frames: int, context: int) -> Work:
    """Stable Audio on ``(batch, channels, frames)``, with rotary positions over half of a head."""
    config = module.config
    rotary = tuple(make.normal(frames + 1, config.attention_head_dim // 2) for _ in range(2))
    inputs = {
        "hidden_states": make.normal(batch, config.in_channels, frames),
        "timestep": flow_time(make, batch),
        "encoder_hidden_states": make.normal(batch, context, config.cross_attention_input_dim),
        "global_hidden_states": make.normal(batch, 1, config.global_states_input_dim),
    }
    return lambda: module(**inputs, rotary_embedding=rotary, return_dict=False)


def decode_waveform(module: nn.Module, make: Inputs, *, batch: int, frames: int) -> Work:
    """An audio autoencoder's decoder on ``(batch, channels, frames)``."""
    latent = make.normal(batch, module.config.decoder_input_channels, frames)
    return lambda: module.decode(latent)


def vocode(module: nn.Module, make: Inputs, *, batch: int, frames: int) -> Work:
    """A vocoder on a spectrogram ``(batch, frames, bins)``."""
    spectrogram = make.normal(batch, frames, module.config.model_in_dim)
    return lambda: module(spectrogram)
