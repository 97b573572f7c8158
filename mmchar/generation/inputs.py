"""Made-up inputs of a component, on meta or on real tensors."""

import torch
from torch import Tensor


class Inputs:
    """Makes inputs: empty on ``meta``, seeded random numbers elsewhere (never zeros, on which kernels run faster)."""

    def __init__(self, device: str, dtype: str) -> None:
        self.device = torch.device(device)
        self.dtype = getattr(torch, dtype)
        self._random = None if device == "meta" else torch.Generator(self.device).manual_seed(0)

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

    def ones(self, *shape: int) -> Tensor:
        """A mask that hides nothing."""
        return torch.ones(shape, dtype=torch.bool, device=self.device)
