"""Attention rows with other lengths, and the FLOPs and bytes that follow from them."""

import pandas as pd

from mmchar.tracing.attention import item_bytes


def with_lengths(
    table: pd.DataFrame,
    cores: pd.DataFrame,
    *,
    q_len: pd.Series,
    kv_len: pd.Series | None = None,
    heads: pd.Series | None = None,
    times: int = 1,
) -> pd.DataFrame:
    """The table with fewer queries, keys or heads in some of its attention rows, each called ``times`` as often.

    Parameters
    ----------
    table : DataFrame
        Operator rows with fused attention.
    cores : DataFrame
        The attention rows to change, as they were: their index says which rows of the table they are.
    q_len, kv_len, heads : Series
        The new lengths (tokens) and heads of these rows; what is not given stays.
    """
    kv = cores["kv_len"] if kv_len is None else kv_len
    heads = cores["heads"] if heads is None else heads
    calls = cores["calls"] * times
    pairs = cores["batch"] * cores["heads"] * cores["calls"] * cores["q_len"] * cores["kv_len"]
    many = cores["batch"] * heads * calls
    mask = cores["mask_bytes"] * kv // cores["kv_len"] * times
    width = many * cores["head_dim"] * item_bytes(cores)  # bytes of one token in all calls
    changed = {
        "q_len": q_len,
        "kv_len": kv,
        "heads": heads,
        "calls": calls,
        "flop": cores["flop"] // pairs * many * q_len * kv,
        "mask_bytes": mask,
        "read_bytes": width * (q_len + 2 * kv) + mask,
        "write_bytes": width * q_len,
    }
    out = table.copy()
    out.loc[cores.index, list(changed)] = pd.DataFrame(changed)
    return out
