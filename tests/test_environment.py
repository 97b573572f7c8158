"""pyproject.toml, requirements.txt and environment.yml describe one environment, and the code imports nothing else."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
PIN_LINES = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1] not in ("", "#")]
PINS = {canonicalize_name(Requirement(line).name): Requirement(line) for line in PIN_LINES}
EXTRAS = PROJECT["optional-dependencies"]
PINNED_EXTRAS = EXTRAS["study"] + EXTRAS["site"] + EXTRAS["slurm"] + EXTRAS["dev"]
PINNED_NEEDS = [Requirement(need) for need in PROJECT["dependencies"] + PINNED_EXTRAS]
ALL_NEEDS = {canonicalize_name(need.name) for need in PINNED_NEEDS} | {"flash-attn", "torchao"}


@pytest.mark.parametrize("need", PINNED_NEEDS, ids=lambda need: need.name)
def test_every_need_is_pinned_to_a_version_it_allows(need):
    pin = PINS[canonicalize_name(need.name)]
    assert pin.marker is None  # on every Python that the project supports
    assert need.specifier.contains(pinned_version(pin))


def test_build_backend_is_pinned_because_the_install_does_not_isolate_its_build():
    (backend,) = [Requirement(need) for need in PYPROJECT["build-system"]["requires"]]
    assert backend.specifier.contains(pinned_version(PINS[backend.name]))


@pytest.mark.parametrize("line", PIN_LINES)
def test_a_pin_is_a_name_and_one_exact_public_version(line):
    assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*( ; python_version >= \"3\.\d+\")?", line)


def test_pins_are_sorted_and_unique():
    names = [canonicalize_name(Requirement(line).name) for line in PIN_LINES]
    assert names == sorted(set(names))


def test_flash_attn_is_an_extra_and_never_part_of_the_set_up():
    assert [Requirement(need).name for need in EXTRAS["flash-attn"]] == ["flash-attn"]
    assert "flash-attn" not in PINS


def test_torchao_is_an_extra_that_only_quantization_needs():
    assert [Requirement(need).name for need in EXTRAS["quantize"]] == ["torchao"]
    assert "torchao" not in PINS


def test_conda_takes_python_packages_from_the_pins():
    conda_packages = [entry for entry in CONDA["dependencies"] if isinstance(entry, str)]
    (pip_section,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    assert [re.split("[=<>]", entry)[0] for entry in conda_packages] == ["python", "pip"]
    assert pip_section == ["-r requirements.txt", "-e ."]
    assert CONDA["name"] == PROJECT["name"]


def test_python_version_agrees():
    (conda_python,) = re.findall(r"python=([\d.]+)", str(CONDA["dependencies"]))
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(f">={conda_python}")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == conda_python
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + conda_python.replace(".", "")
    assert f"Programming Language :: Python :: {conda_python}" in PROJECT["classifiers"]


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements.txt", "environment.yml"])
def test_no_address_of_a_package_index(name):
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host|^-[if] ", text, flags=re.MULTILINE)


def test_every_need_has_its_reason():
    text = (ROOT / "pyproject.toml").read_text()
    for need in PROJECT["dependencies"] + [need for extra in EXTRAS.values() for need in extra]:
        assert re.search(rf'"{re.escape(need)}", +# \w+.+', text), f"{need} stands without a reason"


@pytest.mark.parametrize("path", sorted((ROOT / "mmchar").glob("*.py")), ids=lambda path: path.name)
def test_the_package_imports_only_what_it_declares(path):
    distributions = packages_distributions()
    for module in imported_modules(path) - sys.stdlib_module_names - {"mmchar"}:
        names = {canonicalize_name(name) for name in distributions.get(module, [module])}
        assert names & ALL_NEEDS, f"{path.name} imports {module}, which pyproject.toml does not name"


def pinned_version(pin):
    (specifier,) = pin.specifier
    return specifier.version


def imported_modules(path):
    """Top-level names of all absolute imports in a file, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found
