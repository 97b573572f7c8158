"""Figures on disk: svg, png, the table that is drawn, and a caption that says what it was made from."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchar.files import atomic_write, check_file_name
from mmchar.provenance import versions
from mmchar.tables.stored import write_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


MOST_ROWS = 10_000  # a longer table is not written beside its figure; the result has it as parquet


def save_figure(
    figure: "Figure", name: str, caption: str, *, figures_dir: str | Path, table: "pd.DataFrame"
) -> list[Path]:
    """Paths of the figure as SVG and PNG (150 dpi), of ``name.md``, its caption, and of the table drawn as CSV.

    `caption` says what is to be seen, with units; models, GPUs and kinds of time are read from columns of the table.
    """
    path = Path(figures_dir) / f"{check_file_name(name)}.svg"
    written = [atomic_write(path.with_suffix(end), figure_bytes(figure, end)) for end in (".svg", ".png")]
    written.append(atomic_write(path.with_suffix(".md"), f"{caption.strip()}\n\n{_made_from(table)}\n"))
    return written + [write_table(path.with_suffix(".csv"), table)] * (len(table) <= MOST_ROWS)


def figure_bytes(figure: "Figure", suffix: str) -> bytes:
    """The figure as ``.svg`` or ``.png`` (150 dpi); the same figure gives the same bytes: no dates, no random ids."""
    import matplotlib

    options: dict[str, Any] = {"metadata": {"Date": None}} if suffix == ".svg" else {"dpi": 150}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mmchar"}):
        figure.savefig(buffer, format=suffix[1:], bbox_inches="tight", **options)
    return buffer.getvalue()


def write_figure(figure: "Figure", path: str | Path) -> Path:
    """The path of a figure that stands alone, as PNG or SVG by suffix; the figure is closed."""
    from matplotlib import pyplot as plt

    content = figure_bytes(figure, Path(path).suffix)
    plt.close(figure)
    return atomic_write(Path(path), content)


def _made_from(table: "pd.DataFrame") -> str:
    """One sentence: models, GPUs, kinds of time, the runs in ``run_id``, and versions."""
    columns = {"models": "model", "GPU": "gpu", "time": "time_kind", "run": "run_id"}
    found = {label: table[column].dropna() for label, column in columns.items() if column in table}
    lists = {label: [str(cell) for cell in cells.unique() if cell != ""] for label, cells in found.items()}
    parts = [f"{label}: {', '.join(dict.fromkeys(cells))}" for label, cells in lists.items() if cells]
    made_by = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    return "Made from " + "; ".join([*parts, f"versions: {made_by}"]) + "."
