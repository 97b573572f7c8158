"""A recorded trace beside its projection: the same rows, kernels only, and no projection of what is not known."""

import pytest
from recorded_traces import H100, TraceMaker, block

import mmchar
from mmchar.projection.efficiency import Efficiency
from mmchar.study.beside_traces import beside_trace, compared


@pytest.fixture
def table(tmp_path):
    maker = block()
    maker.kernel("void at::native::elementwise_kernel<MulFunctor>(int)", 0, 300, 9, launch=False)
    return mmchar.read_trace(maker.write(tmp_path / "net.json"))


def test_every_row_that_says_what_it_computes_is_projected_on_the_gpu_of_the_trace(table):
    found = beside_trace(table)
    assert found.attrs["gpu"] == "h100-sxm" and set(found["time_kind"]) == {"measured"}
    known = found["module_type"] != "kernel"
    assert known.sum() == 5 and (found["projected_s"][known] > 0).all() and found["projected_s"][~known].isna().all()
    assert found["time_s"].tolist() == table["time_s"].tolist()
    rates = Efficiency(dispatch_s=0.0)
    alone = mmchar.project(table[known], gpu="h100-sxm", efficiency=rates)
    assert found["projected_s"][known].tolist() == alone["time_s"].tolist()
    # two launches of a kernel that is shorter than 3 us, far below what the host takes for them
    core = found[found["op"] == "scaled_dot_product_attention"].iloc[0]
    assert 2 * rates.kernel_s < core["projected_s"] < 2 * Efficiency().dispatch_s


def test_another_gpu_may_be_named(table):
    assert beside_trace(table, gpu="a100-80gb").attrs["gpu"] == "a100-80gb"
    with pytest.raises(ValueError, match="unknown gpu"):
        beside_trace(table, gpu="abacus")


@pytest.mark.parametrize(("device", "says"), [
    ({"id": 0, "name": "AMD Instinct MI300X"}, "no evidence of how fast kernels of AMD Instinct MI300X"),
    ({"id": 0, "name": "Moore Threads S4000"}, "no data sheet of Moore Threads S4000"),
    (None, "whose name was not recorded"),
])  # fmt: skip
def test_a_gpu_that_is_not_known_is_not_projected(tmp_path, device, says):
    table = mmchar.read_trace(block(device).write(tmp_path / "net.json"))
    with pytest.raises(ValueError, match=says):
        beside_trace(table)
    assert beside_trace(table, gpu="l40s").attrs["gpu"] == "l40s"


def test_cudnn_attention_is_projected_as_the_fused_kernel_that_it_is(tmp_path):
    def core(kernel):
        maker = TraceMaker(H100)
        q = ([1, 8, 256, 64], "c10::Half")
        maker.op("aten::scaled_dot_product_attention", 0, 9, q, q, q, "", "0.", "False", "", "False")
        maker.kernel(kernel, 4, 10, 5)
        return beside_trace(mmchar.read_trace(maker.write(tmp_path / "a.json"))).iloc[0]

    cudnn, flash = core("cudnn_generated_fort_native_sdpa_sm90"), core("flash_fwd_kernel")
    assert (cudnn["backend"], flash["backend"]) == ("cudnn", "flash")
    assert cudnn["projected_s"] == flash["projected_s"] > 0


def test_sums_by_a_column_compare_what_both_sides_know(table):
    sums = compared(beside_trace(table), "category").set_index("category")
    assert list(sums.index) == ["Attention", "Linear", "Convolution", "Elementwise"], "the longest first"
    assert sums["time_s"].sum() == pytest.approx(79e-6) and sums["share"].sum() == pytest.approx(1)
    assert sums.loc["Elementwise", ["known_s", "projected_s"]].tolist() == [0, 0]
    assert sums["ratio"].isna().tolist() == [False, False, False, True]
    linear = sums.loc["Linear"]
    assert linear["ratio"] == pytest.approx(linear["projected_s"] / 24e-6)
