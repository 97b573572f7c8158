"""Two generations side by side: the numbers are those of the tables, and what cannot be compared is one line."""

import json
from contextlib import redirect_stdout
from io import StringIO

import pandas as pd
import pytest
from samples import one_line

import mmchar
from mmchar import compare
from mmchar.cli.main import main
from mmchar.runs.records import save_measured
from mmchar.study.drawing.comparison import comparison
from mmchar.tables.stored import write_table

SD = "stable-diffusion-1.5"


@pytest.fixture(scope="module")
def counted():
    return mmchar.count(SD, tiny=True)


@pytest.fixture(scope="module")
def faster():
    return compare(f"{SD},steps=50", f"{SD},steps=5,gpu=h100-sxm", tiny=True, gpu="a100-80gb")


def total(table):
    return (table["time_s"] * table["repeats"]).sum()


def test_the_rows_are_the_sums_of_both_projections(faster):
    few = mmchar.project(mmchar.count(SD, tiny=True, steps=5), gpu="h100-sxm")
    many = mmchar.project(mmchar.count(SD, tiny=True, steps=50), gpu="a100-80gb")
    whole = faster[faster["what"] == "total"].iloc[0]
    assert (whole["first_s"], whole["second_s"]) == pytest.approx((total(many), total(few)))
    assert whole["ratio"] == pytest.approx(total(few) / total(many)) and whole["difference_s"] < 0
    for what in ("category", "stage"):
        rows = faster[faster["what"] == what]
        assert rows[["first_s", "second_s"]].sum().tolist() == pytest.approx([total(many), total(few)])
        assert rows["first_flop"].sum() == (many["flop"] * many["repeats"]).sum()
    assert faster.attrs["differs"] == {"gpu": ["a100-80gb", "h100-sxm"], "steps": [50, 5]}
    assert faster.attrs["labels"] == [f"{SD},steps=50", f"{SD},steps=5,gpu=h100-sxm"]


def test_what_only_one_has_is_nothing_in_the_other():
    both = compare("llama-2-7b,new_tokens=4", SD, tiny=True)
    rows = both[both["what"] == "stage"].set_index("part")
    assert rows.loc["denoise", "first_s"] == 0 and rows.loc["decode", "second_s"] == 0
    assert pd.isna(rows.loc["denoise", "ratio"]) and rows.loc["decode", "ratio"] == 0
    assert both.attrs["differs"]["model"] == ["llama-2-7b", SD]


def test_tables_files_and_runs_are_compared_as_they_are(tmp_path, counted):
    measured = mmchar.measure(SD, tiny=True, samples=2, stages=["denoise"], progress=False)
    run = save_measured(tmp_path, measured).parent
    path = write_table(tmp_path / "projected.parquet", mmchar.project(counted, gpu="l4"))
    both = compare(str(path), str(run))
    whole = both[both["what"] == "total"].iloc[0]
    assert whole["first_s"] == pytest.approx(total(mmchar.project(counted, gpu="l4")))
    assert whole["second_s"] == pytest.approx(total(measured))
    assert both.attrs["time_kinds"] == ["projected", "measured"]
    same = compare(counted, counted)
    assert (same["difference_s"] == 0).all() and same.attrs["labels"][0].endswith("(first)")


@pytest.mark.parametrize(
    ("first", "more", "message"),
    [
        ("stable-difusion-1.5", {}, "did you mean 'stable-diffusion-1.5'"),
        (f"{SD},step=4", {}, "no setting 'step'; did you mean 'steps'"),
        (f"{SD},4", {}, "'4' is no setting; write name=value"),
        (f"{SD},steps=four", {}, "steps='four' is no number"),
        (f"{SD},gpu=a1000", {}, "a1000"),
        (SD, {"stepz": 4}, "no setting 'stepz'"),
    ],
)
def test_bad_input_is_one_line(first, more, message):
    with pytest.raises(ValueError, match=message) as caught:
        compare(first, SD, **{"tiny": True, **more})
    one_line(caught)


def test_a_table_that_is_there_is_asked_for_nothing(tmp_path, counted):
    with pytest.raises(ValueError, match="steps can be asked of a model") as caught:
        compare(counted, counted, steps=4)
    one_line(caught)
    with pytest.raises(ValueError, match="no operator table: it lacks model") as caught:
        compare(pd.DataFrame({"time_s": [1.0]}), counted)
    one_line(caught)


def test_several_steps_go_with_their_commas():
    both = compare("imagen,steps=8,4,2", "imagen,steps=4,4,2", tiny=True)
    assert [list(steps) for steps in both.attrs["differs"]["steps"]] == [[8, 4, 2], [4, 4, 2]]


def test_the_figure_shows_every_part_that_takes_time(faster):
    figure = comparison(faster)
    names = [label.get_text() for ax in figure.axes for label in ax.get_yticklabels()]
    assert "all" in names and "Convolution" in names and "denoise" in names
    assert "steps=5" in figure.get_suptitle()


def test_the_shell_compares_and_draws(tmp_path):
    path, out = tmp_path / "c.png", StringIO()
    with redirect_stdout(out):
        assert main(["compare", SD, f"{SD},steps=4", "--steps", "50", "--tiny", "--figure", str(path), "--json"]) == 0
    said = json.loads(out.getvalue())
    assert said["differs"] == {"steps": [50, 4]} and said["rows"][0]["what"] == "total"
    assert path.read_bytes().startswith(b"\x89PNG")
    with redirect_stdout(out):
        assert main(["compare", SD, f"{SD},steps=4", "--tiny", "--figure", str(tmp_path / "c.pdf")]) == 2
