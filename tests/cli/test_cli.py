"""The shell contract: what JSON holds, and one line with exit 2 for everything that cannot be."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from mmchar.cli.main import COMMANDS, TASKS, main
from mmchar.provenance import SOURCE

SD = "stable-diffusion-1.5"


def run(capsys, *argv):
    code = main([*argv])
    out, err = capsys.readouterr()
    return code, out, err


def result(capsys, *argv):
    code, out, _ = run(capsys, *argv, "--json")
    assert code == 0
    return json.loads(out)


def test_count_follows_the_contract(capsys):
    got = result(capsys, "count", SD)
    keys = {
        "model",
        "params",
        "flop",
        "read_bytes",
        "write_bytes",
        "peak_bytes",
        "stages",
        "attention",
        "categories",
        "uncounted",
    }
    assert set(got) == keys
    assert got["params"] == 1_066_235_307
    assert [s["stage"] for s in got["stages"]] == ["encode_text", "denoise", "decode_image", "pipeline"]
    assert {"stage", "repeats", "params", "flop"} <= set(got["stages"][0])
    assert sum(s["flop"] * s["repeats"] for s in got["stages"]) == got["flop"]
    site = {"stage", "attention", "q_len", "kv_len", "heads", "head_dim", "calls", "repeats"}
    assert all(set(entry) == site for entry in got["attention"])
    assert {"attention": "self", "q_len": 4096, "calls": 5, "repeats": 51}.items() <= got["attention"][1].items()
    assert sum(c["flop"] for c in got["categories"].values()) == got["flop"]
    assert got["uncounted"] == []


def test_count_of_a_decoder_lists_the_growing_cache(capsys):
    got = result(capsys, "count", "parti-20b")
    causal = [a for a in got["attention"] if a["stage"] == "decode" and a["attention"] == "causal"]
    assert [a["kv_len"] for a in causal] == list(range(2, 1025))
    cross = [a for a in got["attention"] if a["stage"] == "decode" and a["attention"] == "cross"]
    assert [(a["kv_len"], a["repeats"]) for a in cross] == [(128, 1023)]


@pytest.mark.parametrize("attention", ["eager", "flash"])
def test_project_follows_the_contract(capsys, attention):
    got = result(capsys, "project", SD, "--gpu", "a100-80gb", "--attention", attention)
    assert {"time_s", "energy_j", "stages", "categories", "bound"} <= set(got)
    assert set(got["bound"]) == {"compute", "memory", "launch"}
    assert sum(s["time_s"] * s["repeats"] for s in got["stages"]) == pytest.approx(got["time_s"])
    assert sum(got["categories"].values()) == pytest.approx(got["time_s"])
    assert sum(got["bound"].values()) == pytest.approx(got["time_s"])
    assert got["fits"] is True


def test_a_model_that_does_not_fit_the_gpu_says_so(capsys):
    assert result(capsys, "project", "llama-2-70b", "--gpu", "t4", "--dtype", "float16")["fits"] is False
    code, out, _ = run(capsys, "project", "llama-2-70b", "--gpu", "t4", "--dtype", "float16")
    assert code == 0
    assert "needs 138" in out and "does not fit" in out


def test_what_makes_a_model_fit_is_said_with_its_cost(capsys):
    argv = ("project", "flux.1-dev", "--gpu", "rtx-4090")
    found = result(capsys, *argv)
    assert [(way["offload"], way["room"]) for way in found["memory"]] == [("model", "tight"), ("sequential", "fits")]
    out = run(capsys, *argv)[1]
    assert "tight with model offload (24.3 GB, at least 2.1 s more); fits with sequential offload" in out
    assert "does not fit" not in run(capsys, "project", SD, "--gpu", "rtx-4090")[1]


def test_stages_say_their_mfu(capsys):
    found = result(capsys, "project", SD, "--gpu", "a100-80gb")
    flop = result(capsys, "count", SD)["flop"]
    assert found["mfu"] == pytest.approx(flop / (found["time_s"] * 312e12))
    assert all(0 < stage["mfu"] < 1 for stage in found["stages"] if stage["stage"] != "pipeline")
    assert f"{found['mfu']:.0%} MFU" in run(capsys, "project", SD, "--gpu", "a100-80gb")[1]


def test_every_gpu_is_a_row_and_one_of_another_vendor_is_marked(capsys):
    rows = result(capsys, "project", SD, "--gpu", "all", "--tiny", "--dtype", "float16")
    assert {"t4", "rtx-3090", "h100-sxm", "mi300x"} <= {row["gpu"] for row in rows}
    assert [row["total_s"] for row in rows] == sorted(row["total_s"] for row in rows)
    out = run(capsys, "project", SD, "--gpu", "all", "--tiny")[1]
    assert "nothing on a GPU of AMD was measured" in out and "without bfloat16: t4, v100-32gb" in out
    assert "nothing on a GPU of AMD was measured" in run(capsys, "project", SD, "--gpu", "mi300x", "--tiny")[1]


def test_the_best_way_to_use_several_gpus(capsys):
    argv = ("project", SD, "--gpu", "a100-80gb", "--best-of", "2", "--steps", "2")
    found = result(capsys, *argv)
    assert {"one GPU", "cfg 2"} <= {way["way"] for way in found["ways"]}
    assert found["ways"][0]["time_s"] == min(way["time_s"] for way in found["ways"])
    assert "U-Net" in " ".join(found["refused"].values()) or found["refused"]
    assert "ways are refused, e.g." in run(capsys, *argv)[1]


def test_cached_steps_are_a_stage_of_their_own(capsys):
    argv = ("project", "flux.1-dev", "--gpu", "h100-sxm", "--step-cache", "first-block", "--hit-rate", "0.25")
    repeats = {stage["stage"]: stage["repeats"] for stage in result(capsys, *argv)["stages"]}
    assert (repeats["denoise"], repeats["denoise_cached"]) == (21, 7)
    assert "steps cached by first-block, 25% hits" in run(capsys, *argv)[1]


def test_request_options_change_the_count(capsys):
    base = result(capsys, "count", SD)
    half = result(capsys, "count", SD, "--steps", "25", "--height", "256", "--guidance", "1")
    assert half["flop"] < base["flop"] / 4
    cascade = result(capsys, "count", "imagen", "--tiny", "--steps", "3,2,1")
    assert [s["repeats"] for s in cascade["stages"]] == [1, 3, 2, 1, 1]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_out_writes_the_whole_table(capsys, tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    assert run(capsys, "count", SD, "--tiny", "--out", str(path))[0] == 0
    table = pd.read_parquet(path) if suffix == ".parquet" else pd.read_csv(path)
    assert {"module", "op", "flop", "kv_len"} <= set(table.columns) and len(table) > 100


def test_models_lists_and_filters(capsys):
    every = result(capsys, "models")
    some = result(capsys, "models", "--family", "autoregressive")
    assert {"llama-2-7b", "llama-2-13b", "llama-2-70b"} <= {row["model"] for row in some}
    assert {row["family"] for row in some} == {"autoregressive"}
    flux = {row["model"] for row in result(capsys, "models", "--match", "FLUX")}
    assert flux == {"flux.1-dev", "flux.1-schnell", "flux.2-dev", "flux.2-klein-4b"}
    assert len(every) > len(some)
    assert "llama-2-7b" in run(capsys, "models")[1]


def test_gpus_lists_every_name_that_project_takes(capsys):
    names = {row["name"] for row in result(capsys, "gpus")}
    assert {"a100-80gb", "h100-sxm", "h200-sxm", "b200", "l40s", "rtx-4090", "t4"} <= names
    assert "a100-80gb" in run(capsys, "gpus")[1]


def test_measured_facts_that_a_cpu_does_not_tell_are_null(capsys):
    argv = ("--tiny", "--device", "cpu", "--samples", "1", "--stages", "encode_text", "--attention", "math")
    found = result(capsys, "measure", SD, *argv)
    (stage,) = found["stages"]
    assert stage["stage"] == "encode_text"
    assert stage["idle_share"] is None and stage["launch_bound"] is None and found["machine"] is None
    assert found["peak_bytes"] == stage["memory"]["peak_bytes"] > 0
    assert found["attention"] == "math" and found["levers"] == {}
    assert {"energy_j", "changed", "speculation", "coverage"} <= stage.keys()


def test_text_output_names_the_scaled_down_variant(capsys):
    assert "scaled-down" in run(capsys, "count", SD, "--tiny")[1]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["count", "stable-diffusion-15"], "unknown model 'stable-diffusion-15'; did you mean 'stable-diffusion-1.5'?"),
        (["count", SD, "--height", "500"], "height=500 does not fit stable-diffusion-1.5; it must be a multiple of 8"),
        (["count", SD, "--height", "0"], "height=0 is not a whole number of 1 or more"),
        (["count", SD, "--height", "-8"], "height=-8 is not a whole number of 1 or more"),
        (["count", SD, "--height", "tall"], "argument --height: 'tall' is not a whole number"),
        (["count", SD, "--steps", "5,"], "argument --steps: '' is not a whole number"),
        (["count", SD, "--frames", "16"], "stable-diffusion-1.5 takes no 'frames'"),
        (["count", SD, "--prompt-tokens", "1024"], "prompt_tokens=1024 is outside the reach of stable-diffusion-1.5"),
        (["count", SD, "--dtype", "int8"], "unknown dtype 'int8'"),
        (["count", SD, "--out", "table.xlsx"], "--out 'table.xlsx' is neither .parquet nor .csv"),
        (["count", SD, "--out", f"{__file__}/table.csv"], "cannot be written: 'test_cli.py' is no folder"),
        (["count"], "the following arguments are required: MODEL"),
        (["cuont", SD], "invalid choice: 'cuont'"),
        (["project", SD], "the following arguments are required: --gpu"),
        (["project", SD, "--gpu", "h100"], "unknown gpu 'h100'; did you mean 'h100-pcie'"),
        (["project", SD, "--gpu", "t4"], "t4 has no bfloat16; use float16"),
        (["project", SD, "--gpu", "t4", "--attention", "paged"], "invalid choice: 'paged'"),
        (["models", "--match", "gan-of-1999"], "no model's name holds 'gan-of-1999'"),
        (["models", "--family", "gan"], "unknown family 'gan'; choose one of"),
        (["measure", SD, "--tiny", "--samples", "0"], "samples=0"),
        (["measure", SD, "--tiny", "--attention", "cudnn"], "attention 'cudnn' needs an NVIDIA GPU"),
        (["measure", SD, "--tiny", "--stages", "decode"], "has no stage 'decode' for this request; it has encode_text"),
        (["measure", SD, "--tiny", "--execution", "graphs"], "execution 'graphs' needs an NVIDIA GPU"),
        (["measure", SD, "--tiny", "--acceptance", "0.7"], "layer_skip and acceptance go together"),
        (["measure", SD, "--tiny", "--layer-skip", "2", "--acceptance", "1"], "layer_skip is not possible"),
        (["study", "--only", "77"], "77"),
        (["llama-2-7b", "--new-tokens", "5000"], "invalid choice"),
        (["count", "llama-2-7b", "--new-tokens", "5000"], "prompt_tokens+new_tokens=5512 is outside the reach"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys, argv, line):
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    assert err.startswith("mmchar: ") and err.count("\n") == 1
    assert line in err


def test_importing_the_package_and_refusing_bad_input_loads_no_torch():
    code = (
        "import sys, mmchar; from mmchar.cli.main import main; assert main(['count', 'nothing']) == 2; "
        "assert main(['count', 'llama-2-7b', '--height', '8']) == 2; "
        "print(sorted({'torch', 'matplotlib', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            "count",
            "text tokens per prompt; items and actions of a recommender's history",
        ),
        ("project", "--patch PATCH GPUs that share the image, with neighbours' activations of the step before"),
        ("measure", "--channels-last the convolutions' weights as"),
        ("study", "--parallel PARALLEL runs at a time"),
    ],
)
def test_help_says_of_an_option_what_its_dataclass_does(capsys, command, says):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert says in " ".join(capsys.readouterr().out.split())


def test_the_schema_of_a_model_file_names_what_it_must_hold(capsys):
    fields = result(capsys, "models", "--schema")["$defs"]
    assert {"name", "components", "request"} <= set(fields["ModelSpec"]["required"])
    assert fields["Component"]["properties"]["library"]["enum"] == ["diffusers", "mmchar", "transformers"]


def test_every_public_name_exists():
    import mmchar

    for name in mmchar.__all__:
        assert getattr(mmchar, name) is not None
    with pytest.raises(AttributeError, match="attribute '?nothing"):
        _ = mmchar.nothing


def test_doctor_reports_flash_attn_either_way(capsys):
    got = result(capsys, "doctor")
    assert "flash-attn" in got


def test_a_checkout_is_a_program():
    asked = [sys.executable, "-m", "mmchar", "measure"]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=SOURCE, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "measure needs a MODEL" in done.stderr


def test_the_help_lists_every_command_once_under_its_task(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert sorted(name for names in TASKS.values() for name in names) == sorted(COMMANDS)
    for task, names in TASKS.items():
        block = said.split(f"{task}:\n")[1].split("\n\n")[0]
        assert [line.split()[0] for line in block.splitlines() if line[2] != " "] == list(names)
