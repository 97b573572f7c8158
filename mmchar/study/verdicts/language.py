"""Claims of the second paper and of its authors' report on speech: idle time, levers, stages, reordered caches."""

from dataclasses import replace

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import OUTSIDE
from mmchar.projection.decode_costs import token_breakdown, token_cost
from mmchar.projection.uncertainty import AUTOREGRESSIVE
from mmchar.runs.verdicts import NO_GPU
from mmchar.study.projected_ladder import project_ladder
from mmchar.study.verdicts.claim import Claim, Readings, near
from mmchar.study.verdicts.setting import HOST_FREE, ON_H100, Setting, count_once, share, timed, total_s
from mmchar.tables.totals import executions

SMALL = ("llama-2-7b", "codellama-7b", "chameleon-7b", "seamless-m4t-v2-large")
LARGE = ("codellama-34b", "chameleon-34b")
SEAMLESS = "seamless-m4t-v2-large"


def _levers(setting: Setting) -> Readings:
    """Gain of a token, the mean over models."""
    found = {model: project_ladder(model, gpu=setting.gpu).set_index("rung")["value"] for model in SMALL}
    values: Readings = {}
    for levers, last in {"with int8 weights": "quantized", "without quantization": "graphs"}.items():
        for start, first in {"from half precision": "bf16", "from float32": "eager fp32"}.items():
            values[start, levers] = _mean([rungs[first] / rungs[last] for rungs in found.values()])
    return values


def _mean(values: list[float]) -> float:
    return float(np.exp(np.log(values).mean()))


def _idle(setting: Setting) -> Readings:
    """Idle time of a decoding step over the largest share of any operator, the median of models of a size."""
    values: Readings = {}
    for size, models in {"up to 7 B parameters": SMALL, "34 B parameters": LARGE}.items():
        for execution in ("eager", "compiled"):
            found = [_idle_over_next(model, replace(setting, execution=execution)) for model in models]
            values[size, execution] = float(np.median(found))
    return values


def _idle_over_next(model: str, setting: Setting) -> float:
    table = count_once(model, setting.dtype, (("batch", setting.batch),))
    idle = token_cost(table, gpu=setting.gpu, execution=setting.execution, efficiency=setting.efficiency)
    parts = _parts(model, setting)
    return (idle["token_s"] - idle["device_s"]) / parts.drop("Idle").max()


def _parts(model: str, setting: Setting) -> "pd.Series[float]":
    table = count_once(model, setting.dtype, (("batch", setting.batch),))
    return token_breakdown(table, gpu=setting.gpu, execution=setting.execution).set_index("category")["value"]


def _linear_and_attention(setting: Setting) -> Readings:
    values: Readings = {}
    for model in (*SMALL, *LARGE):
        kernels = _parts(model, setting).drop("Idle")
        values[(model,)] = float(100 * (kernels["Linear"] + kernels["Attention"]) / kernels.sum())
    return values


def _decoder_share(setting: Setting) -> Readings:
    """Percent of a speech-to-speech translation in its text decoder."""
    table, stage = _stages(setting)
    decoder, reordered = stage == "decode", _reorders(table)
    return {
        ("the network alone",): share(table, decoder),
        ("with the reordering of its cache",): share(table, decoder | reordered),
    }


def _vocoder_share(setting: Setting) -> Readings:
    table, stage = _stages(setting)
    return {("of transformers' vocoder",): share(table, stage == "vocode")}


def _stages(setting: Setting) -> tuple[pd.DataFrame, "pd.Series[str]"]:
    table = timed(SEAMLESS, setting)
    return table, table["stage"].astype(str)


def _reorders(table: pd.DataFrame) -> "pd.Series[bool]":
    """Rows that reorder the cache of a beam search: index_select, and the copy of the indices before each."""
    return (table["stage"] == OUTSIDE) & table["op"].isin(["index_select", "_to_copy"])


def _compiled_decoder(setting: Setting) -> Readings:
    """How much faster the text decoder is, compiled and replayed from a CUDA graph."""
    slow, fast, stage, again = _both(setting)
    own, kept = total_s(slow, stage == "decode"), total_s(slow, again)
    graph, graph_kept = total_s(fast, stage == "decode"), total_s(fast, again)
    return {
        ("the reordering of its cache as it was",): (own + kept) / (graph + kept),
        ("its reordering in the graph as well",): (own + kept) / (graph + graph_kept),
        ("the network alone",): own / graph,
    }


def _compiled_whole(setting: Setting) -> Readings:
    slow, fast, stage, again = _both(setting)
    values: Readings = {}
    for words, also in {
        "its reordering in the graph as well": again,
        "the reordering as it was": again & False,
    }.items():
        rows = stage.isin(["decode", "vocode"]) | also
        values[(words,)] = total_s(slow) / (total_s(slow, ~rows) + total_s(fast, rows))
    return values


