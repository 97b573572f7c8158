"""The API reference: what `mmchar` offers by name, and the modules of each room that the notebooks use."""

import ast
from pathlib import Path

import mmchar
from mmchar.files import atomic_write
from mmchar.provenance import SOURCE
from mmchar.runs.notebooks import cell_source, load_notebook

_CLASSES = ("Request", "Model", "ModelSpec")


def stage_api(folder: Path) -> None:
    """Write the pages of the API reference into a folder."""
    rooms: dict[str, list[str]] = {}
    for module in used_modules():
        rooms.setdefault(module.split(".")[1], []).append(module)
    for room, modules in rooms.items():
        blocks = "\n\n".join(f".. automodule:: {module}\n   :members:" for module in modules)
        text = f"{_title(f'mmchar.{room}')}\n\n.. automodule:: mmchar.{room}\n   :no-index:\n\n"
        headed = "\n\n".join(
            f"{_title(module, '-')}\n\n{block}" for module, block in zip(modules, blocks.split("\n\n"), strict=True)
        )
        atomic_write(folder / "api" / f"{room}.rst", f"{text}{headed}\n")
    atomic_write(folder / "api" / "index.rst", _index(list(rooms)))


def used_modules() -> list[str]:
    """Names of the modules that the notebooks import from, in the order of their names."""
    found = set()
    for path in (SOURCE / "notebooks").glob("*.ipynb"):
        for cell in load_notebook(path)["cells"]:
            if cell["cell_type"] == "code":
                found |= _imported(cell_source(cell))
    return sorted(found)


def _imported(source: str) -> set[str]:
    """Modules of the package that a cell imports, or imports from."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmchar."):
            for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                path = SOURCE / Path(*str(name).split("."))
                found |= {str(name)} if path.with_suffix(".py").is_file() else set()
    return found


def _index(rooms: list[str]) -> str:
    public = "\n\n".join(
        f".. auto{'class' if name in _CLASSES else 'function'}:: mmchar.{name}"
        for name in sorted(mmchar.__all__, key=str.lower)
    )
    tree = "\n".join([".. toctree::", "   :maxdepth: 1", "   :caption: By room", "", *(f"   {room}" for room in rooms)])
    return f"{_title('API reference')}\n\n.. automodule:: mmchar\n\n{tree}\n\n{_title('By name', '-')}\n\n{public}\n"


def _title(text: str, mark: str = "=") -> str:
    return f"{text}\n{mark * len(text)}"
