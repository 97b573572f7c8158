"""A grid is checked whole, by line, before anything runs; what it asks for has an identity."""

import subprocess
import sys

import pytest
from msgspec.structs import replace
from samples import one_line

from mmchar.provenance import SOURCE
from mmchar.runs.campaign.grids import Point, identity, read_grid

GRIDS = SOURCE / "data" / "grids"
VERSIONS = {"torch": "2.13.0", "mmchar": "0.1.0"}


def grid(tmp_path, points, defaults="{tiny: true}"):
    path = tmp_path / "grid.yaml"
    path.write_text(f"about: test\ndefaults: {defaults}\npoints:\n{points}")
    return path


def test_lists_make_products_and_value_makes_the_order(tmp_path):
    text = "  - {model: [llama-2-7b, clip-vit-l-14], attention: [flash, eager], value: 1}\n"
    text += (
        "  - {model: llama-2-7b, request: [{batch: 2}, {batch: 4}], levers: [{}, {execution: compiled}], value: 2}\n"
    )
    points = read_grid(grid(tmp_path, text))
    assert [(p.model, p.attention) for p in points[4:]] == [
        ("llama-2-7b", "flash"), ("llama-2-7b", "eager"), ("clip-vit-l-14", "flash"), ("clip-vit-l-14", "eager")
    ]  # fmt: skip
    assert [(p.request["batch"], p.levers.get("execution")) for p in points[:4]] == [
        (2, None), (2, "compiled"), (4, None), (4, "compiled")
    ]  # fmt: skip
    assert all(p.tiny and p.dtype == "float32" for p in points)


def test_a_ladder_has_its_rungs(tmp_path):
    points = read_grid(grid(tmp_path, "  - {model: llama-2-7b, device: cuda, ladder: true}\n"))
    assert (points[0].dtype, points[0].attention, points[0].levers) == ("float32", "eager", {})
    assert points[-1].levers == {"execution": "compiled-graphs", "quantization": "int8-weight-only"}
    assert len(points) == 6


def test_what_stands_twice_is_one_point_at_its_highest_value(tmp_path):
    text = (
        "  - {model: llama-2-7b, value: 1}\n  - {model: clip-vit-l-14, value: 2}\n  - {model: llama-2-7b, value: 3}\n"
    )
    assert [(p.model, p.value) for p in read_grid(grid(tmp_path, text))] == [("llama-2-7b", 3), ("clip-vit-l-14", 2)]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{model: llama-2-7b, atention: flash}", "unknown field `atention`"),
        ("{model: lama-2-7b}", "unknown model 'lama-2-7b'; did you mean 'llama-2-7b'?"),
        ("{model: llama-2-7b, request: {steps: 3}}", "llama-2-7b takes no 'steps'"),
        ("{model: llama-2-7b, request: {batsh: 3}}", "did you mean 'batch'?"),
        ("{model: llama-2-7b, attention: flush}", "Invalid enum value 'flush' - at `$.attention`"),
        ("{model: llama-2-7b, levers: {exec: compiled}}", "unknown lever 'exec'"),
        ("{model: llama-2-7b, levers: {execution: fast}}", "unknown execution 'fast'"),
        ("{model: llama-2-7b, stages: [denoise]}", "has no stage 'denoise'"),
        ("{model: llama-2-7b, dtype: int8}", "Invalid enum value 'int8' - at `$.dtype`"),
        ("{model: llama-2-7b, device: tpu}", "Invalid enum value 'tpu' - at `$.device`"),
        ("{model: llama-2-7b, samples: 0}", "Expected `int` >= 1 - at `$.samples`"),
        ("{model: llama-2-7b, samples: many}", "Expected `int`, got `str` - at `$.samples`"),
        ("{model: llama-2-7b, value: -1}", "Expected `float` >= 0.0 - at `$.value`"),
        ("{model: llama-2-7b, request: 3}", "Expected `object`, got `int` - at `$.request`"),
        ("{model: clip-vit-l-14, ladder: true}", "no ladder for 'clip-vit-l-14'"),
        ("{attention: flash}", "missing required field `model`"),
        ("llama-2-7b", "Expected `object`, got `str`"),
    ],
)
def test_a_bad_point_is_refused_with_its_place(tmp_path, entry, says):
    with pytest.raises(ValueError) as caught:
        read_grid(grid(tmp_path, f"  - {{model: llama-2-7b}}\n  - {entry}\n"))
    said = one_line(caught)
    assert "grid.yaml" in said and "points[1]" in said and says in said


@pytest.mark.parametrize("text", ["", "- a\n", "points: 3\n", "points: [\n", "point: []\n", "points: []\nabut: x\n"])
def test_what_is_no_grid_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_grid(path)
    assert "bad.yaml" in one_line(caught)


def test_identity_is_of_what_decides_the_result_and_nothing_else():
    point = Point("llama-2-7b", tiny=True)
    name = identity(point, "cpu A", VERSIONS)
    same = [replace(point, value=9.0), replace(point, expect_s=3.0), replace(point, where="x")]
    same.append(replace(point, request={"batch": 1}))  # its default
    other = [replace(point, tiny=False), replace(point, dtype="bfloat16"), replace(point, attention="eager")]
    other += [replace(point, samples=6), replace(point, stages=("decode",)), replace(point, request={"batch": 2})]
    other += [replace(point, levers={"execution": "compiled"}), replace(point, warmup=2)]
    assert {identity(each, "cpu A", VERSIONS) for each in same} == {name}
    assert len({name, *(identity(each, "cpu A", VERSIONS) for each in other)}) == len(other) + 1
    assert identity(point, "cpu B", VERSIONS) != name
    assert identity(point, "cpu A", {**VERSIONS, "torch": "2.14.0"}) != name


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_grids_of_the_project_are_good(path):
    points = read_grid(path)
    assert points and all(point.where.startswith(path.name) for point in points)


def test_reading_a_grid_loads_no_torch():
    code = f"import sys; from mmchar.runs.campaign.grids import read_grid; read_grid({str(GRIDS / 'smoke.yaml')!r}); "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)
