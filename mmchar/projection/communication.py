"""What GPUs send to each other: rows of the operator table, and the time that a GPU's link needs for them.

A row's ``write_bytes`` are what one GPU sends and its ``read_bytes`` what it receives, in one execution; ``calls`` are
messages. Links carry both directions at once, so the larger of the two decides.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import LENGTHS
from mmchar.projection.columns import HIDES, Columns
from mmchar.projection.data_sheets import Gpu


@dataclass(frozen=True)
class Interconnect:
    """What messages between GPUs reach of the link, and what one costs however small. The same for every model."""

    # Share of the link's bandwidth in one direction that collectives reach. Source: an NCCL developer in
    # NVIDIA/nccl-tests issue 212 (2024-05-06): with protocol overhead 370 of the 450 GB/s of an H100.
    bandwidth: float = 0.82
    # The same for one pair of GPUs: point-to-point messages, of which an all-to-all is made, use few channels per
    # peer, so that only several peers together fill the link. Source: fitted.
    pair: float = 0.21
    # Device time of the smallest collective between GPUs of one machine. Source: fitted.
    latency_s: float = 22e-6
    # Host time that a collective takes on top of an operator: PyTorch's process group looks up the communicator,
    # records events on two streams and keeps tensors alive. Source: fitted.
    host_s: float = 56e-6

    def reached(self, pairs: np.ndarray, peers: np.ndarray) -> np.ndarray:
        """Share of the link that messages reach: those between pairs of GPUs depend on how many peers there are."""
        return np.where(pairs, np.minimum(self.bandwidth, self.pair * np.maximum(peers, 1)), self.bandwidth)


def message_rows(
    sites: pd.DataFrame, op: str, *, messages: int, sent_bytes: pd.Series, peers: int = 1, overlap: str = "none"
) -> pd.DataFrame:
    """Communication rows beside ``sites``: what one GPU sends (and as much receives) at each of them.

    ``messages`` are sent per call of a site, each to ``peers`` GPUs at once; ``sent_bytes`` are those of all of them in
    one execution. ``overlap`` says what runs meanwhile: ``none``, the ``attention`` core of the same module, or all
    else of the ``stage``.
    """
    rows = extra_rows(sites, op, "Communication", calls=sites["calls"] * messages, moved=sent_bytes)
    return rows.assign(overlap=overlap, peers=peers)


def extra_rows(sites: pd.DataFrame, op: str, category: str, *, calls: pd.Series, moved: pd.Series) -> pd.DataFrame:
    """Rows of an operator that each of ``sites`` calls as well; it reads ``moved`` bytes and writes as many."""
    zeros = dict.fromkeys((*LENGTHS, "flop", "mask_bytes", "kernels"), 0)
    return sites.assign(
        op=op, category=category, attention="", backend="", overlap="none", peers=0, live_bytes=0,
        calls=calls, read_bytes=moved, write_bytes=moved, **zeros,
    )  # fmt: skip


def message_s(columns: Columns, gpu: Gpu, interconnect: Interconnect) -> np.ndarray:
    """Seconds that each row's messages keep a GPU's link busy; 0 for rows that send nothing."""
    moved = np.maximum(columns.read_bytes, columns.write_bytes)
    latency_s = columns.calls * interconnect.latency_s
    return columns.sent * (latency_s + moved / (gpu.link_bytes_s * interconnect.reached(columns.pairs, columns.peers)))


def exposed_s(columns: Columns, device_s: np.ndarray, link_s: np.ndarray) -> np.ndarray:
    """Seconds of each row's messages that nothing hides.

    Messages of a ring hide behind the attention cores of their module, displaced ones (DistriFusion, PipeFusion) behind
    all other work of the stage. What is left of them, if they take longer, is shared in proportion.
    """
    out = link_s.copy()
    everything = ~columns.sent
    for overlap, group, cover in (("attention", columns.site, columns.core), ("stage", columns.step, everything)):
        rows = columns.hides == HIDES.index(overlap)
        if not rows.any():
            continue
        cover_s = np.bincount(group, np.where(cover, device_s, 0.0) * columns.repeats)
        hidden_s = np.bincount(group, np.where(rows, link_s, 0.0) * columns.repeats)
        left = np.divide(np.maximum(hidden_s - cover_s, 0), hidden_s, out=np.zeros(len(hidden_s)), where=hidden_s > 0)
        out[rows] = (link_s * left[group])[rows]
    return out
