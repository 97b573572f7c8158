"""How the shell commands print and save."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def print_json(value: Any) -> None:
    """Print one object."""
    print(json.dumps(value, indent=1, allow_nan=False))


def print_stages(rows: list[dict[str, Any]], key: str, unit: float, label: str) -> None:
    """Print a line per stage: its repeats and the value of ``key``, in a unit."""
    width = max(len(row["stage"]) for row in rows)
    for row in rows:
        print(f"  {row['stage']:<{width}}  {row['repeats']:>6} x {row[key] / unit:>14,.3f} {label}")


def print_table(table: "pd.DataFrame") -> None:
    """Print a table with aligned columns."""
    lines = [list(table.columns), *table.astype(str).values.tolist()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def save(table: "pd.DataFrame", out: str | None) -> None:
    """Write a table, if a file was asked for."""
    if out:
        from mmchar.tables import write_table

        write_table(out, table)


def check_out(out: str | None, suffixes: tuple[str, ...] = (".parquet", ".csv"), *, name: str = "--out") -> None:
    """Refuse a file that cannot be written, before any work; ``name`` is the option that asked for it."""
    if not out:
        return
    if not out.endswith(suffixes):
        raise ValueError(f"{name} {out!r} is {'neither' if suffixes[1:] else 'not'} {' nor '.join(suffixes)}")
    folder = next(path for path in Path(out).absolute().parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{name} {out!r} cannot be written: {folder.name!r} is no folder that you can write to")
