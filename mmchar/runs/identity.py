"""What makes two runs the same run: code cells, parameters, the package's code and data, versions and hardware.

Text does not count: a changed sentence, comment, docstring or line break leaves the identity as it is. Nor does where
a result goes.
"""

import ast
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmchar.files import canonical_json, checksum
from mmchar.provenance import SOURCE, machine, versions
from mmchar.runs.notebooks import cell_source, cell_tags, is_added, load_notebook
from mmchar.runs.parameters import read_parameters

WHERE = ("out_dir", "progress")  # parameters that say nothing about what a result is
PACKAGE = Path(__file__).parents[1]
BATCH = ("cli", "runs")  # these rooms start runs and look at them; no number in a notebook comes from them
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def run_id(parts: Any) -> str:
    """Twelve hexadecimal digits that are the same for equal parts, of JSON types in any order of keys."""
    return checksum(canonical_json(parts).encode())[:12]


def notebook_identity(notebook: str | Path, given: dict[str, Any]) -> dict[str, Any]:
    """Everything that the result of a notebook depends on, in JSON types; what is not `given` has its default."""
    parameters = {name: one.default for name, one in read_parameters(notebook).items()} | given
    parameters = {name: value for name, value in parameters.items() if name not in WHERE}
    hardware = {key: value for key, value in machine().items() if key in ("cpu", "cores", "gpus", "gpu_driver")}
    return {
        "notebook": Path(notebook).stem,
        "cells": [code for _, code in code_cells(notebook)],
        "parameters": json.loads(json.dumps(parameters)),  # as it is read back: tuples are lists
        "package": package_code(),
        "data": package_data(),
        "versions": versions(),
        "hardware": hardware,
    }


def code_cells(notebook: str | Path) -> list[tuple[int, str]]:
    """Number (from 1, among all cells) and hash of every code cell but the parameters and empty ones.

    They are the same in the notebook and in its executed copy.
    """
    cells = enumerate((cell for cell in load_notebook(Path(notebook))["cells"] if not is_added(cell)), start=1)
    code = [(n, cell_source(c)) for n, c in cells if c["cell_type"] == "code" and "parameters" not in cell_tags(c)]
    return [(number, code_hash(source)[:12]) for number, source in code if source.strip()]


def code_hash(source: str) -> str:
    """Hash of a source without its words: comments, docstrings and layout do not count."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # magics of IPython are no Python
        return checksum(source.strip().encode())
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return checksum(ast.dump(tree).encode())


def package_code(package: Path = PACKAGE) -> str:
    """Hash of all code that can change a number in a notebook; read again when a file changes."""
    return _hash(path for path in package.rglob("*.py") if path.parent.relative_to(package).as_posix() not in BATCH)


def package_data(package: Path = PACKAGE, data: Path = SOURCE / "data") -> str:
    """Hash of the models, the GPUs, the reference data and the committed measurements; read again when they change."""
    found = (*package.rglob("*.json"), *data.glob("reference/*"), *data.glob("measured/[!.]*/**/*"))
    return _hash(path for path in found if path.is_file())


def _hash(paths: Iterable[Path]) -> str:
    return run_id([_file_hash(path, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(paths)])


@functools.cache
def _file_hash(path: Path, _time_ns: int, _bytes: int) -> list[str]:
    """Name, folder and hash of a file; the same as long as its time and size stay."""
    hashed = code_hash(path.read_text(encoding="utf-8")) if path.suffix == ".py" else checksum(path.read_bytes())
    return [path.name, path.parent.name, hashed]


def differences(old: dict[str, Any], new: dict[str, Any], notebook: str | Path | None = None) -> list[str]:
    """What differs between two identities, one short phrase each; [] if nothing does.

    `notebook` is that of `new`, so that a cell can be named by the number that a reader sees.
    """
    found = []
    if old.get("cells") != new["cells"]:
        found.append(_changed_cells(old.get("cells") or [], new["cells"], notebook))
    for key in ("parameters", "versions", "hardware"):
        before, after = old.get(key) or {}, new[key] or {}
        changed = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
        found += [f"{name} {_shown(before.get(name))} -> {_shown(after.get(name))}" for name in changed]
    return found + [f"{key} changed" for key in ("package", "data") if old.get(key) != new[key]]


def _changed_cells(old: list[str], new: list[str], notebook: str | Path | None) -> str:
    if len(old) != len(new):
        return f"code cells changed: {len(old)} before, {len(new)} now"
    changed = [n for n, code in enumerate(new) if code != old[n]]
    numbers = [number for number, _ in code_cells(notebook)] if notebook else range(1, len(new) + 1)
    shown = ", ".join(str(numbers[n]) for n in changed[:3]) + (", …" if len(changed) > 3 else "")
    return f"code cell{'s' if len(changed) > 1 else ''} {shown} changed"


def _shown(value: Any) -> str:
    text = "absent" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
