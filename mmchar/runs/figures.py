"""Figures on disk: svg, png, and a caption that says what the figure was made from."""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchar.files import atomic_write, check_file_name
from mmchar.provenance import versions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def save_figure(
    figure: "Figure", name: str, caption: str, *, figures_dir: str | Path, tables: Iterable["pd.DataFrame"] = ()
) -> Path:
    """The SVG's path; beside it go a PNG (150 dpi) and ``name.md``: the caption, and what `tables` say it is made from.

    `caption` says what is to be seen, with units; models, GPUs and kinds of time are read from columns of the tables.
    """
    path = Path(figures_dir) / f"{check_file_name(name)}.svg"
    for suffix in (".svg", ".png"):
        atomic_write(path.with_suffix(suffix), figure_bytes(figure, suffix))
    atomic_write(path.with_suffix(".md"), f"{caption.strip()}\n\n{_made_from(list(tables))}\n")
    return path


def figure_bytes(figure: "Figure", suffix: str) -> bytes:
    """The figure as ``.svg`` or ``.png`` (150 dpi); the same figure gives the same bytes: no dates, no random ids."""
    import matplotlib

    options: dict[str, Any] = {"metadata": {"Date": None}} if suffix == ".svg" else {"dpi": 150}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mmchar"}):
        figure.savefig(buffer, format=suffix[1:], bbox_inches="tight", **options)
    return buffer.getvalue()


def _made_from(tables: list["pd.DataFrame"]) -> str:
    """One sentence: models, GPUs, kinds of time, the run that draws the figure, those in ``run_id``, and versions."""

    def seen(column: str) -> list[str]:
        cells = (str(cell) for table in tables if column in table.columns for cell in table[column].dropna().unique())
        return [cell for cell in cells if cell]

    own = os.environ.get("MMCHAR_RUN_ID")  # set by a batch; a figure drawn by hand belongs to no run
    lists = {"models": seen("model"), "GPU": seen("gpu"), "time": seen("time_kind")}
    lists["run"] = ([own] if own else []) + seen("run_id")
    parts = [f"{label}: {', '.join(dict.fromkeys(cells))}" for label, cells in lists.items() if cells]
    made_by = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    return "Made from " + "; ".join([*parts, f"versions: {made_by}"]) + "."
