"""The page to play with: one HTML file that holds its numbers, its chart's library and its script."""

import json
import re
from collections.abc import Sequence
from typing import Any

from mmchar.provenance import SOURCE
from mmchar.study.site.explorer_data import explorer_data
from mmchar.tables.shown import CATEGORY_COLORS

_PARTS = SOURCE / "docs" / "explorer"
MOST_BYTES = 1_500_000


def explorer_page(models: Sequence[str] | None = None, *, progress: bool = False) -> str:
    """The page as HTML, of the models named or of all that can be chosen; ValueError if it is above `MOST_BYTES`."""
    import vl_convert

    data = _short(json.dumps(explorer_data(models, progress=progress), separators=(",", ":")))
    parts = {
        "style": (_PARTS / "page.css").read_text(encoding="utf-8"),
        "library": vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        "data": f"const DATA = {data};",
        "look": f"const CHART = {json.dumps(chart())};\nconst COLORS = {json.dumps(CATEGORY_COLORS)};",
        "script": (_PARTS / "page.js").read_text(encoding="utf-8"),
    }
    page = (_PARTS / "page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"[[{name}]]", text.replace("</script", "<\\/script"))
    if (size := len(page.encode())) > MOST_BYTES:
        raise ValueError(f"the page to play with has {size:,} bytes, above {MOST_BYTES:,}; offer fewer choices")
    return page


def _short(data: str) -> str:
    """JSON whose round numbers are written with an exponent: 123e6 is 123000000."""
    return re.sub(r"(?<=[\[,])(\d+?)(0{3,})(?=[\],])", lambda number: f"{number[1]}e{len(number[2])}", data)


def chart() -> dict[str, Any]:
    """The chart as a Vega-Lite specification: a bar per stage, its parts by category. The script adds the rows."""
    import altair as alt

    bars = alt.Chart(alt.InlineData(values=[], name="rows")).mark_bar(height={"band": 0.8})
    drawn = bars.encode(
        x=alt.X("value:Q", title="", axis=alt.Axis(tickCount=6)),
        y=alt.Y("stage:N", sort=None, title=None, axis=alt.Axis(labelLimit=160)),
        color=alt.Color("category:N", legend=alt.Legend(orient="top", title=None)),
        order=alt.Order("order:Q"),
        tooltip=["stage:N", "category:N", "shown:N", "share:N"],
    )
    return drawn.properties(width="container").to_dict()
