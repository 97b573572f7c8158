"""``mmchar trace`` and ``--perfetto``: what they answer, and one line for what cannot be."""

import json

import pandas as pd
import pytest
from recorded_traces import block

from mmchar.cli.main import main


@pytest.fixture
def file(tmp_path):
    return str(block().write(tmp_path / "net.pt.trace.json.gz"))


def run(capsys, *argv):
    code = main([*argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_trace_is_shown_beside_its_projection(capsys, file):
    code, out, err = run(capsys, "trace", file)
    assert (code, err) == (0, "")
    first, *rest = out.splitlines()
    assert first == "net on NVIDIA H100 80GB HBM3: 10 kernels, 0.070 ms busy of 0.111 ms (idle 37%)"
    assert "operators explain 100.0%" in rest[0] and "beside it the projection on h100-sxm" in out
    category = next(line.split() for line in rest if line.startswith("Convolution"))
    assert category[1:4] == ["0.020", "ms", "28.6%"] and len(category) == 7
    assert "scaled_dot_product_attention 16 x 16 tokens, 4 heads of 16" in out
    assert "linear 2x16x64, 192x64, 192" in out, "equal shapes of all modules are one line"


def test_kernels_are_shown_by_kind(capsys, file):
    _, out, _ = run(capsys, "trace", file, "--kernels")
    kinds = dict(reversed([(line.split("  ")[0], line.split()[-4:]) for line in out.splitlines() if line]))
    assert kinds["bias add"] == ["1", "0.005", "ms", "7.1%"] and kinds["layout copy"] == ["2", "0.005", "ms", "7.1%"]
    assert "nvjet_hsh_128x128_64x4_1x2_h_bz_coopA_TNT" in out


def test_json_has_rows_kernels_and_categories(capsys, file, tmp_path):
    code, out, _ = run(capsys, "trace", file, "--json", "--out", str(tmp_path / "t.parquet"))
    found = json.loads(out)
    assert code == 0 and found["gpu"] == "h100-sxm" and found["not_projected"] == ""
    assert found["time_s"] == pytest.approx(70e-6) and found["busy_s"] == pytest.approx(70e-6)
    assert found["coverage"] == {"of_operators": 1.0, "with_sizes": 1.0} and found["kernels"] == 10
    assert len(found["rows"]) == 5 and all(row["projected_s"] > 0 < row["time_s"] for row in found["rows"])
    assert {entry["kind"] for entry in found["kernel_kinds"]} >= {"bias add", "layout copy", "convolution"}
    assert sum(entry["time_s"] for entry in found["categories"]) == pytest.approx(70e-6)
    written = pd.read_parquet(tmp_path / "t.parquet")
    assert {"projected_s", "shapes", "bound"} <= set(written) and len(written) == 5


def test_an_amd_gpu_is_measured_and_says_that_it_is_not_projected(capsys, tmp_path):
    file = block({"id": 0, "name": "AMD Instinct MI300X"}).write(tmp_path / "amd.json")
    code, out, err = run(capsys, "trace", str(file))
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith("  not projected: there is no evidence")]
    assert "0.020 ms" in out
    found = json.loads(run(capsys, "trace", str(file), "--json")[1])
    assert found["gpu"] is None and found["rows"][0]["projected_s"] is None


def test_a_table_is_written_as_a_trace(capsys, file, tmp_path):
    for name, argv in {
        "trace": ["trace", file],
        "count": ["count", "parti-350m", "--tiny"],
        "project": ["project", "parti-350m", "--tiny", "--gpu", "t4", "--dtype", "float16"],
    }.items():
        code, _, err = run(capsys, *argv, "--perfetto", str(tmp_path / f"{name}.json"))
        written = json.loads((tmp_path / f"{name}.json").read_text())
        assert (code, err) == (0, "") and written["traceEvents"]
        assert written["otherData"]["time_kind"] == {"trace": "measured", "count": "counted"}.get(name, "projected")


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        (["trace"], "the following arguments are required: FILE"),
        (["trace", "$F/missing.json"], "cannot read"),
        (["trace", "$F"], "cannot read"),
        (["trace", "$F/cut.json.gz"], "is cut off"),
        (["trace", "$F/missing.json", "--gpu", "abacus"], "unknown gpu 'abacus'"),
        (["trace", "$F/missing.json", "--out", "$F/t.txt"], "is neither .parquet nor .csv"),
        (["trace", "$F/missing.json", "--perfetto", "$F/t.html"], "is not .json"),
        (["trace", "$F/missing.json", "--perfetto", "$F/cut.json.gz/t.json"], "cannot be written"),
        (["count", "parti-350m", "--perfetto", "t.pb"], "--perfetto 't.pb' is not .json"),
        (["project", "parti-350m", "--gpu", "t4", "--perfetto", "t.pb"], "is not .json"),
        (["measure", "parti-350m", "--perfetto", "t.pb"], "is not .json"),
        (["measure", "--grid", "g.yaml", "--out", "o", "--perfetto", "t.json"], "--perfetto does not go with --grid"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, tmp_path, argv, answer):
    whole = block().write(tmp_path / "whole.json.gz").read_bytes()
    (tmp_path / "cut.json.gz").write_bytes(whole[: len(whole) // 2])
    code, out, err = run(capsys, *(part.replace("$F", str(tmp_path)) for part in argv))
    assert (code, out) == (2, "") and err.startswith("mmchar: ") and err.count("\n") == 1 and answer in err, err
