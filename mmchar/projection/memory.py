"""Whether a generation fits into the memory of a GPU."""

from typing import Any

import pandas as pd

from mmchar.projection.data_sheets import Gpu
from mmchar.tracing.attention import ITEM_BYTES


def summarize_memory(table: pd.DataFrame, gpu: Gpu) -> dict[str, Any]:
    """Bytes that one GPU holds: ``weight_bytes``, ``peak_bytes`` (with the most activations alive), and if it ``fits``.

    Weights of all components stay; that they are there at all decides, so ``weight_bytes`` above the GPU's memory
    cannot run without moving them in and out. The peak is a little pessimistic: it decodes a batch at once, where
    libraries can decode one image after the other.
    """
    weight_bytes = int(sum(table.attrs["params"].values()) * ITEM_BYTES[table.attrs["dtype"]])
    peak_bytes = weight_bytes + int(table["live_bytes"].max())
    return {"weight_bytes": weight_bytes, "peak_bytes": peak_bytes, "fits": peak_bytes <= gpu.memory_bytes}
