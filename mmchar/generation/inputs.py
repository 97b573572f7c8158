"""Made-up inputs of a component, on meta or on real tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], Any]


class Inputs:
    """Makes inputs: empty on ``meta``, seeded random numbers elsewhere (never zeros, on which kernels run faster)."""

    def __init__(self, device: str, dtype: str, seed: int = 0) -> None:
        self.device = torch.device(device)
        self.dtype = getattr(torch, dtype)
        self._seed = seed if self.device.type != "meta" else None
        self._random = torch.Generator(self.device).manual_seed(seed) if self._seed is not None else None

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, e.g. an image ``(batch, channels, height, width)`` or text ``(batch, tokens, width)``."""
        if self._random is None:
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        return torch.randn(shape, dtype=self.dtype, device=self.device, generator=self._random)

    def tokens(self, *shape: int, vocabulary: int) -> Tensor:
        """Token ids below ``vocabulary``."""
        if self._random is None:
            return torch.empty(shape, dtype=torch.int64, device=self.device)
        return torch.randint(0, vocabulary, shape, device=self.device, generator=self._random)

    def timestep(self, batch: int) -> Tensor:
        """One denoising time per sample, ``(batch,)``."""
        return torch.full((batch,), 500, dtype=torch.int64, device=self.device)

    def ones(self, *shape: int) -> Tensor:
        """A mask that hides nothing."""
        return torch.ones(shape, dtype=torch.bool, device=self.device)
