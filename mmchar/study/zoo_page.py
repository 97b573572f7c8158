"""The zoo on one page: sizes against the published ones, what adaptors cost, what video models attend to."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from mmchar.counting.frame_shares import frame_shares
from mmchar.counting.operator_table import count
from mmchar.counting.seqlen import seen
from mmchar.files import atomic_write
from mmchar.models.loading import ModelSpec, get_spec, list_models, zoo_names
from mmchar.tables.stored import markdown

# What stands between the image encoder and the language model, by the class that holds it.
ADAPTORS = {
    "LinearAdaptor": "linear",
    "LlavaForConditionalGeneration": "MLP",
    "LlavaNextForConditionalGeneration": "MLP",
    "Blip2ForConditionalGeneration": "Q-Former",
    "IdeficsForVisionText2Text": "resampler, then cross-attention",
    "MllamaForConditionalGeneration": "linear, then cross-attention",
    **dict.fromkeys(
        ("Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"),
        "merger of 2 x 2 patches",  # a module of the tower, so it runs within its stage
    ),
    "ChameleonForConditionalGeneration": "none: codes of a VQ tokenizer",
}
_ITEM_BYTES = 2  # bfloat16
_UNITS = {"audio_s": "seconds of audio"}


def zoo_table(models: Sequence[str] | None = None, *, progress: bool = False) -> pd.DataFrame:
    """Published against built parameters of the models (default: all), and the FLOP of one default generation.

    A first count of the whole zoo takes minutes. Columns: ``model, family, year, published_params, unpublished`` as in
    `mmchar.list_models`; ``built_params``, of all components; ``difference``, built / published - 1 of those components
    of which a count is published (NaN for none); ``reason`` where a component is off by more than 2 %; ``tflop`` of one
    generation; ``request``.
    """
    listed = list_models().set_index("model")
    names = list(listed.index) if models is None else _known(models)
    counted = [_counted(name) for name in tqdm(names, desc="count", disable=not progress)]
    table = listed.loc[names].drop(columns=["request", "summary"]).join(pd.DataFrame(counted, index=names))
    return table.assign(request=listed["request"]).rename_axis("model").reset_index()


def adaptor_table(models: Sequence[str] | None = None) -> pd.DataFrame:
    """What an image costs the language model, by the adaptor that brings it there; at default requests.

    Where the language model attends to the image beside its own text, its keys and values are ``cross_kv_bytes``; the
    library keeps them for Llama 3.2 Vision and makes them anew at each token for IDEFICS. Columns: ``model``,
    ``adaptor`` (a value of :data:`ADAPTORS`), ``image_tokens`` of one image that the language model sees,
    ``adaptor_tflop``, ``prefill_tflop`` (image and text tokens), and after the prefill, in bfloat16,
    ``kv_cache_bytes`` and ``cross_kv_bytes``.
    """
    rows = pd.DataFrame([row for row in map(_adaptor_row, _specs(models)) if row])
    return rows.sort_values(["adaptor", "image_tokens"], ignore_index=True) if len(rows) else rows


def frame_table(models: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of `frame_shares` of all video models, with a column ``model`` before them."""
    shares = {spec.name: frame_shares(count(spec.name)) for spec in _specs(models) if "frames" in spec.request}
    if not shares:
        return pd.DataFrame()
    table = pd.concat(shares, names=["model"]).reset_index("model")
    return table.sort_values(["how", "model"], kind="stable", ignore_index=True)


def write_page(path: str | Path, models: Sequence[str] | None = None, *, zoo: pd.DataFrame | None = None) -> Path:
    """The path of a markdown page with the three tables, of all models or of those named; an empty one is left out.

    ``zoo`` is their `zoo_table`, where it is at hand.
    """
    zoo = zoo_table(models) if zoo is None else zoo
    adaptors, frames = adaptor_table(models), frame_table(models)
    parts = ["# The zoo", _INTRO.format(models=len(zoo)), "## Models", _ZOO_TEXT, markdown(_zoo_cells(zoo))]
    off = zoo[zoo["reason"] != ""]
    if len(off):
        lines = "- **" + off["model"] + "**: " + off["reason"]
        parts += ["\\* A component is off by more than 2 %, and why:", "\n".join(lines)]
    if len(adaptors):
        parts += ["## Vision-language models by adaptor", _ADAPTOR_TEXT, markdown(_adaptor_cells(adaptors))]
    if len(frames):
        parts += ["## What video models attend to", _FRAME_TEXT, markdown(_frame_cells(frames))]
    return atomic_write(path, "\n\n".join(parts) + "\n")


def published_cell(params: int, unpublished: Sequence[str]) -> str:
    """Published parameters as the page writes them: ``1.07 B``, a ``+`` where a component's count is not published."""
    return (f"{params / 1e9:.2f} B" + " +" * bool(unpublished)) if params else "none"


def _known(models: Sequence[str]) -> list[str]:
    for name in sorted(set(models) - set(zoo_names())):
        raise ValueError(f"unknown model {name!r}; the page holds models of the zoo, which 'mmchar models' lists")
    return list(models)


def _specs(models: Sequence[str] | None) -> list[ModelSpec]:
    return [get_spec(name) for name in (zoo_names() if models is None else _known(models))]


def _counted(name: str) -> dict[str, Any]:
    table = count(name)
    built = table.attrs["params"]
    parts = {role: part for role, part in get_spec(name).components.items() if part.published_params}
    published = {role: part.published_params or 0 for role, part in parts.items()}
    roles: dict[str, list[str]] = {}  # of each reason
    for role, part in parts.items():
        if abs(built[role] / published[role] - 1) > 0.02:
            roles.setdefault(part.params_reason, []).append(role)
    same = sum(built[role] for role in parts)
    return {
        "built_params": sum(built.values()),
        "difference": same / sum(published.values()) - 1 if parts else math.nan,
        "reason": "; ".join(f"{', '.join(names)}: {why}" for why, names in roles.items()),
        "tflop": float((table["flop"].astype(float) * table["repeats"]).sum() / 1e12),
    }


