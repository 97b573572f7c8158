"""What the shell commands answer, and how tables are shown and saved."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mmchar.files import can_write, nearest_there
from mmchar.tables.perfetto import write_perfetto
from mmchar.tables.stored import write_table


class Answer(NamedTuple):
    """What a command says: a value as JSON to a script, or a text to a reader; and its exit code."""

    value: Any
    text: str
    code: int = 0

    def print(self, *, as_json: bool) -> None:
        """Print the one or the other."""
        if as_json:
            print(json.dumps(self.value, indent=1, allow_nan=False))
        elif self.text:
            print(self.text)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows for JSON; what is missing is null."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def aligned(table: pd.DataFrame) -> str:
    """The table as text, its columns aligned to the left; what is missing is blank."""
    cells = table.astype(object).where(table.notna(), "")
    lines = [list(table.columns), *cells.astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def formatted(column: pd.Series, pattern: str) -> pd.Series:
    """The numbers of a column as texts, e.g. by ``{:.2f} B``; empty where one is missing."""
    return column.astype(float).map(pattern.format, na_action="ignore").astype(object).fillna("")


def stage_lines(rows: list[dict[str, Any]], key: str, unit: float, label: str) -> list[str]:
    """A line per stage: its repeats, the value of ``key``, in a unit, and its MFU where there is one."""
    width = max(len(row["stage"]) for row in rows)
    used = [f"  {row['mfu']:4.0%} MFU" if row.get("mfu") else "" for row in rows]
    return [
        f"  {row['stage']:<{width}}  {row['repeats']:>6} x {row[key] / unit:>14,.3f} {label}{mfu}"
        for row, mfu in zip(rows, used, strict=True)
    ]


def save(table: pd.DataFrame, out: str | None, perfetto: str | None = None) -> None:
    """Write a table, and a trace of an operator table, if files were asked for."""
    if out:
        write_table(out, table)
    if perfetto:
        write_perfetto(perfetto, table)


def check_out(out: str | None, suffixes: tuple[str, ...] = (".parquet", ".csv"), *, name: str = "--out") -> None:
    """Refuse a file that cannot be written, before any work; ``name`` is the option that asked for it."""
    if not out:
        return
    if not out.endswith(suffixes):
        raise ValueError(f"{name} {out!r} is {'neither' if suffixes[1:] else 'not'} {' nor '.join(suffixes)}")
    folder = nearest_there(Path(out).absolute().parent)
    if not can_write(folder):
        raise ValueError(f"{name} {out!r} cannot be written: {folder.name!r} is no folder that you can write to")
