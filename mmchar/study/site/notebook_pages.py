"""A page per notebook, from its rendered copy: code folded, figures large with their downloads, images described."""

import json
import re
from pathlib import Path
from typing import Any

from mmchar.files import atomic_write
from mmchar.provenance import SOURCE
from mmchar.runs.notebooks import Notebook, cell_source, cell_tags, load_notebook
from mmchar.study.site.figure_pages import figure_names, shown
from mmchar.study.site.same_figure import figure_of
from mmchar.study.site.sources import with_links

RENDERED = SOURCE / "notebooks" / "rendered"
_PLACE = Path("notebooks/rendered")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def stage_notebooks(folder: Path) -> None:
    """Write a page of every rendered notebook into a folder, and the page that lists them with their questions."""
    lines = [
        "# Notebooks",
        "Each asks one question, says what it expects, and checks it. Code is folded: open it to read.",
    ]
    for path in sorted(RENDERED.glob("*.ipynb")):
        notebook = load_notebook(path)
        page = {**notebook, "cells": _cells(notebook, path.stem[:2], folder)}
        atomic_write(folder / _PLACE / path.name, json.dumps(page, ensure_ascii=False))
        lines.append(f"- [{path.stem[:2]} {_title(notebook)}](rendered/{path.name}): {_question(notebook)}")
    atomic_write(folder / "notebooks" / "index.md", "\n".join([*lines[:1], "", lines[1], "", *lines[2:], "", _TREE]))


def _cells(notebook: Notebook, number: str, folder: Path) -> list[Notebook]:
    """The cells of a page; a figure that the repository holds stands in the place of the notebook's own image of it."""
    names, heading, cells = figure_names(f"{number}_"), _title(notebook), []
    for cell in _without_silent(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            heading = (_HEADING.findall(cell_source(cell)) or [heading])[-1]
            cells.append({**cell, "source": with_links(cell_source(cell), _PLACE, folder)})
            continue
        images = [output["data"]["image/png"] for output in cell.get("outputs", []) if _is_image(output)]
        figures = [figure_of(image, names) for image in images]
        cells.append(_folded(cell, heading, without_images=all(figures)))
        found = [name for name in figures if name and all(figures)]
        cells += [_markdown(shown(name, "../../figures"), f"figure-{name}") for name in found]
        names = [name for name in names if name not in found]
    left = [_markdown(shown(name, "../../figures"), f"figure-{name}") for name in names]
    return [*cells, *([_markdown("## More figures", "more-figures"), *left] if left else [])]


def _without_silent(cells: list[Notebook]) -> list[Notebook]:
    """The cells, with code that shows nothing beside that of the next that does: no folded bar leads nowhere.

    What shows nothing at the end, where a notebook saves, stands after the last that does.
    """
    shows = [n for n, cell in enumerate(cells) if cell["cell_type"] == "code" and cell.get("outputs")]
    silent = [n for n, cell in enumerate(cells) if cell["cell_type"] == "code" and n not in shows]
    if not shows:
        return cells
    beside = {n: [n] for n in shows}
    for n in silent:
        beside[next((shown for shown in shows if shown > n), shows[-1])].append(n)
    sources = {n: "\n\n".join(cell_source(cells[each]) for each in sorted(all_of)) for n, all_of in beside.items()}
    kept = [n for n in range(len(cells)) if n not in silent]
    return [cells[n] | ({"source": sources[n]} if n in sources else {}) for n in kept]


def _folded(cell: Notebook, heading: str, *, without_images: bool) -> Notebook:
    outputs = [output for output in cell.get("outputs", []) if not (without_images and _is_image(output))]
    shown_outputs = [_linked(output) for output in outputs if output.get("name") != "stderr"]
    described = {"image": {"alt": f"Figure of the section: {heading}"}}
    metadata = {"tags": [*cell_tags(cell), "hide-input"], "mystnb": described}
    return {**cell, "outputs": shown_outputs, "metadata": metadata}


def _linked(output: dict[str, Any]) -> dict[str, Any]:
    """An output whose Markdown, which Sphinx takes as it is, links to pages instead of notebooks."""
    if "text/markdown" not in output.get("data", {}):
        return output
    text = "".join(output["data"]["text/markdown"])
    return {**output, "data": {**output["data"], "text/markdown": re.sub(r"\.ipynb(?=[)#])", ".html", text)}}


def _is_image(output: dict[str, Any]) -> bool:
    return "image/png" in output.get("data", {})


def _markdown(text: str, name: str) -> Notebook:
    return {"cell_type": "markdown", "id": re.sub(r"\W", "-", name), "metadata": {}, "source": text}


def _title(notebook: Notebook) -> str:
    return next(iter(_HEADING.findall(cell_source(notebook["cells"][0]))), "")


def _question(notebook: Notebook) -> str:
    """The question in a notebook's first cell, on one line."""
    found = re.search(r"\*\*Question\.\*\*\s*(.+?)(?:\n\n|$)", cell_source(notebook["cells"][0]), re.DOTALL)
    return " ".join(found[1].split()) if found else ""


_TREE = """```{toctree}
:hidden:
:glob:

rendered/*
```
"""
