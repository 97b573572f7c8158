"""Adaptors between encoders, language models and decoders that no maintained library offers on their own."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from mmchar.models.networks.transformer_block import TransformerBlock


class LinearAdaptor(nn.Module):
    """One linear layer from an encoder's features to a language model's tokens.

    **Source**: LLaVA, arXiv 2304.08485, sec. 4.1; NExT-GPT, arXiv 2309.05519, sec. 3.
    """

    def __init__(self, *, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_dim=in_dim, out_dim=out_dim)
        self.linear = nn.Linear(in_dim, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, tokens, in_dim)`` to ``(batch, tokens, out_dim)``."""
        return self.linear(features)


class OutputProjector(nn.Module):
    """A small encoder-decoder from a language model's signal tokens to the text tokens that a diffusion model takes.

    **Source**: NExT-GPT, arXiv 2309.05519, sec. 3 and App. (a transformer of 4 + 4 layers, width 512, learned queries),
    and NExT-GPT/NExT-GPT ``code/model/layers.py``; our blocks have no biases.
    """

    def __init__(self, *, in_dim: int, out_dim: int, queries: int, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_dim=in_dim, out_dim=out_dim, queries=queries)
        self.to_hidden = nn.Linear(in_dim, dim)
        self.queries = nn.Parameter(torch.randn(1, queries, dim))
        self.encoder = nn.ModuleList(TransformerBlock(dim, heads, 4 * dim) for _ in range(layers))
        self.decoder = nn.ModuleList(TransformerBlock(dim, heads, 4 * dim, context_dim=dim) for _ in range(layers))
        self.to_out = nn.Linear(dim, out_dim)

    def forward(self, signal: Tensor) -> Tensor:
        """``(batch, signal tokens, in_dim)`` to ``(batch, queries, out_dim)``."""
        hidden = self.to_hidden(signal)
        for block in self.encoder:
            hidden = block(hidden)
        asked = self.queries.expand(signal.shape[0], -1, -1)
        for block in self.decoder:
            asked = block(asked, hidden)
        return self.to_out(asked)
