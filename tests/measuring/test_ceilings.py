"""Ceilings: single operators with the right work beside their time, in time, and with a reason where there is none."""

import json
from dataclasses import replace

import pytest

from mmchar.cli.main import main
from mmchar.measuring import ceilings
from mmchar.measuring.ceiling_cases import Case, cases
from mmchar.measuring.ceilings import measure_ceilings
from mmchar.tables.stored import read_table


@pytest.fixture(scope="module")
def table():
    return measure_ceilings(tiny=True, progress=False)


def test_every_tiny_case_has_a_time(table):
    assert (table["status"] == "ok").all(), table[table["status"] != "ok"][["op", "reason"]]
    assert (table["median_s"] > 0).all() and (table["samples"] >= 10).all() and (table["executions"] >= 1).all()
    assert {"linear", "attention", "convolution", "layer_norm", "copy", "dispatch add_"} <= set(table["op"])
    assert set(table.loc[table["op"] == "attention", "backend"]) == {"flash", "eager", "math"}
    assert table.attrs["threads"] >= 1 and table.attrs["provenance"]["versions"]["torch"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_work_of_every_case_is_what_its_operator_does(device):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    for case in cases(device=device):
        inputs = case.make("meta")
        with FlopCounterMode(display=False) as counter:
            out = case.call(*inputs)
        moved = sum(x.numel() for x in (*inputs, out) if isinstance(x, torch.Tensor))
        assert (case.flop, case.moved) == (counter.get_total_flops(), moved), (case.op, case.sizes)


def test_a_product_and_an_attention_by_hand():
    found = {(c.op, json.dumps(c.sizes), c.dtype): c for c in cases(device="cuda")}
    one = found["linear", '{"m": 1, "n": 11008, "k": 4096}', "bfloat16"]
    assert one.flop == 90_177_536  # 2 * 11008 * 4096
    assert one.moved_bytes == 90_207_744  # (4096 + 11008 * 4096 + 11008) * 2
    sizes = {"batch": 2, "heads": 8, "q_len": 4096, "kv_len": 4096, "head_dim": 40, "causal": False}
    self_attention = found["attention", json.dumps(sizes), "bfloat16"]
    assert self_attention.flop == 42_949_672_960  # 4 * 2 * 8 * 4096 * 4096 * 40
    assert self_attention.moved_bytes == 20_971_520  # 4 * 2 * 8 * 4096 * 40 * 2


def test_awkward_sizes_are_there():
    sizes = [(c.op, c.sizes) for c in cases(device="cuda")]
    heads = {s["head_dim"] for op, s in sizes if op == "attention"}
    lengths = {s["q_len"] for op, s in sizes if op == "attention"}
    assert {40, 64, 72, 128, 512} <= heads and {1, 16, 77, 256, 1024, 4096, 16384} <= lengths
    assert any(op == "attention" and s["batch"] > 1000 and s["q_len"] == 16 for op, s in sizes)
    assert any(op == "linear" and s["m"] == 1 for op, s in sizes)
    assert any(op == "linear" and s["m"] % 8 and s["n"] % 8 and s["k"] % 8 for op, s in sizes)
    assert {s["channels"] for op, s in sizes if op == "convolution"} == {"first", "last"}


def test_no_case_starts_after_the_budget(monkeypatch):
    table = measure_ceilings(tiny=True, budget_s=1e-9, progress=False)
    assert set(table["status"]) == {"not reached"} and table["median_s"].isna().all()


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("CUDA out of memory"), "failed"), (RuntimeError("No available kernel. Aborting"), "skipped")],
)
def test_a_case_that_cannot_run_is_a_row_with_its_reason(monkeypatch, error, status):
    def broken(*_inputs):
        raise error

    case = Case("broken", {}, "float32", 0, 1, lambda device: (), broken)
    monkeypatch.setattr(ceilings, "cases", lambda **_: [case])
    table = measure_ceilings(progress=False)
    assert table.iloc[-1]["status"] == status and str(error)[:10] in table.iloc[-1]["reason"]
    assert (table["status"].iloc[:-1] == "ok").all()


def test_what_would_take_a_cpu_too_long_is_skipped(monkeypatch):
    case = Case("huge", {}, "float32", 10**12, 1, lambda device: (), lambda: pytest.fail("ran"))
    monkeypatch.setattr(ceilings, "cases", lambda **_: [case])
    assert measure_ceilings(progress=False).iloc[-1]["reason"] == "too large for a cpu"


def test_repeated_work_is_divided_by_how_often(monkeypatch):
    calls = []
    case = Case("counted", {}, "float32", 0, 1, lambda device: (), lambda: calls.append(1))
    ways = list(ceilings._ways(case, "cpu"))
    (how, timed, times) = ways[0]
    assert how == "eager" and times == 256  # the most in a sample
    assert len(calls) == 2 + 3 + times * (2 + timed.n)  # to see how long one takes, then warm-up and samples


def test_the_shell_writes_one_table(tmp_path, capsys, monkeypatch):
    small = [case for case in cases(device="cpu", tiny=True) if case.op == "linear"]
    monkeypatch.setattr(ceilings, "cases", lambda **_: small)
    assert main(["measure", "--ceilings", "--tiny", "--budget", "60", "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    table = read_table(tmp_path / told["file"])
    assert told["statuses"] == {"ok": len(table)} and table.attrs["device"] == "cpu"
    assert json.loads(table["sizes"].iloc[-1])["m"] == 1


def test_no_gpu_is_one_line(capsys):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["measure", "--ceilings", "--device", "cuda", "--out", "x"]) == 2
    assert "sees no CUDA GPU" in capsys.readouterr().err


@pytest.mark.gpu
def test_ceilings_of_a_gpu():
    table = measure_ceilings(device="cuda", tiny=True, progress=False)
    assert {"eager", "graph", "host", "graph of one"} <= set(table["how"])
    assert not (table["status"] == "failed").any(), table[table["status"] == "failed"][["op", "dtype", "reason"]]


def test_an_unusable_gpu_ends_the_ceilings_and_keeps_what_is_there(monkeypatch):
    def broken(*_given):
        raise RuntimeError("an illegal memory access was encountered")

    one = next(iter(cases(device="cpu", tiny=True)))
    monkeypatch.setattr(ceilings, "cases", lambda **_: [one, replace(one, make=broken), one])
    monkeypatch.setattr(ceilings, "dispatch_cases", list)
    monkeypatch.setattr(ceilings, "is_usable", lambda _device: False)
    table = measure_ceilings(progress=False)
    assert table["status"].tolist() == ["ok", "failed", "not reached"]
    assert "left unusable by linear" in table["reason"].tolist()[2]
