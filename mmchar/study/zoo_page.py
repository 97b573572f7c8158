"""The zoo on one page: sizes against the published ones, what adaptors cost, what video models attend to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from mmchar.counting.frame_shares import frame_shares
from mmchar.counting.operator_table import count
from mmchar.counting.seqlen import seen
from mmchar.files import atomic_write
from mmchar.models.loading import ModelSpec, get_spec, list_models, zoo_names

if TYPE_CHECKING:
    import pandas as pd

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


def zoo_table(models: Sequence[str] | None = None, *, progress: bool = False) -> "pd.DataFrame":
    """Published against built parameters of every model, and the FLOP of one generation at its default request.

    Parameters
    ----------
    models : sequence of str, optional
        Zoo names; by default all.
    progress : bool
        Draw a bar; a count of the whole zoo takes minutes, the next one seconds.

    Returns
    -------
    DataFrame
        ``model``, ``family``, ``year``; ``published_params`` (0 where nothing is published) and ``unpublished`` (the
        components that it misses), as in `mmchar.list_models`; ``built_params``, of all components;
        ``difference``, built / published - 1 of those components of which a count is published (NaN for none);
        ``reason`` where a component is off by more than 2 %; ``tflop`` of one generation; ``request``.
    """
    import pandas as pd

    listed = list_models().set_index("model", drop=False)
    names = list(listed.index) if models is None else _known(models)
    rows = []
    for name in tqdm(names, desc="count", disable=not progress):
        table = count(name)
        params = table.attrs["params"]
        tflop = float((table["flop"].astype(float) * table["repeats"]).sum() / 1e12)
        built = {"built_params": sum(params.values()), **_against_published(get_spec(name), params), "tflop": tflop}
        rows.append({**listed.loc[name].drop(["request", "summary"]), **built, "request": listed.at[name, "request"]})
    return pd.DataFrame(rows)


def adaptor_table(models: Sequence[str] | None = None) -> "pd.DataFrame":
    """What an image costs the language model, by the adaptor that brings it there; at default requests.

    Where the language model attends to the image beside its own text, its keys and values are ``cross_kv_bytes``; the
    library keeps them for Llama 3.2 Vision and makes them anew at each token for IDEFICS.

    Parameters
    ----------
    models : sequence of str, optional
        Zoo names; those that take no image into a language model are left out. By default all.

    Returns
    -------
    DataFrame
        ``model``, ``adaptor`` (a value of :data:`ADAPTORS`), ``image_tokens`` of one image that the language model
        sees, ``adaptor_tflop``, ``prefill_tflop`` (image and text tokens), and after the prefill, in bfloat16,
        ``kv_cache_bytes`` and ``cross_kv_bytes``.
    """
    import pandas as pd

    specs = [get_spec(name) for name in (zoo_names() if models is None else _known(models))]
    rows = pd.DataFrame([row for spec in specs for row in _adaptor_rows(spec)])
    return rows.sort_values(["adaptor", "image_tokens"], ignore_index=True) if len(rows) else rows


def frame_table(models: Sequence[str] | None = None) -> "pd.DataFrame":
    """The rows of `frame_shares` of all video models, with a column ``model`` before them."""
    import pandas as pd

    specs = [get_spec(name) for name in (zoo_names() if models is None else _known(models))]
    shares = [frame_shares(count(spec.name)).assign(model=spec.name) for spec in specs if "frames" in spec.request]
    if not shares:
        return pd.DataFrame()
    table = pd.concat(shares, ignore_index=True)
    table.insert(0, "model", table.pop("model"))
    return table.sort_values(["how", "model"], kind="stable", ignore_index=True)


def write_page(path: str | Path, models: Sequence[str] | None = None, *, progress: bool = False) -> Path:
    """The path of a markdown page with the three tables, of all models or of those named; an empty one is left out."""
    zoo, adaptors, frames = zoo_table(models, progress=progress), adaptor_table(models), frame_table(models)
    parts = [f"# The zoo\n\n{_INTRO.format(models=len(zoo))}"]
    parts += [f"## Models\n\n{_ZOO_TEXT}\n\n{markdown(_zoo_cells(zoo))}", _reasons(zoo)]
    if len(adaptors):
        cells = markdown(_adaptor_cells(adaptors))
        parts.append(f"## Vision-language models by adaptor\n\n{_ADAPTOR_TEXT}\n\n{cells}")
    if len(frames):
        parts.append(f"## What video models attend to\n\n{_FRAME_TEXT}\n\n{markdown(_frame_cells(frames))}")
    return atomic_write(path, "\n\n".join(filter(None, parts)) + "\n")


def markdown(table: "pd.DataFrame") -> str:
    """The table in markdown: numbers to the right, text to the left, a bar in a cell escaped."""
    numbers = [kind.kind in "iuf" or _are_numbers(table[name]) for name, kind in table.dtypes.items()]
    lines = [list(table.columns), ["--:" if number else ":--" for number in numbers], *table.values.tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def published_cell(params: int, unpublished: Sequence[str]) -> str:
    """Published parameters as the page writes them: ``1.07 B``, a ``+`` where a component's count is not published."""
    return (f"{params / 1e9:.2f} B" + " +" * bool(unpublished)) if params else "none"


