"""The house: rooms of a size in which one finds one's way, and types that fit; import-linter keeps the floors."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mmchar.provenance import SOURCE

PACKAGE = SOURCE / "mmchar"
ROOMS = sorted({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE})


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(PACKAGE)))
def test_a_room_has_at_most_eighteen_modules_and_says_what_it_is(room: Path):
    modules = [path for path in room.glob("*.py") if path.stem != "__init__"]
    assert 0 < len(modules) <= 18
    assert all(len(path.read_text().splitlines()) <= 300 for path in modules)
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    assert said and said.split(". ")[0]


def test_every_room_stands_on_a_floor():
    settings = tomllib.loads((SOURCE / "pyproject.toml").read_text())["tool"]["importlinter"]
    floors = next(contract for contract in settings["contracts"] if contract["type"] == "layers")["layers"]
    named = {name.strip() for floor in floors for name in floor.split("|")}
    top = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path in ROOMS} - {"__init__", "__main__"}
    assert named == {f"mmchar.{name}" for name in top}


def test_the_page_of_the_house_names_files_that_exist():
    page = (SOURCE / "docs" / "architecture.md").read_text()
    named = {word for word in page.split("`") if word.endswith((".py", ".json")) and "/" in word and "NAME" not in word}
    assert len(named) > 20
    assert [name for name in sorted(named) if not (PACKAGE / name).exists()] == []


def test_no_two_test_files_have_one_name():  # pytest imports them by it
    names = sorted(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert names == sorted(set(names))


def test_types_fit():  # a test among others, as it keeps one core busy for twenty seconds
    ran = subprocess.run([sys.executable, "-m", "mypy"], cwd=SOURCE, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
