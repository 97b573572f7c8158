"""Stacked bars as plain HTML: what a page of the site draws without a script, each beside the table of its numbers."""

from collections.abc import Mapping

import pandas as pd

from mmchar.study.drawing.look import amount
from mmchar.tables.shown import CATEGORY_COLORS


def stacked_bars(table: pd.DataFrame, unit: str) -> str:
    """One bar per row, its parts by column, in percent of the row, with the row's total; a legend above.

    Rows and columns are labels; the columns are operator categories. Numbers are in ``unit``.
    """
    kept = table.loc[:, table.sum() > 0]
    legend = "".join(f'<span><i style="background:{CATEGORY_COLORS[name]}"></i>{name}</span>' for name in kept)
    bars = "".join(_bar(str(label), row.to_dict(), unit) for label, row in kept.iterrows())
    return f'<div class="bars"><p class="legend">{legend}</p>{bars}</div>'


def _bar(label: str, parts: Mapping[str, float], unit: str) -> str:
    total = sum(parts.values())
    shares = {name: 100 * value / total for name, value in parts.items() if value > 0}
    said = ", ".join(f"{name} {share:.0f} %" for name, share in shares.items())
    drawn = "".join(
        f'<i style="width:{share:.2f}%;background:{CATEGORY_COLORS[name]}" title="{name}: {share:.1f} %"></i>'
        for name, share in shares.items()
    )
    described = f"{label}: {amount(total)} {unit}; {said}"
    return (
        f'<div class="bar"><b>{label}</b><span class="parts" role="img" aria-label="{described}">{drawn}</span>'
        f"<span>{amount(total)} {unit}</span></div>"
    )