def _known(models: Sequence[str]) -> list[str]:
    for name in sorted(set(models) - set(zoo_names())):
        raise ValueError(f"unknown model {name!r}; the page holds models of the zoo, which 'mmchar models' lists")
    return list(models)


def _against_published(spec: ModelSpec, params: Mapping[str, int]) -> dict[str, Any]:
    parts = {role: part for role, part in spec.components.items() if part.published_params}
    published = sum(part.published_params or 0 for part in parts.values())
    roles: dict[str, list[str]] = {}  # of each reason
    for role, part in parts.items():
        if abs(params[role] / (part.published_params or 1) - 1) > 0.02:
            roles.setdefault(part.params_reason, []).append(role)
    reason = "; ".join(f"{', '.join(same)}: {why}" for why, same in roles.items())
    ours = sum(params[role] for role in parts)
    return {"difference": ours / published - 1 if published else float("nan"), "reason": reason}


def _adaptor_rows(spec: ModelSpec) -> Iterator[dict[str, Any]]:
    """The row of a model that writes about an image; none of any other."""
    adaptor = next((ADAPTORS[part.cls] for part in spec.components.values() if part.cls in ADAPTORS), None)
    if adaptor is None or "new_tokens" not in spec.request:
        return
    table, request = count(spec.name), spec.resolve()
    prefill = seen(table).query("stage == 'prefill'")
    stage = table["stage"].astype(str)
    flop = table["flop"].astype(float) * table["repeats"]
    merging = stage.eq("encode_image") & table["module"].astype(str).str.contains("merger")
    yield {
        "model": spec.name,
        "adaptor": adaptor,
        "image_tokens": _image_tokens(prefill, request.prompt_tokens + spec.pipeline.arguments.get("marks", 0)),
        "adaptor_tflop": float(flop[stage.str.startswith("project_image") | merging].sum()) / 1e12,
        "prefill_tflop": float(flop[stage == "prefill"].sum()) / 1e12,
        **_kv_bytes(spec.components[table.loc[stage == "prefill", "component"].iloc[0]].config, prefill),
    }


def _image_tokens(prefill: "pd.DataFrame", beside: int) -> int:
    """Tokens of an image that a prefill sees: in its sequence, ``beside`` other tokens, or next to it."""
    across = prefill.loc[prefill["attention"] == "cross", "kv_len"]
    return int(across.max() if len(across) else prefill["q_len"].max() - beside)


def _kv_bytes(config: Mapping[str, Any], prefill: "pd.DataFrame") -> dict[str, int]:
    """Bytes of keys and values after a prefill: 2 * layers * kv_heads * head_dim * tokens * item, of each attention."""
    text = config.get("text_config", config)
    kv_heads = text.get("num_key_value_heads") or text["num_attention_heads"]
    size = 2 * prefill["batch"] * prefill["calls"] * kv_heads * prefill["head_dim"] * prefill["kv_len"] * _ITEM_BYTES
    held = {"kv_cache_bytes": "causal", "cross_kv_bytes": "cross"}
    return {name: int(size[prefill["attention"] == kind].sum()) for name, kind in held.items()}


