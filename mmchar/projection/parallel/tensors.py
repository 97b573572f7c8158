"""A language model's layers split over GPUs: each holds a share of every weight matrix, as in Megatron.

The first product of an attention or MLP block is split by columns, the second by rows, so that a block needs one
all-reduce of its output. Norms and residuals run whole on each GPU.

**Source**: Megatron-LM, arXiv 1909.08053, section 3 (two all-reduces per layer in the forward pass).
"""

import re

import pandas as pd

from mmchar.projection.communication import message_rows
from mmchar.projection.parallel.token_parts import attends, must_divide
from mmchar.tracing.attention import item_bytes

_SECOND = re.compile(r"(?:^|\.)(?:o_proj|out_proj|down_proj|fc2|c_proj|wo|dense_4h_to_h)$")  # splits its inputs
_STAGES = re.compile(r"(?:prefill|decode)(?:_variant_\d+)?")


def split_weights(table: pd.DataFrame, many: int, params: dict[str, int]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows of one of ``many`` GPUs that share a language model's weights, and the parameters it holds.

    Only stages that prefill and decode are split. Products whose sizes do not follow from their row (none of the
    zoo's language models has one in its layers) run whole on every GPU.
    """
    module = table["module"].astype(str)
    language = table["stage"].astype(str).str.fullmatch(_STAGES)
    second = language & (table["op"] == "linear") & module.str.contains(_SECOND)
    if not second.any():
        raise ValueError(f"tensor={many}: {table.attrs.get('model', 'the model')} has no language model to split")
    parents = set(module[second].str.rpartition(".")[0])
    inside = language & (module.isin(parents) | module.str.rpartition(".")[0].isin(parents))
    core = inside & attends(table)
    must_divide(f"tensor={many}", many, table["heads"][core], "heads of the language model")
    out = table.copy()
    linear = inside & (table["op"] == "linear")
    whole = inside & ~linear
    for column in ("flop", "read_bytes", "write_bytes", "live_bytes"):
        out.loc[whole, column] = table.loc[whole, column] // many
    out.loc[core, "heads"] = table.loc[core, "heads"] // many
    rows = table[linear]
    weights, known = _weight_bytes(rows, _tokens(table))
    inputs = rows["read_bytes"] - weights
    by_rows = second[linear]
    read = (inputs // many).where(by_rows, inputs) + weights // many
    written = rows["write_bytes"].where(by_rows, rows["write_bytes"] // many)
    for column, values in (("flop", rows["flop"] // many), ("read_bytes", read), ("write_bytes", written)):
        out.loc[linear, column] = values.where(known, rows[column])
    sites = table[second]
    # a ring all-reduce: each GPU sends (and receives) 2 (n - 1) / n of the tensor
    sent_bytes = 2 * (many - 1) * sites["write_bytes"] // many
    reduced = message_rows(sites, "all_reduce", messages=1, sent_bytes=sent_bytes, peers=many - 1)
    split = set(table["component"].astype(str)[second])
    own = {name: -(-n // many) if name in split else n for name, n in params.items()}
    return pd.concat([out, reduced], ignore_index=True), own


def _tokens(table: pd.DataFrame) -> pd.Series:
    """Tokens that a language model's layers are given in each stage, by its name: what attends causally."""
    own = table[table["attention"] == "causal"]
    return (own["batch"] * own["q_len"]).groupby(own["stage"].astype(str)).max()


def _weight_bytes(linear: pd.DataFrame, tokens: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Bytes of the weights that each row of ``linear`` reads, and whether they follow from its numbers.

    ``r`` tokens of ``i`` numbers become ``r`` of ``o``: flop = 2 r i o, written r o, read r i + i o (+ o).
    """
    each = item_bytes(linear) * linear["calls"]
    r = linear["stage"].astype(str).map(tokens).fillna(1).astype("int64")
    written = linear["write_bytes"] // each
    i, o = linear["flop"] // linear["calls"] // (2 * written), written // r
    weights = linear["read_bytes"] // each - r * i
    known = (written % r == 0) & ((weights == i * o) | (weights == i * o + o))
    return weights * each, known
