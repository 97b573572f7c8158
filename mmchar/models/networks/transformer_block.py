"""The attention and the transformer block that our own networks are made of.

Every attention core is one ``F.scaled_dot_product_attention``, so that each backend can serve it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of tokens over themselves, over a context, or (``joint``) over both at once; no biases.

    ``inner_dim`` is the width of all heads together, by default ``dim``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        inner_dim: int | None = None,
        context_dim: int | None = None,
        joint: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        inner_dim = inner_dim or dim
        self.heads, self.is_causal = heads, causal
        self.added_kv_proj_dim = context_dim if joint else None  # the name that diffusers gives to joint attention
        self.to_q = nn.Linear(dim, inner_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner_dim, bias=False) if joint or not context_dim else None
        self.to_context_kv = nn.Linear(context_dim, 2 * inner_dim, bias=False) if context_dim else None
        self.to_out = nn.Linear(inner_dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``(batch, tokens, dim)`` and ``(batch, context tokens, context_dim)`` to ``(batch, tokens, dim)``."""
        parts = [self.to_kv(x)] if self.to_kv is not None else []
        parts += [self.to_context_kv(context)] if self.to_context_kv is not None else []
        kv = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]  # [b, tokens + context tokens, 2 * inner_dim]
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(x), *kv.chunk(2, dim=-1)))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)  # [b, heads, tokens, head_dim]
        return self.to_out(out.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, then cross-attention where there is a context, then an MLP without biases."""

    def __init__(
        self, dim: int, heads: int, mlp_dim: int, *, context_dim: int | None = None, causal: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, heads, causal=causal)
        self.norm2 = nn.LayerNorm(dim) if context_dim else None
        self.cross_attn = Attention(dim, heads, context_dim=context_dim) if context_dim else None
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim, bias=False), nn.GELU(), nn.Linear(mlp_dim, dim, bias=False))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``(batch, tokens, dim)`` to the same shape."""
        x = x + self.self_attn(self.norm1(x))
        if self.cross_attn is not None and self.norm2 is not None:
            x = x + self.cross_attn(self.norm2(x), context)
        return x + self.mlp(self.norm3(x))
