"""Projections beside measurements. All measurements here are made up."""

import json

import numpy as np
import pandas as pd
import pytest

from mmchar.cli.main import main
from mmchar.projection.evidence.rows import read_rows
from mmchar.projection.evidence.validation import by_kind, summary, validate
from mmchar.projection.evidence.work import as_engine

PIXART = "pixart-sigma-1024"
GOOD = {
    "model": PIXART, "gpu": "h100-sxm", "gpus": 1, "ulysses": 1, "ring": 1, "batch": 1, "steps": 20,
    "height": 1024, "width": 1024, "frames": 1, "latency_s": 1.5, "energy_j": 900, "source": "made up",
}  # fmt: skip


def rows(*changes):
    return pd.DataFrame([GOOD | change for change in changes])


def write(path, *changes):
    rows(*changes).to_csv(path, index=False)
    return str(path)


def test_errors_are_of_what_was_projected():
    table = validate(rows({}, {"latency_s": 3.0}, {"energy_j": np.nan}))
    assert table.attrs["problems"] == [] and len(table) == 3
    first, second, third = (table.iloc[i] for i in range(3))
    assert first["predicted_s"] == second["predicted_s"] > 0
    assert first["latency_error"] == pytest.approx(first["predicted_s"] / 1.5 - 1)
    assert second["latency_error"] == pytest.approx(second["predicted_s"] / 3.0 - 1)
    assert first["energy_error"] == pytest.approx(first["predicted_j"] / 900 - 1)
    assert np.isnan(third["energy_error"]) and third["fits"]
    assert (table["source"] == "made up").all()