def _compiled_vocoder(setting: Setting) -> Readings:
    slow, fast, stage, _ = _both(setting)
    return {("of transformers' vocoder",): total_s(slow, stage == "vocode") / total_s(fast, stage == "vocode")}


def _both(setting: Setting) -> tuple[pd.DataFrame, pd.DataFrame, "pd.Series[str]", "pd.Series[bool]"]:
    """Eager, and compiled without a host; stages, and the rows that reorder the cache."""
    slow, stage = _stages(setting)
    return slow, timed(SEAMLESS, replace(setting.but(**HOST_FREE), execution="compiled")), stage, _reorders(slow)


def _reorder_calls(_setting: Setting) -> Readings:
    """Calls of index_select per decoding step, outside of the networks."""
    table = count_once(SEAMLESS)
    rows = _reorders(table) & (table["op"] == "index_select")
    return {("in transformers",): float(table.loc[rows, "calls"].sum() / executions(table)["decode"])}


CLAIMS = (
    Claim(
        "c045",
        "Fused attention, compilation, CUDA graphs and int8 weights together make a token {ours} as fast as half"
        " precision in eager mode, in the mean of four models; early exit (LayerSkip) is not among them.",
        _levers,
        near(3.88),
        "x",
        "06_ladder",
        family=AUTOREGRESSIVE,
        decides=(ON_H100,),
        short="all levers together, decoding: 3.88 x",
    ),
    Claim(
        "c046",
        "A step of a 7 B model issues more operators than its kernels take time; weights of 34 B take"
        " longer to read than the host needs.",
        _idle,
        (1, float("inf")),
        "x the next largest part",
        "06_idle",
        family=AUTOREGRESSIVE,
        decides=("no waiting for the host", "host twice as slow", ON_H100),
        short="idle time dominates a decoding step: largest part",
    ),
    Claim(
        "c047",
        "Of the time in which kernels run, linear layers and attention take {low} to {high}, nearly all of it weights.",
        _linear_and_attention,
        (50, 100),
        "%",
        "06_token",
        family=AUTOREGRESSIVE,
        decides=("host twice as slow", ON_H100),
        short="linear and attention, decoding: most kernel time",
    ),
    Claim(
        "c052",
        "One token after the other is most of a translation; with reordering the beam search's cache it is {high}.",
        _decoder_share,
        near(61),
        "%",
        family=AUTOREGRESSIVE,
        decides=("no waiting for the host", "host twice as slow", "compiled", "eager attention", ON_H100),
        short="text decoder of SeamlessM4T: 61 % of time",
    ),
    Claim(
        "c053",
        "The vocoder of transformers runs once, in few kernels; the report's was another code, fairseq2's, which is not"
        " in the zoo.",
        _vocoder_share,
        near(23),
        "%",
        family=AUTOREGRESSIVE,
        decides=("no waiting for the host", "host twice as slow", "convolutions fed half as well", "float32", ON_H100),
        short="vocoder of SeamlessM4T: 23 % of time",
    ),
    Claim(
        "c054",
        "A graph takes the host out of the network ({high}), but not out of what reorders its cache between steps.",
        _compiled_decoder,
        near(2),
        "x",
        family=AUTOREGRESSIVE,
        decides=("host twice as slow", "eager attention", ON_H100),
        short="its text decoder, compiled with CUDA graphs: 2 x",
    ),
    Claim(
        "c055",
        "Projected {ours}; fairseq2's vocoder is not in the zoo, and what held it up has to be seen on a GPU.",
        _compiled_vocoder,
        unit="x",
        verdict=NO_GPU,
    ),
    Claim(
        "c056",
        "Text decoder and vocoder in graphs give {low}, with the reordering of the cache {high}.",
        _compiled_whole,
        near(2.7),
        "x",
        family=AUTOREGRESSIVE,
        decides=("host twice as slow", "eager attention", ON_H100),
        short="all of it, compiled with CUDA graphs: 2.7 x",
    ),
    Claim("c057", "What the host takes per compiled kernel outside of a CUDA graph is assumed here.", verdict=NO_GPU),
    Claim(
        "c058", "The zoo has no fairseq2 vocoder, and the host's time per compiled kernel is assumed.", verdict=NO_GPU
    ),
    Claim(
        "c059",
        "transformers reorders keys and values of 24 layers of self and of cross attention: counted call by call.",
        _reorder_calls,
        (96, 96),
        "calls",
        basis="counted",
        short="calls to reorder the cache: 96 a step",
    ),
)
