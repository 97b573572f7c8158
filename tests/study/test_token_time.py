"""Where a token's time goes: bytes by hand, parts against the whole, shares and texts from tables."""

import pandas as pd
import pytest

from mmchar import Request, count
from mmchar.study.questions import token_time as of

GPU, LLAMA = "a100-80gb", "llama-2-7b"


@pytest.fixture(scope="module")
def tables():
    return {LLAMA: count(LLAMA, Request(prompt_tokens=64, new_tokens=4))}


def test_memory_and_host_by_hand(tables):
    (row,) = of.memory_and_host(tables, gpu=GPU).to_dict("records")
    # 32 layers of 4 * 4096^2 + 3 * 4096 * 11008, and the head of 4096 * 32000, in 2 bytes
    weights = 2 * (32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000)
    assert row["weights (GB)"] == pytest.approx(weights / 1e9)
    # keys and values of 64 prompt tokens and those after them, 32 layers of 4096 numbers in 2 bytes
    assert 65 < row["cache (GB)"] * 1e9 / (2 * 32 * 4096 * 2) < 68.5
    assert row["limit (ms)"] == pytest.approx((row["weights (GB)"] + row["cache (GB)"]) / 2.039, rel=1e-3)
    assert row["idle, 0 to (%)"] == pytest.approx(100 * (1 - row["limit (ms)"] / row["host (ms)"]))
    with pytest.raises(ValueError, match="stable-diffusion-1.5 has no stage 'decode'"):
        of.memory_and_host({"x": count("stable-diffusion-1.5", tiny=True)}, gpu=GPU)


def test_the_parts_of_a_token_are_its_whole(tables):
    breakdown, token = of.by_operator(tables, gpu=GPU), of.token_costs(tables, gpu=GPU)
    sums = breakdown.groupby("execution")["value"].sum()
    assert sums.to_dict() == pytest.approx(token.set_index("execution")["token_ms"].to_dict())
    idle = of.operator_shares(breakdown)["Idle"].droplevel("model")
    assert idle.to_dict() == pytest.approx((100 * token.set_index("execution")["idle_share"]).to_dict())


def test_matrices_take_their_share_of_kernel_time_only():
    rows = [
        ("eager", "Linear", 6.0),
        ("eager", "Attention", 2.0),
        ("eager", "Elementwise", 2.0),
        ("eager", "Idle", 90.0),
    ]
    rows += [("compiled", "Linear", 1.0)]
    found = of.matrix_share(pd.DataFrame(rows, columns=["execution", "category", "value"]).assign(model="m"))
    assert found.to_dict() == {"m": 80.0}


def test_batches_read_the_same_weights_and_are_drawn():
    sweep = of.over_batches([LLAMA], [1, 4], gpu=GPU, dtype="bfloat16", tiny=True, progress=False)
    assert sweep["weights_gb"].nunique() == 1 and sweep["batch"].tolist() == [1, 4]
    assert sweep["idle"].tolist() == (100 * sweep["idle_share"]).tolist()
    above, below = of.idle_panels(sweep, own=[LLAMA], title="idle").axes
    assert [len(ax.lines) for ax in (above, below)] == [1, 2]  # a line per model, a line per batch


def test_a_measured_step_is_shared_out_over_its_operators():
    (row,) = of.measured_steps([LLAMA], samples=2, progress=False).to_dict("records")
    assert row["us per operator"] == pytest.approx(1e3 * row["step (ms)"] / row["operators"])
    assert 0 <= row["outside operators (%)"] < 100 and row["operators"] > 20


def test_what_was_learned_names_the_batch_that_keeps_a_gpu_busy():
    rows = [("m", "eager", 10.0, 0.7, 0.1), ("m", "compiled", 3.0, 0.0, 0.5)]
    token = pd.DataFrame(rows, columns=["model", "execution", "token_ms", "idle_share", "reached"])
    sweep = pd.DataFrame({"model": "m", "batch": [1, 16, 64], "idle_share": [0.7, 0.01, 0.0]})
    text = of.learned(token, sweep, pd.Series({"m": 3.9}))
    assert "**m**: 10 ms a token, 70 % idle; compiled 3 ms, 50 % of the bandwidth limit; all levers 3.90x" in text
    assert text.endswith("(of [1, 16, 64]): m 16.")
