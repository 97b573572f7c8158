"""Architectures that no maintained library offers, written from their papers, with random weights.

`EfficientUNet` (Imagen's super-resolution stages), `MaskedTokenTransformer` and `CViViT`
(Phenaki). Each takes plain config keywords, and builds on ``meta``, ``cpu`` or ``cuda``.

Attention is that of `transformer_block`, and its module's name says what attends to what: ``self_attn``, ``cross_attn``
(to text), ``joint_attn`` (image and text in one key/value sequence). Those inside ``spatial_blocks`` see one frame,
those inside ``temporal_blocks`` one position through time.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmchar.models.networks.transformer_block import Attention, TransformerBlock


class MaskedTokenTransformer(nn.Module):
    """Bidirectional transformer that predicts all masked tokens of a sequence at once, given text.

    The cross-attention reads the text encoder's tokens at their own width, and the output head is the token table.
    Both are our reading: with them the published sizes (24 layers, 2048, 8192; T5-XXL's 4096) make the published 1.8B.

    **Source**: Phenaki, arXiv 2210.02399, sec. 2.2, Tables 6-7; MaskGIT, arXiv 2202.04200 (bidirectional, mask token).
    """

    def __init__(
        self, *, vocabulary: int, max_tokens: int, dim: int, layers: int, heads: int, mlp_dim: int, text_dim: int
    ) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocabulary=vocabulary, max_tokens=max_tokens, text_dim=text_dim)
        self.token_embedding = nn.Embedding(vocabulary + 1, dim)  # one more: the mask token
        self.position_embedding = nn.Embedding(max_tokens, dim)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, mlp_dim, context_dim=text_dim) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary + 1, bias=False)
        self.head.weight = self.token_embedding.weight

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Ids ``(batch, tokens)``, text ``(batch, text tokens, text_dim)`` to ``(batch, tokens, vocabulary + 1)``."""
        tokens, most = input_ids.shape[1], self.config.max_tokens
        if tokens > most:
            raise ValueError(f"{tokens} tokens given, but there are {most} positions; ask for less video")
        x = self.token_embedding(input_ids) + self.position_embedding.weight[:tokens]
        for block in self.blocks:
            x = block(x, encoder_hidden_states)
        return self.head(self.norm(x))


class CViViT(nn.Module):
    """C-ViViT's decoder: causal attention over time at each position, then attention inside each frame, then pixels.

    The first token image is the first frame alone; each later one holds ``temporal_patch`` frames. Generating from
    text needs no encoder, so there is none. Positions are learned tables; the paper's own scheme was not verified.

    **Source**: Phenaki, arXiv 2210.02399, sec. 2.1 and Table 6.
    """

    def __init__(
        self,
        *,
        codebook: int,
        dim: int,
        spatial_layers: int,
        temporal_layers: int,
        heads: int,
        mlp_dim: int,
        patch: int,
        temporal_patch: int,
        max_side: int,
        max_time: int,
    ) -> None:
        super().__init__()
        sizes = {"patch": patch, "temporal_patch": temporal_patch, "max_side": max_side, "max_time": max_time}
        self.config = SimpleNamespace(codebook=codebook, **sizes)
        self.codebook = nn.Embedding(codebook, dim)
        self.spatial_position = nn.Embedding(max_side * max_side, dim)
        self.temporal_position = nn.Embedding(max_time, dim)
        temporal = (TransformerBlock(dim, heads, mlp_dim, causal=True) for _ in range(temporal_layers))
        self.temporal_blocks = nn.ModuleList(temporal)
        self.spatial_blocks = nn.ModuleList(TransformerBlock(dim, heads, mlp_dim) for _ in range(spatial_layers))
        self.norm = nn.LayerNorm(dim)
        self.to_first_frame = nn.Linear(dim, 3 * patch * patch)
        self.to_frames = nn.Linear(dim, 3 * temporal_patch * patch * patch)

    def decode(self, tokens: Tensor, *, height: int | None = None, width: int | None = None) -> Tensor:
        """Pixels ``(batch, 3, 1 + (time - 1) * temporal_patch, height * patch, width * patch)`` of a token video.

        Codebook ids are ``(batch, time, height * width)``; the token image is square unless its rows and columns are
        given.
        """
        batch, time, positions = tokens.shape
        side = math.isqrt(positions)
        grid = (height or side, width or side)
        self._check(time, positions, grid)
        x = (self.codebook(tokens) + self._positions(time, grid)).transpose(1, 2).flatten(0, 1)
        for block in self.temporal_blocks:
            x = block(x)  # [batch * positions, time, dim]
        x = x.unflatten(0, (batch, positions)).transpose(1, 2).flatten(0, 1)
        for block in self.spatial_blocks:
            x = block(x)  # [batch * time, positions, dim]
        x = self.norm(x).unflatten(0, (batch, time))
        first = self._unpatch(self.to_first_frame(x[:, :1]), grid)
        if time == 1:
            return first
        return torch.cat([first, self._unpatch(self.to_frames(x[:, 1:]), grid)], dim=2)

    def _check(self, time: int, positions: int, grid: tuple[int, int]) -> None:
        height, width = grid
        if height * width != positions:
            raise ValueError(f"{positions} tokens per frame given, but {height} x {width} asked for; give both sizes")
        most, side = self.config.max_time, self.config.max_side
        if time > most or max(grid) > side:
            given = f"{time} x {height} x {width} tokens given"
            raise ValueError(f"{given}, but there are {most} x {side} x {side} positions; ask for less video")

    def _positions(self, time: int, grid: tuple[int, int]) -> Tensor:
        table = self.spatial_position.weight.unflatten(0, (self.config.max_side, self.config.max_side))
        in_frame = table[: grid[0], : grid[1]].reshape(grid[0] * grid[1], -1)
        return in_frame + self.temporal_position.weight[:time, None]  # [time, positions, dim]

    def _unpatch(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        patch = self.config.patch
        x = x.unflatten(3, (3, -1, patch, patch)).unflatten(2, grid)  # [b, t, h, w, 3, f, p, p]
        x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)  # [b, 3, t, f, h, p, w, p]
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class ResNetBlock(nn.Module):
    """Two normalized 3x3 convolutions beside a 1x1 convolution. **Source**: Imagen, Fig. A.27."""

    def __init__(self, in_channels: int, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, height, width)`` to ``(batch, channels, height, width)``."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class UNetLevel(nn.Module):
    """What a DBlock and a UBlock share: the embedding enters once, then residual blocks, then one attention or none.

    **Source**: Imagen, Figs. A.28 and A.29; the heads together are twice as wide as the channels (``hidden_size``).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        res_blocks: int,
        attention: str,
        heads: int,
        groups: int,
        embed_dim: int,
        text_dim: int,
    ) -> None:
        super().__init__()
        self.combine = nn.Linear(embed_dim, 2 * in_channels)
        widths = [in_channels] + [channels] * res_blocks
        self.resnets = nn.ModuleList(ResNetBlock(i, o, groups) for i, o in zip(widths, widths[1:], strict=False))
        self.attention = f"{attention}_attn" if attention else ""
        if attention:
            self.norm = nn.LayerNorm(channels)
            joint = attention == "joint"
            core = Attention(channels, heads, inner_dim=2 * channels, context_dim=text_dim, joint=joint)
            self.add_module(self.attention, core)

    def forward(self, x: Tensor, embedding: Tensor, text: Tensor) -> Tensor:
        """``(batch, in_channels, height, width)`` to ``(batch, channels, height, width)``."""
        scale, shift = self.combine(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        x = x * (1 + scale) + shift
        for resnet in self.resnets:
            x = resnet(x)
        if not self.attention:
            return x
        tokens = self.norm(x.flatten(2).transpose(1, 2))  # [b, c, h, w] -> [b, h * w, c]
        tokens = getattr(self, self.attention)(tokens, text)
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class EfficientUNet(nn.Module):
    """Imagen's Efficient U-Net: a level halves the image before its convolutions and doubles it after them.

    ``attention`` names each level's: "" (none), "joint" (text concatenated to keys and values, 64 to 256 pixels) or
    "cross" (text only, 256 to 1024). Skip connections of the U-Net are concatenated, scaled by 1/sqrt(2). Our reading
    where the paper is silent: the embedding is 4x the first channels wide (as in ADM); one learned query pools the
    text, which reaches attention at its own width; the upsampling convolution is a transposed one; the noise level of
    the low-resolution image has no embedding of its own.

    **Source**: Imagen, arXiv 2205.11487, App. B.1, D.3.1, F.2 and F.3, Figs. A.27 to A.29.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        channels: list[int],
        res_blocks: list[int],
        attention: list[str],
        attention_heads: int,
        cross_attention_dim: int,
        norm_num_groups: int,
    ) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=in_channels, cross_attention_dim=cross_attention_dim)
        first, embed_dim = channels[0], 4 * channels[0]
        widths = {"embed_dim": embed_dim, "text_dim": cross_attention_dim}
        shared = {"heads": attention_heads, "groups": norm_num_groups, **widths}
        self.time_embedding = nn.Sequential(nn.Linear(first, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim))
        self.text_norm = nn.LayerNorm(cross_attention_dim)
        self.text_pool = nn.Linear(cross_attention_dim, 1, bias=False)
        self.text_embedding = nn.Linear(cross_attention_dim, embed_dim)
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.conv_out = nn.Conv2d(first, out_channels, 1)
        self.downsamplers, self.down_blocks, self.up_blocks, self.upsamplers = (nn.ModuleList() for _ in range(4))
        above, below = [first, *channels[:-1]], [*channels[1:], 0]
        for i, (count, kind) in enumerate(zip(res_blocks, attention, strict=True)):
            here = channels[i]
            self.downsamplers.append(nn.Conv2d(above[i], here, 3, stride=2, padding=1))
            self.down_blocks.append(UNetLevel(here, here, res_blocks=count, attention=kind, **shared))
            self.up_blocks.append(UNetLevel(here + below[i], here, res_blocks=count, attention=kind, **shared))
            self.upsamplers.append(nn.ConvTranspose2d(here, here, 3, stride=2, padding=1, output_padding=1))

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Noise beside the enlarged small image, ``(batch, 6, height, width)``, to ``(batch, 3, height, width)``.

        ``timestep`` is ``(batch,)``, ``encoder_hidden_states`` ``(batch, tokens, cross_attention_dim)``.
        """
        multiple = 2 ** len(self.down_blocks)
        if any(size % multiple for size in sample.shape[2:]):
            given = " x ".join(str(size) for size in sample.shape[2:])
            raise ValueError(f"an image of {given} given; height and width must be multiples of {multiple}")
        text = self.text_norm(encoder_hidden_states)
        embedding = self._embed(timestep, text)
        x, skips = self.conv_in(sample), []
        for downsample, block in zip(self.downsamplers, self.down_blocks, strict=True):
            x = block(downsample(x), embedding, text)
            skips.append(x)
        skips.pop()  # the deepest level has no level below it to join
        x = self.upsamplers[-1](self.up_blocks[-1](x, embedding, text))
        for block, upsample in zip(self.up_blocks[-2::-1], self.upsamplers[-2::-1], strict=True):
            x = torch.cat([x, skips.pop() * 2**-0.5], dim=1)
            x = upsample(block(x, embedding, text))
        return self.conv_out(x)

    def _embed(self, timestep: Tensor, text: Tensor) -> Tensor:
        half = self.conv_in.out_channels // 2
        steps = torch.arange(half, device=text.device, dtype=torch.float32)
        angles = timestep[:, None] * torch.exp(-math.log(10_000) * steps / half)  # [b, half]
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(text.dtype)
        pooled = (self.text_pool(text).softmax(dim=1) * text).sum(dim=1)  # [b, tokens, 1] weights -> [b, width]
        return self.time_embedding(waves) + self.text_embedding(pooled)
