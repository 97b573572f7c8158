"""HSTU, the sequence model of generative recommenders, written from its paper: attention without softmax.

Each layer weighs values by SiLU(Q K^T + bias), pointwise. The two batched products with what is between them are one
operator, ``mmchar::pointwise_attention``, which torch takes apart when it runs and which tracing keeps whole, as it
does ``scaled_dot_product_attention``: in the operator table it is one attention row.

**Source**: Zhai et al., arXiv 2402.17152, sec. 3.2 (pointwise projection, spatial aggregation, pointwise
transformation) and sec. 3.4 (M-FALCON: candidates that share one history).
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor]]

_OPERATORS = torch.library.Library("mmchar", "DEF")
_OPERATORS.define("pointwise_attention(Tensor q, Tensor k, Tensor v, Tensor? bias, bool candidates) -> Tensor")


def _pointwise_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, candidates: bool) -> Tensor:
    """SiLU(q k^T + bias) v / keys over the keys that a query sees; q is ``(batch, heads, q_len, qk_dim)``.

    Queries are the last of the keys. Each sees the keys up to its own, or, as a candidate, the history and itself.
    """
    q_len, kv_len = q.shape[-2], k.shape[-2]
    own = torch.ones(q_len, kv_len, dtype=torch.bool, device=q.device).tril(kv_len - q_len)
    if candidates:
        own[:, kv_len - q_len :] = torch.eye(q_len, dtype=torch.bool, device=q.device)
    scores = q @ k.transpose(-1, -2)  # [b, h, q, d] @ [b, h, d, k] -> [b, h, q, k]
    weights = F.silu(scores if bias is None else scores + bias) / kv_len
    out = (weights * own) @ v  # [b, h, q, k] @ [b, h, k, dv] -> [b, h, q, dv]
    return out.transpose(1, 2).contiguous().transpose(1, 2)  # heads side by side in memory, as fused kernels write them


_OPERATORS.impl("pointwise_attention", _pointwise_attention, "CompositeImplicitAutograd")


class RelativeBias(nn.Module):
    """A learned number per distance in position and per distance in time, on a scale of powers of two."""

    def __init__(self, max_tokens: int, time_buckets: int) -> None:
        super().__init__()
        self.position = nn.Embedding(2 * max_tokens - 1, 1)
        self.time = nn.Embedding(time_buckets, 1)

    def forward(self, times: Tensor) -> Tensor:
        """Seconds ``(batch, tokens)`` to ``(batch, 1, tokens, tokens)``, the same for all heads."""
        place = torch.arange(times.shape[1], device=times.device)
        apart = place[:, None] - place + self.position.num_embeddings // 2
        passed = (times[:, :, None] - times[:, None, :]).abs().clamp(min=1)
        bucket = passed.log2().long().clamp(max=self.time.num_embeddings - 1)
        return (self.position(apart) + self.time(bucket)).movedim(-1, 1)


class PointwiseAttention(nn.Module):
    """The core of a layer; a module of its own, so that its row has a name."""

    is_causal = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, candidates: bool) -> Tensor:
        """``(batch, heads, q_len, v_dim)``."""
        return torch.ops.mmchar.pointwise_attention(q, k, v, bias, candidates)


class HSTULayer(nn.Module):
    """One linear layer to U, V, Q and K, attention, and one linear layer back, gated by U; no MLP."""

    def __init__(self, dim: int, heads: int, qk_dim: int, v_dim: int) -> None:
        super().__init__()
        self.heads, self.widths = heads, [heads * v_dim, heads * v_dim, heads * qk_dim, heads * qk_dim]
        self.norm = nn.LayerNorm(dim)
        self.to_uvqk = nn.Linear(dim, sum(self.widths), bias=False)
        self.attention = PointwiseAttention()
        self.out_norm = nn.LayerNorm(heads * v_dim)
        self.to_out = nn.Linear(heads * v_dim, dim)

    def forward(
        self, x: Tensor, bias: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``(batch, tokens, dim)`` to the same shape, and its keys and values; ``past`` holds those of the history."""
        u, v, q, k = F.silu(self.to_uvqk(self.norm(x))).split(self.widths, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        own = (k, v)
        if past is not None:
            k, v = (torch.cat([before, now], dim=2) for before, now in zip(past, own, strict=True))
        attended = self.attention(q, k, v, bias, past is not None).transpose(1, 2).flatten(2)
        return x + self.to_out(u * self.out_norm(attended)), own


class HSTU(nn.Module):
    """A user's history of items and actions to the items that come next (retrieval), or to a score per candidate.

    ``items`` are the rows of the item table; ``max_tokens`` are of the longest sequence, candidates included. Without
    ``time_buckets`` there is no relative bias. ``tasks`` are scores per candidate (click, like, …), 0 where a model
    only retrieves.
    """

    def __init__(
        self,
        *,
        items: int,
        dim: int,
        layers: int,
        heads: int,
        qk_dim: int,
        v_dim: int,
        max_tokens: int,
        time_buckets: int = 0,
        tasks: int = 0,
    ) -> None:
        super().__init__()
        self.config = SimpleNamespace(items=items, dim=dim, layers=layers, heads=heads, qk_dim=qk_dim, v_dim=v_dim)
        self.item_embedding = nn.Embedding(items + 1, dim)  # one more: padding
        self.position_embedding = nn.Embedding(max_tokens, dim)
        self.relative_bias = RelativeBias(max_tokens, time_buckets) if time_buckets else None
        self.layers = nn.ModuleList(HSTULayer(dim, heads, qk_dim, v_dim) for _ in range(layers))
        self.head = nn.Linear(dim, tasks) if tasks else None

    def forward(self, ids: Tensor, times: Tensor | None = None, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """Ids ``(batch, tokens)`` to ``(batch, tokens, dim)`` and each layer's keys and values.

        With ``past``, the ids are candidates that each see the history and themselves. ``times`` in seconds.
        """
        start = past[0][0].shape[2] if past else 0
        places = torch.arange(ids.shape[1], device=ids.device) + start
        x = self.item_embedding(ids) * self.config.dim**0.5 + self.position_embedding(places)
        bias = self.relative_bias(times) if self.relative_bias is not None and times is not None else None
        made = []
        for index, layer in enumerate(self.layers):
            x, own = layer(x, bias, past[index] if past else None)
            made.append(own)
        return x, made

    def rank(self, ids: Tensor, past: Cache) -> Tensor:
        """Candidates ``(batch, candidates)`` to scores ``(batch, candidates, tasks)``, given the history's cache."""
        assert self.head is not None, "a model built without tasks retrieves; it does not rank"
        return self.head(self(ids, past=past)[0])

    def retrieve(self, user: Tensor, most: int) -> Tensor:
        """The ``most`` nearest items ``(batch, most)`` of all, by cosine similarity with users ``(batch, dim)``."""
        users, items = F.normalize(user, dim=-1), F.normalize(self.item_embedding.weight[1:], dim=-1)
        return (users @ items.t()).topk(most).indices