def _zoo_cells(zoo: "pd.DataFrame") -> "pd.DataFrame":
    import pandas as pd

    pairs = zip(zoo["published_params"], zoo["unpublished"], strict=True)
    return pd.DataFrame(
        {
            "model": zoo["model"],
            "family": zoo["family"],
            "year": zoo["year"],
            "published": [published_cell(*pair) for pair in pairs],
            "built": (zoo["built_params"] / 1e9).map("{:.2f} B".format),
            "difference": [_difference_cell(*pair) for pair in zip(zoo["difference"], zoo["reason"], strict=True)],
            "TFLOP": zoo["tflop"].map(_figures),
            "request": zoo["request"].map(_request_text),
        }
    )


def _difference_cell(difference: float, reason: str) -> str:
    percent = round(100 * difference, 1) + 0.0  # no -0.0
    return "" if math.isnan(difference) else f"{percent:+.1f} %" + " *" * bool(reason)


def _reasons(zoo: "pd.DataFrame") -> str:
    off = zoo[zoo["reason"] != ""]
    lines = [f"- **{name}**: {reason}" for name, reason in zip(off["model"], off["reason"], strict=True)]
    return "\n".join(["\\* A component is off by more than 2 %, and why:\n", *lines]) if lines else ""


def _adaptor_cells(table: "pd.DataFrame") -> "pd.DataFrame":
    flop, size = ["adaptor_tflop", "prefill_tflop"], ["kv_cache_bytes", "cross_kv_bytes"]
    cells = table.assign(**{name: (1e3 * table[name]).map(_figures) for name in flop})
    cells = cells.assign(**{name: (table[name] / 1e6).map(_figures) for name in size})
    heads = ["adaptor GFLOP", "prefill GFLOP", "KV cache MB", "image K/V MB"]
    return cells.rename(columns={"image_tokens": "image tokens", **dict(zip([*flop, *size], heads, strict=True))})


def _frame_cells(table: "pd.DataFrame") -> "pd.DataFrame":
    shares = {name: name.replace("_", " ") + " %" for name in table.columns[table.columns.get_loc("same_frame") :]}
    cells = table.drop(columns="pairs").assign(**{name: (100 * table[name]).map("{:.1f}".format) for name in shares})
    return cells.rename(columns={"tokens_per_frame": "tokens per frame", "text_tokens": "text tokens", **shares})


def _figures(value: float) -> str:
    """Three significant figures, without an exponent."""
    return f"{float(f'{value:.3g}'):,.6f}".rstrip("0").rstrip(".") if value < 100 else f"{value:,.0f}"


def _request_text(request: Mapping[str, Any]) -> str:
    """The request without a batch of one; steps of several denoisers as 25/25/7."""
    given = {name: value for name, value in request.items() if (name, value) != ("batch", 1)}
    if isinstance(steps := given.get("steps"), tuple | list):
        given["steps"] = "/".join(map(str, steps))
    return ", ".join(f"{_UNITS.get(name, name.replace('_', ' '))} {value}" for name, value in given.items())


def _are_numbers(column: "pd.Series") -> bool:
    return all(str(cell)[:1] in "+-0123456789" for cell in column if str(cell))


_INTRO = """{models} models, counted without running them; one multiply-add is 2 FLOP.
`mmchar zoo --out docs/zoo.md` (or `make zoo-page`) writes this page."""
_ZOO_TEXT = """*Published* adds the parameters that the authors state, with a + where they state none for a component;
*built* counts all components, and *difference* compares those of which both are known. *TFLOP* is one generation at
the default request (batch 1 where it is not said), from the prompt to the finished image, video, sound or text."""
_ADAPTOR_TEXT = """Between image encoder and language model stands an adaptor, which costs little beside the prefill;
what it decides is how many tokens of the image the language model then carries, in its prefill and in its KV cache.
With cross-attention these tokens stay outside of the sequence: *image K/V* is what they take beside the cache
(bfloat16, after the prefill of one image and the default prompt)."""
_FRAME_TEXT = """A full 3-D model has no temporal module: there, *temporal* is the share of query-key pairs of different
frames, either of all pairs (the rest is within a frame, or has a text token in it) or of the video's own pairs. In a
factorized model the same columns hold its spatial, temporal and cross attention. *Frames* are those of the latent."""
