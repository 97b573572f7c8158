"""The way that torch's own modules take on every device, while they are traced.

On some devices they take short cuts, operators that do several things at once, or refuse to run. Traced, they do the
same everywhere: ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` call linear layers and attention one by
one, and ``flex_attention`` runs without a compiler, on ``meta`` as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention import flex_attention


@contextmanager
def plain_paths() -> Iterator[None]:
    """While it is open, no short cuts."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    check = flex_attention._validate_device

    def on_meta_too(query: Any, *others: Any) -> None:
        if not query.is_meta:
            check(query, *others)

    try:
        with patch.multiple(flex_attention, _validate_device=on_meta_too, _FLEX_ATTENTION_DISABLE_COMPILE_DEBUG=True):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
