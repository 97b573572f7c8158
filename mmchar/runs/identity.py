"""What makes two runs the same run: code cells, parameters, the package's code and data, versions and hardware.

Text does not count: a changed sentence, comment, docstring or line break leaves the identity as it is. Nor does where
a result goes.
"""

import ast
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

from mmchar.files import canonical_json, checksum
from mmchar.provenance import SOURCE, machine, versions
from mmchar.runs.notebooks import cell_source, cell_tags, is_added, load_notebook
from mmchar.runs.parameters import read_parameters

WHERE = ("out_dir", "figures_dir", "progress")  # parameters that say nothing about what a result is
PACKAGE = Path(__file__).parents[1]
BATCH = ("cli", "runs")  # these rooms start runs and look at them; no number in a notebook comes from them


def run_id(parts: Any) -> str:
    """Twelve hexadecimal digits that are the same for equal parts, of JSON types in any order of keys."""
    return checksum(canonical_json(parts).encode())[:12]


def notebook_identity(notebook: str | Path, given: dict[str, Any]) -> dict[str, Any]:
    """Everything that the result of a notebook depends on, in JSON types.

    Parameters
    ----------
    notebook : str or Path
    given : dict
        Checked parameters; the others have their defaults.
    """
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
    return [(number, _code_hash(source)) for number, source in code if source.strip()]


def _code_hash(source: str) -> str:
    try:
        return checksum(ast.dump(ast.parse(source)).encode())[:12]
    except (SyntaxError, ValueError):  # magics of IPython are no Python
        return checksum(source.strip().encode())[:12]


def package_code() -> str:
    """Hash of the package's code without docstrings, comments, assertions and `BATCH`; read again when it changes."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.relative_to(PACKAGE).as_posix() not in BATCH)
    return _package_code(tuple(paths), _stamps(paths))


def _stamps(paths: list[Path]) -> tuple[tuple[int, int], ...]:
    """Time and size of each file: as long as they stay, so does its content."""
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in (path.stat() for path in paths))


@functools.cache
def _package_code(paths: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> str:
    # Compiling is several times as fast as printing the syntax tree; the Python version is part of the identity.
    codes = (compile(path.read_bytes(), path.name, "exec", optimize=2, dont_inherit=True) for path in paths)
    return run_id([[path.stem, list(_instructions(code))] for path, code in zip(paths, codes, strict=True)])


def _instructions(code: CodeType) -> Iterator[str]:
    """All that a code object does, without the lines that it stands on."""
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    yield repr((code.co_name, code.co_code, code.co_exceptiontable, names, code.co_flags))
    yield repr((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        else:
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def package_data(package: Path | None = None, data: Path | None = None) -> str:
    """Hash of the models, the GPUs, the reference data and the committed measurements; read again when they change."""
    package, data = package or PACKAGE, data or SOURCE / "data"
    globs = (package.rglob("*.json"), data.glob("reference/*"), data.glob("measured/**/*"))
    paths = sorted(path for found in globs for path in found if path.is_file())
    return _package_data(tuple(paths), _stamps(paths))


@functools.cache
def _package_data(paths: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> str:
    return run_id([[path.name, path.parent.name, checksum(path.read_bytes())] for path in paths])


def differences(old: dict[str, Any], new: dict[str, Any], notebook: str | Path | None = None) -> list[str]:
    """What differs between two identities, one short phrase each; [] if nothing does.

    Parameters
    ----------
    old, new : dict
        As `notebook_identity` gives them; `old` may have been read from a file.
    notebook : str or Path, optional
        That of `new`, so that a cell can be named by the number that a reader sees.
    """
    found = []
    if old.get("cells") != new["cells"]:
        found.append(_changed_cells(old.get("cells") or [], new["cells"], notebook))
    for key in ("parameters", "versions", "hardware"):
        before, after = old.get(key) or {}, new[key] or {}
        changed = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
        found += [f"{name} {_shown(before.get(name))} -> {_shown(after.get(name))}" for name in changed]
    found += [f"{what} changed" for what, key in (("package", "package"), ("data", "data")) if old.get(key) != new[key]]
    return found


def _changed_cells(old: list[str], new: list[str], notebook: str | Path | None) -> str:
    changed = [n for n, code in enumerate(new) if n >= len(old) or code != old[n]]
    if len(old) != len(new):
        return f"code cells changed: {len(old)} before, {len(new)} now"
    numbers = [number for number, _ in code_cells(notebook)] if notebook else range(1, len(new) + 1)
    shown = ", ".join(str(numbers[n]) for n in changed[:3]) + (", …" if len(changed) > 3 else "")
    return f"code cell{'s' if len(changed) > 1 else ''} {shown} changed"


def _shown(value: Any) -> str:
    text = "absent" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