def test_a_prediction_is_what_count_and_project_say():
    import mmchar
    from mmchar.projection.parallel.layout import parallelize
    from mmchar.projection.roofline import project
    from mmchar.projection.summary import summarize

    table = validate(rows({"batch": 3}, {"gpus": 4, "ulysses": 2, "ring": 2}))
    alone = as_engine(mmchar.count(PIXART, mmchar.Request(batch=3)))
    assert table["predicted_s"][0] == pytest.approx(
        summarize(project(alone, gpu="h100-sxm", attention="flash"))["time_s"]
    )
    shared = summarize(
        project(
            as_engine(parallelize(mmchar.count(PIXART), gpus=4, ulysses=2, ring=2)), gpu="h100-sxm", attention="flash"
        )
    )
    assert table["predicted_s"][1] == pytest.approx(shared["time_s"])
    assert table["predicted_j"][1] == pytest.approx(shared["energy_j"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": ""}, "model is missing"),
        ({"model": "pixart"}, "unknown model 'pixart'"),
        ({"gpu": "h100"}, "unknown gpu 'h100'"),
        ({"gpus": 4, "ulysses": 2}, "gpus=4, but ulysses 2 makes 2"),
        ({"gpus": 3, "ulysses": 3}, "ulysses=3 does not divide the 16 heads"),
        ({"gpus": 3, "ring": 3}, "does not divide the 4096 image tokens"),
        ({"batch": 0}, "batch=0: expected int >= 1"),
        ({"batch": 1.5}, "batch=1.5: expected int"),
        ({"batch": 10**9}, "batch=1000000000: expected int <= 4096"),
        ({"steps": "many"}, "steps=many: expected int"),
        ({"height": 1000}, "height=1000 does not fit"),
        ({"frames": 16}, "frames=16, but pixart-sigma-1024 makes images; give 1"),
        ({"latency_s": np.nan}, "latency_s is missing"),
        ({"latency_s": -1.5}, "latency_s=-1.5: expected float > 0"),
        ({"latency_s": "inf"}, "latency_s=inf: expected float <= 1"),
        ({"latency_s": 1e-6, "energy_j": np.nan}, "latency_s=1e-06 is faster than peak"),
        ({"energy_j": 1e6}, "energy_j=1e+06 is more than 1 boards of 700 W"),
        ({"energy_j": 0}, "energy_j=0: expected float > 0"),
        ({"dtype": "bf16"}, "dtype=bf16: choose one of bfloat16, float16, float32"),
        ({"execution": "TensorRT"}, "execution=TensorRT: choose one of eager, compiled"),
        ({"channels_last": "maybe"}, "channels_last=maybe: expected bool"),
        ({"stage": "decode_video"}, "stage=decode_video: pixart-sigma-1024 has no such stage; its stages are"),
        ({"value": 3.0, "unit": "s"}, "both latency_s and value are given"),
        ({"value": 3.0, "unit": "fps", "latency_s": np.nan}, "unit=fps: choose one of s, s/batch"),
        ({"value": 3.0, "latency_s": np.nan}, "unit=: choose one of"),
        ({"value": 3.0, "unit": "tokens/s", "latency_s": np.nan, "energy_j": np.nan}, "stage=decode: "),
        ({"new_tokens": 5}, "takes no 'new_tokens'"),
        ({"model": "flux.1-dev", "gpu": "rtx-4090", "latency_s": 60.0, "steps": 28}, "does not fit"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_done(change, reason):
    table = validate(rows({}, change, {"batch": 2}))
    (problem,) = table.attrs["problems"]
    assert problem.startswith("line 2: ") and reason in problem
    assert table["batch"].tolist() == [1, 2]


def test_a_blank_cell_of_an_optional_column_is_one_that_is_not_there(tmp_path):
    path = write(tmp_path / "rows.csv", {"cfg": 1, "prompt_tokens": 300}, {"energy_j": np.nan})
    table = validate(read_rows(path))
    assert table.attrs["problems"] == [] and table["predicted_s"].nunique() == 1
    assert table["energy_error"].isna().tolist() == [False, True]


def test_only_model_gpu_and_a_value_are_needed(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("model,gpu,latency_s\npixart-sigma-1024,h100-sxm,1.5\n")
    table, full = validate(read_rows(path)), validate(rows({}))
    assert table.attrs["problems"] == [] and table["predicted_s"][0] == full["predicted_s"][0]
    assert table["energy_error"].isna().all() and np.isnan(summary(table)["mdape_energy"]).all()
    row = table.iloc[0]
    assert (row["steps"], row["height"], row["gpus"], row["dtype"]) == (20, 1024, 1, "bfloat16")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_as_spreadsheets_write_them(tmp_path, delimiter, end):
    path = tmp_path / "rows.csv"
    lines = [["model", " gpu ", "steps", "latency_s", "cfg", "source", ""],
             [PIXART, "h100-sxm", "20.0", "1.5", "", f'"a{delimiter} ""b"""', ""],
             [""] * 7,
             [PIXART, "h100-sxm", "20", "1.5", "NaN", "ü", ""]]  # fmt: skip
    path.write_bytes(b"\xef\xbb\xbf" + (end.join(map(delimiter.join, lines)) + 2 * end).encode())
    table = validate(read_rows(path))
    assert table.attrs["problems"] == [] and table["predicted_s"].nunique() == 1
    assert table["source"].tolist() == [f'a{delimiter} "b"', "ü"] and table["line"].tolist() == [2, 4]


def test_a_row_of_its_own_type_kernels_and_execution():
    table = validate(rows({"dtype": "float32", "attention": "eager", "execution": "compiled"}, {}), dtype="float16")
    assert table[["dtype", "attention", "execution"]].to_numpy().tolist() == [
        ["float32", "eager", "compiled"],
        ["float16", "flash", "eager"],
    ]
    alone = validate(rows({}), dtype="float32", attention="eager", execution="compiled")
    assert table["predicted_s"][0] == alone["predicted_s"][0] != table["predicted_s"][1]


def test_values_in_other_units_are_the_same_time():
    same = {"latency_s": np.nan, "energy_j": np.nan, "batch": 2}
    table = validate(
        rows(
            same | {"value": 3.0, "unit": "s"},
            same | {"value": 3.0, "unit": "s/batch"},
            same | {"value": 1.5, "unit": "s/image"},
            same | {"value": 2 / 3, "unit": "images/s"},
            same | {"value": 0.1, "unit": "s/step"},
            same | {"value": 10.0, "unit": "it/s"},
            same | {"value": 0.2, "unit": "s", "stage": "decode_image"},
        )
    )
    assert table.attrs["problems"] == []
    assert table["latency_s"].tolist() == pytest.approx([3.0, 3.0, 3.0, 3.0, 2.0, 2.0, 0.2])
    whole, step, loop, decoder = (table["predicted_s"][row] for row in (0, 4, 5, 6))
    assert decoder < 0.2 * whole and decoder + step < whole  # text encoders are the rest
    assert step < loop < 1.1 * step  # the loop holds the scheduler
    assert table["family"].tolist() == ["diffusion transformer"] * 6 + ["image decoder"]


def test_errors_by_family_execution_and_gpu_by_hand():
    kinds = [("a", "eager", "x"), ("a", "eager", "x"), ("a", "eager", "y"), ("a", "compiled", "x"), ("b", "eager", "x")]
    table = pd.DataFrame(kinds, columns=["family", "execution", "gpu"])
    table = table.assign(latency_error=[0.1, -0.3, 0.5, 0.2, -0.4], energy_error=np.nan)
    out = by_kind(table).set_index(["family", "execution", "gpu"])
    assert list(out.index) == [
        ("a", "compiled", "x"), ("a", "eager", "x"), ("a", "eager", "y"), ("a", "eager", "all"), ("a", "all", "all"),
        ("b", "eager", "x"), ("all", "all", "all"),
    ]  # fmt: skip
    assert out.loc[("a", "eager", "x"), ["n", "mdape", "bias"]].tolist() == pytest.approx([2, 20, -10])
    assert out.loc[("a", "eager", "x"), ["low", "high"]].tolist() == pytest.approx([-26, 6])  # of -30 and 10
    assert out.loc[("a", "all", "all"), "mdape"] == pytest.approx(25)  # of 10, 20, 30, 50
    assert out.loc[("all", "all", "all"), "n"] == 5


def test_summary_by_hand():
    table = pd.DataFrame(
        {
            "model": ["a", "a", "a", "b"],
            "gpus": [1, 1, 4, 1],
            "latency_error": [-0.1, 0.3, 0.5, -0.2],
            "energy_error": [0.1, -0.3, np.nan, np.nan],
        }
    )
    out = summary(table).set_index(["model", "on"])
    assert out["n"].tolist() == [2, 1, 1, 3, 1, 4]
    assert out.loc[("a", "one GPU"), "mdape_latency"] == pytest.approx(20)  # of 10 and 30
    assert out.loc[("a", "one GPU"), "bias_latency"] == pytest.approx(10)  # of -10 and 30
    assert out.loc[("a", "one GPU"), "mdape_energy"] == pytest.approx(20)
    assert np.isnan(out.loc[("b", "one GPU"), "mdape_energy"])
    assert out.loc[("all models", "any"), "mdape_latency"] == pytest.approx(25)  # of 10, 20, 30, 50
    assert out.loc[("all models", "several GPUs"), "bias_latency"] == pytest.approx(50)


# from a shell


def test_validate_writes_table_and_figure_and_says_what_was_left_out(tmp_path, capsys):
    path = write(tmp_path / "rows.csv", {}, {"gpus": 2, "ulysses": 2}, {"batch": 0})
    out, figure = tmp_path / "out.csv", tmp_path / "figure.png"
    assert main(["validate", path, "--out", str(out), "--figure", str(figure), "--json"]) == 1
    said = capsys.readouterr()
    assert said.err == "mmchar: line 4: batch=0: expected int >= 1\n"
    found = json.loads(said.out)
    assert found["rows"] == 2 and len(found["problems"]) == 1
    assert [row["on"] for row in found["summary"] if row["model"] == PIXART] == ["one GPU", "several GPUs"]
    assert pd.read_csv(out)["predicted_s"].gt(0).all()
    assert figure.read_bytes()[:4] == b"\x89PNG"


def test_validate_prints_a_line_per_model(tmp_path, capsys):
    assert main(["validate", write(tmp_path / "rows.csv", {})]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said if line] == ["model", PIXART, "all", "all", "family", "diffusion", "1"]


def test_a_line_with_too_many_or_too_few_fields(tmp_path):
    path = tmp_path / "rows.csv"
    names = list(GOOD)[:-2]
    good = ",".join(str(GOOD[name]) for name in names)
    path.write_text("\n".join([",".join(names), good, good + ",7", good.rpartition(",")[0], "", good]))
    table = validate(read_rows(path))
    assert len(table) == 2
    assert table.attrs["problems"] == [
        "line 3: more fields than the header has columns",
        "line 4: latency_s is missing",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file"),
        ("", "lacks the columns model, gpu, latency_s (or value and unit)"),
        ("model,gpu,value\n", "lacks the columns latency_s (or value and unit)"),
        ("model,gpu,latency_s\n", "has no rows"),
        ("model,gpu,latency_s,gpu\n1\n", "has the column 'gpu' twice"),
        ('model,gpu,latency_s\n"a,b,1\n', "cannot read"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_an_unusable_file_is_one_line_and_exit_2(tmp_path, capsys, text, reason):
    path = tmp_path / "rows.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["validate", str(path)]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1


def test_no_good_row_is_exit_1_with_the_reasons(tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert main(["validate", write(tmp_path / "rows.csv", {"batch": 0}), "--json", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "line 2: batch=0" in said.err and json.loads(said.out)["summary"] == [] and not out.exists()


def test_project_on_several_gpus_from_a_shell(tmp_path, capsys):
    sizes = ["project", PIXART, "--gpu", "h100-sxm", "--steps", "2"]
    out = tmp_path / "table.parquet"
    assert main([*sizes, "--gpus", "4", "--ulysses", "2", "--ring", "2", "--json", "--out", str(out)]) == 0
    shared = json.loads(capsys.readouterr().out)
    assert shared["gpus"] == 4 and shared["categories"]["Communication"] >= 0
    assert "communication" in shared["bound"]
    assert (pd.read_parquet(out)["category"] == "Communication").sum() == 2 * 28
    assert main([*sizes, "--gpus", "8", "--ulysses", "4"]) == 2
    assert "gpus=8, but ulysses 4 makes 4" in capsys.readouterr().err
    assert main([*sizes, "--gpus", "1", "--json"]) == 0
    assert "gpus" not in json.loads(capsys.readouterr().out)
