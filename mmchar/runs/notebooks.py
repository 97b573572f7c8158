"""Notebook files: their cells, where an executed one ended, and the copy of it that readers get."""

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmchar.files import atomic_write
from mmchar.provenance import SOURCE

Notebook = dict[str, Any]
_STYLED = re.compile(r'<table id=\\?"(T_[0-9a-f]{5})\\?"')  # pandas names a styled table anew in every run


def load_notebook(path: Path) -> Notebook:
    """The notebook in a file; ValueError if there is none, or it is no JSON with a list of cells."""
    try:
        notebook = json.loads(path.read_bytes())
        if all(isinstance(cell["cell_type"], str) for cell in notebook["cells"]):
            return notebook
    except OSError as error:
        raise ValueError(f"cannot read {path.name}: {error.strerror or error}; give an existing .ipynb") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f"{path.name} is not a notebook (JSON with a list of cells); save it again from Jupyter")


def cell_source(cell: Notebook) -> str:
    """The text of a cell."""
    return _joined(cell.get("source", ""))


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def cell_tags(cell: Notebook) -> list[str]:
    """The tags of a cell."""
    return cell.get("metadata", {}).get("tags", [])


def is_added(cell: Notebook) -> bool:
    """Whether papermill put the cell in, so that it has no number in the notebook as written."""
    return bool({"injected-parameters", "papermill-error-cell-tag"} & set(cell_tags(cell)))


def last_cell(executed: Notebook) -> tuple[int, str]:
    """Number of the cell that raised, or was running when all ended, and its error; (0, "") if there is none."""
    cells = [cell for cell in executed["cells"] if not is_added(cell)]
    unanswered = []
    for number, cell in enumerate(cells, start=1):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error" and "raises-exception" not in cell_tags(cell):
                return number, f"{output['ename']}: {output['evalue']}".splitlines()[0]
        answered = "shell.execute_reply" in cell.get("metadata", {}).get("execution", {})
        if cell["cell_type"] == "code" and cell_source(cell).strip() and not answered:
            unanswered.append(number)
    timed = any("execution" in cell.get("metadata", {}) for cell in cells)  # Jupyter itself does not note times
    return (unanswered[0] if timed and unanswered else 0), ""


def render(executed: str | Path, destination: str | Path) -> Path:
    """The destination, holding an executed notebook for readers: no timings, no time stamps, no path of this machine.

    ValueError if the notebook did not run to its end, or a cell shows a path of this machine.
    """
    path, destination = Path(executed), Path(destination)
    notebook = load_notebook(path)
    cell, error = last_cell(notebook)
    if cell:
        raise ValueError(f"{path.name} did not run to its end (cell {cell}: {error or 'not finished'}); run it again")
    number = 0
    for item in notebook["cells"]:
        number += not is_added(item)
        _refuse_paths(path, number, item)
    text = json.dumps(_stable(notebook), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    for place, name in enumerate(dict.fromkeys(_STYLED.findall(text))):
        text = text.replace(name, f"T_{place:05}")
    atomic_write(destination, text)
    return destination


def _stable(notebook: Notebook) -> Notebook:
    """A copy without what changes from run to run or from machine to machine."""
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        cell = {**cell, "metadata": {"tags": cell_tags(cell)} if cell_tags(cell) else {}}
        if "outputs" in cell:
            cell["outputs"] = [output for output in map(_without_bars, cell["outputs"]) if output.get("text") != ""]
        cells.append({**cell, "id": f"cell-{number}"} if "id" in cell else cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {**notebook, "cells": cells, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}}


def _without_bars(output: dict[str, Any]) -> dict[str, Any]:
    """The output without progress bars, which tell times, and begin with a carriage return."""
    if output.get("name") != "stderr":
        return output
    lines = _joined(output["text"]).split("\n")
    return {**output, "text": "\n".join(line for line in lines if line.strip() and "\r" not in line)}


def _refuse_paths(path: Path, number: int, cell: Notebook) -> None:
    folders = [SOURCE, Path.cwd(), path.resolve().parent, Path(sys.prefix), Path.home(), Path(tempfile.gettempdir())]
    pattern = "|".join(re.escape(str(folder)) for folder in folders if len(folder.parts) > 1)
    for text in _texts([cell.get("source", ""), cell.get("outputs", [])]):
        found = re.search(rf"(?<!\w)(?:{pattern})(?!\w)[^\s'\"]*", text) if pattern else None
        if found:
            raise ValueError(f"{path.name}, cell {number} shows a path of this machine, {found.group()!r}; print none")


def _texts(value: Any) -> Iterator[str]:
    """Every text in an output, except bitmaps."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield _joined(value) if all(isinstance(item, str) for item in value) else ""
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in ("image/png", "image/jpeg"):
                yield from _texts(item)