def _adaptor_row(spec: ModelSpec) -> dict[str, Any] | None:
    """The row of a model that writes about an image; None of any other."""
    adaptor = next((ADAPTORS[part.cls] for part in spec.components.values() if part.cls in ADAPTORS), None)
    if adaptor is None or "new_tokens" not in spec.request:
        return None
    table, request = count(spec.name), spec.resolve()
    prefill = seen(table).query("stage == 'prefill'")
    across = prefill.loc[prefill["attention"] == "cross", "kv_len"]  # the image stands in the sequence, or next to it
    text = request.prompt_tokens + spec.pipeline.arguments.get("marks", 0) * request.images
    stage, tflop = table["stage"].astype(str), table["flop"].astype(float) * table["repeats"] / 1e12
    merging = stage.eq("encode_image") & table["module"].astype(str).str.contains("merger")
    return {
        "model": spec.name,
        "adaptor": adaptor,
        "image_tokens": int(across.max() if len(across) else prefill["q_len"].max() - text),
        "adaptor_tflop": float(tflop[stage.str.startswith("project_image") | merging].sum()),
        "prefill_tflop": float(tflop[stage == "prefill"].sum()),
        **kv_bytes(spec.components[table.loc[stage == "prefill", "component"].iloc[0]].config, prefill),
    }


def kv_bytes(config: Mapping[str, Any], prefill: pd.DataFrame) -> dict[str, int]:
    """Bytes of keys and values after a prefill: 2 * layers * kv_heads * head_dim * tokens * item, of each attention."""
    text = config.get("text_config", config)
    kv_heads = text.get("num_key_value_heads") or text["num_attention_heads"]
    size = 2 * prefill["batch"] * prefill["calls"] * kv_heads * prefill["head_dim"] * prefill["kv_len"] * _ITEM_BYTES
    held = {"kv_cache_bytes": "causal", "cross_kv_bytes": "cross"}
    return {name: int(size[prefill["attention"] == kind].sum()) for name, kind in held.items()}


def _zoo_cells(zoo: pd.DataFrame) -> pd.DataFrame:
    percent = (100 * zoo["difference"]).round(1) + 0.0  # no -0.0
    star = zoo["reason"].map(lambda reason: " *" if reason else "")
    published = map(published_cell, zoo["published_params"], zoo["unpublished"])
    return zoo[["model", "family", "year"]].assign(
        published=list(published),
        built=(zoo["built_params"] / 1e9).map("{:.2f} B".format),
        difference=(percent.map("{:+.1f} %".format) + star).where(percent.notna(), ""),
        TFLOP=zoo["tflop"].map(_figures),
        request=zoo["request"].map(_request_text),
    )


def _adaptor_cells(table: pd.DataFrame) -> pd.DataFrame:
    return table[["model", "adaptor"]].assign(
        **{
            "image tokens": table["image_tokens"],
            "adaptor GFLOP": (1e3 * table["adaptor_tflop"]).map(_figures),
            "prefill GFLOP": (1e3 * table["prefill_tflop"]).map(_figures),
            "KV cache MB": (table["kv_cache_bytes"] / 1e6).map(_figures),
            "image K/V MB": (table["cross_kv_bytes"] / 1e6).map(_figures),
        }
    )


def _frame_cells(table: pd.DataFrame) -> pd.DataFrame:
    cells = table.drop(columns="pairs")
    shares = list(cells.columns[cells.columns.get_loc("same_frame") :])
    cells[shares] = (100 * cells[shares]).map("{:.1f}".format)
    return cells.rename(columns=lambda name: name.replace("_", " ") + " %" * (name in shares))


def _figures(value: float) -> str:
    """Three significant figures, without an exponent."""
    return f"{float(f'{value:.3g}'):,.6f}".rstrip("0").rstrip(".") if value < 100 else f"{value:,.0f}"


def _request_text(request: Mapping[str, Any]) -> str:
    """The request without a batch of one and one image; steps of several denoisers as 25/25/7."""
    given = {name: value for name, value in request.items() if (name, value) not in (("batch", 1), ("images", 1))}
    if isinstance(steps := given.get("steps"), tuple | list):
        given["steps"] = "/".join(map(str, steps))
    return ", ".join(f"{_UNITS.get(name, name.replace('_', ' '))} {value}" for name, value in given.items())


_INTRO = """{models} models, counted without running them; one multiply-add is 2 FLOP.
`mmchar zoo --out docs/zoo.md` (or `make zoo-page`) writes this page."""
_ZOO_TEXT = """*Published* adds the parameters that the authors state, with a + where they state none for a component;
*built* counts all components, and *difference* compares those of which both are known. *TFLOP* is one generation at
the default request (batch 1 and one image in a prompt where it is not said), from the prompt to the finished image,
video, sound or text."""
_ADAPTOR_TEXT = """Between image encoder and language model stands an adaptor, which costs little beside the prefill;
what it decides is how many tokens of the image the language model then carries, in its prefill and in its KV cache.
With cross-attention these tokens stay outside of the sequence: *image K/V* is what they take beside the cache
(bfloat16, after the prefill of one image and the default prompt)."""
_FRAME_TEXT = """A full 3-D model has no temporal module: there, *temporal* is the share of query-key pairs of different
frames, either of all pairs (the rest is within a frame, or has a text token in it) or of the video's own pairs. In a
factorized model the same columns hold its spatial, temporal and cross attention. *Frames* are those of the latent."""
