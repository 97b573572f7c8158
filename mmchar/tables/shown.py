"""An operator table that shows itself in a notebook: totals, stages, and a bar of categories. It stays a DataFrame."""

from collections.abc import Callable
from html import escape

import pandas as pd

from mmchar.tables.totals import executions, totals

# In the order of bars and legends; the hues are those of seaborn's palette "colorblind".
CATEGORY_COLORS = {
    "Attention": "#d55e00",
    "Convolution": "#0173b2",
    "Linear": "#de8f05",
    "Normalization": "#029e73",
    "Elementwise": "#ece133",
    "Embedding": "#ca9161",
    "Data movement": "#56b4e9",
    "Communication": "#fbafe4",
    "Uncounted": "#949494",
    "Idle": "#d9d9d9",  # no operator: the GPU waits for its host
}
_SIZES = ("height", "width", "frames", "steps", "guidance", "batch", "prompt_tokens", "new_tokens", "images")


class OperatorTable(pd.DataFrame):
    """The operator table of one generation, whole; what is selected, grouped or computed from it is a plain DataFrame.

    In a notebook it shows totals by stage and by category; ``table.head()`` shows its rows.
    """

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    def _repr_html_(self) -> str:
        if not {"stage", "category", "repeats", "flop", "time_s"} <= set(self.columns) or self.empty:
            return str(pd.DataFrame(self)._repr_html_())  # a column was taken out of it
        return summary_html(self)


def whole(table: pd.DataFrame) -> OperatorTable:
    """The table as one that shows itself."""
    out = OperatorTable(table)
    out.attrs = table.attrs
    return out


def summary_html(table: pd.DataFrame) -> str:
    """A generation in a screenful of HTML that needs no style sheet and no script."""
    timed = bool(table["time_s"].notna().any())
    measure, unit = ("time_s", "s") if timed else ("flop", "FLOP")
    kinds = [kind for kind in table["time_kind"].astype(str).unique() if kind]
    what = [f"{' and '.join(kinds)} time" if timed else "counted"]
    what += [f"on {table.attrs['gpu']}"] if table.attrs.get("gpu") else []
    categories = totals(table, ["category"]).set_index("category")[measure]
    rows = f"{len(table):,} rows of operator calls × {table.shape[1]} columns"
    return (
        f"<div><p><b>{escape(str(table.attrs.get('model', 'a generation')))}</b> · {escape(_asked(table))}"
        f" · {escape(' '.join(what))}</p>{_stages(table, timed)}{_bar(categories, unit)}"
        f"<p><small>{rows}; <code>.head()</code> shows them, <code>.attrs</code> what was asked.</small></p></div>"
    )


def _asked(table: pd.DataFrame) -> str:
    request = table.attrs.get("request") or {}
    said = [f"{name.replace('_', ' ')} {request[name]}" for name in _SIZES if request.get(name) not in (None, 1)]
    tiny = ["scaled-down variant"] if table.attrs.get("tiny") else []
    return ", ".join([*tiny, *said, str(table.attrs.get("dtype", ""))]).rstrip(", ")


def _stages(table: pd.DataFrame, timed: bool) -> str:
    sums, runs = totals(table, ["stage"]).set_index("stage"), executions(table)
    sums = pd.concat([sums, sums.sum().to_frame("total").T])
    heads = ["stage", "runs", "TFLOP", "GB moved", *(["seconds"] if timed else [])]
    cells = [
        [str(name), f"{runs[name]:,}" if name in runs else "", f"{row.flop / 1e12:,.3f}", f"{row.bytes / 1e9:,.2f}"]
        + ([f"{row.time_s:,.4f}"] if timed else [])
        for name, row in zip(sums.index, sums.itertuples(), strict=True)
    ]
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _bar(totals: "pd.Series[float]", unit: str) -> str:
    """Shares as one stacked bar, and a legend with the shares in words, so that colour alone says nothing."""
    shares = 100 * totals / totals.sum() if totals.sum() else 0 * totals
    shown = [(name, shares[name]) for name in [*CATEGORY_COLORS, *shares.index.difference(list(CATEGORY_COLORS))]
             if shares.get(name, 0) > 0]  # fmt: skip
    color = {name: CATEGORY_COLORS.get(name, "#949494") for name, _ in shown}
    box = "display:inline-block;height:{0};background:{1};"
    bar = "".join(
        f'<span title="{escape(name)} {share:.1f} %" style="{box.format("14px", color[name])}width:{share:.2f}%">'
        "</span>"
        for name, share in shown
    )
    legend = " ".join(
        f'<span style="white-space:nowrap"><span style="{box.format("0.7em", color[name])}width:0.7em"></span>'
        f" {escape(name)} {share:.0f} %</span>"
        for name, share in shown
    )
    label = f"share of {unit} by category"
    return (
        f'<div role="img" aria-label="{label}" style="display:flex;max-width:640px">{bar}</div><p>{label}: {legend}</p>'
    )
