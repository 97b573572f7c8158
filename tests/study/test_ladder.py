"""What a token costs and what the rungs of a ladder give, by projection, against arithmetic and published speeds."""

from dataclasses import replace

import pandas as pd
import pytest

from mmchar import Request, count, get_gpu
from mmchar.measuring.optimization.ladder import Levers, Rung, ladder
from mmchar.projection.decode_costs import (
    must_read_bytes,
    narrow_weights,
    token_breakdown,
    token_cost,
    token_rows,
    weight_bytes,
)
from mmchar.projection.efficiency import Efficiency
from mmchar.study.drawing.projection_plots import ladder_bars, ladder_panels
from mmchar.study.experiments import per_unit_s
from mmchar.study.projected_ladder import (
    climb,
    of_kind,
    project_ladder,
    project_levers,
    project_rung,
    published_rungs,
    rungs_beside,
)

GPU = "a100-80gb"


@pytest.fixture(scope="module")
def llama():
    return count("llama-2-7b", Request(prompt_tokens=64, new_tokens=4))


def test_a_token_reads_every_weight_but_the_embedding_and_the_norms_once(llama):
    weights, cache = must_read_bytes(token_rows(llama))
    # 32 layers * (4 * 4096^2 + 3 * 4096 * 11008) + 32000 * 4096, 2 bytes each, 3 decoding steps
    assert weights == 3 * 2 * (32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096)
    # keys and values of 65, 66 and 67 tokens and the query of one: 2 * 4096 numbers a token, 32 layers
    assert cache == 2 * 32 * (2 * 4096 * (65 + 66 + 67) + 3 * 4096)


@pytest.mark.parametrize(("name", "request_"), [("parti-350m", {"guidance": 7.5}), ("llama-2-7b", {"batch": 3})])
def test_weights_do_not_depend_on_what_is_decoded_together(name, request_):
    one = count(name, Request(**dict.fromkeys(request_, 1)), tiny=True)
    many = count(name, Request(**request_), tiny=True)
    assert must_read_bytes(token_rows(one))[0] == must_read_bytes(token_rows(many))[0] > 0
    rows = token_rows(many)
    assert (weight_bytes(rows) <= rows["read_bytes"]).all()


def test_beams_read_the_weights_once():
    rows = token_rows(count("seamless-m4t-v2-large-t2tt", tiny=True))
    linear = rows["category"] == "Linear"
    assert (weight_bytes(rows) <= rows["read_bytes"]).all() and (weight_bytes(rows)[linear] > 0).all()


def test_idle_time_is_what_the_kernels_leave(llama):
    cost = token_cost(llama, gpu=GPU)
    assert 0.5 < cost["idle_share"] < 0.6 and cost["device_s"] < cost["token_s"]
    # the host sets the time: operators x its time for each
    assert cost["token_s"] == pytest.approx(cost["calls"] * Efficiency().dispatch_s, rel=0.02)
    assert token_cost(llama, gpu=GPU, execution="compiled")["idle_share"] == pytest.approx(0, abs=1e-9)
    free = token_cost(llama, gpu=GPU, efficiency=Efficiency(dispatch_s=0.0))
    assert free["token_s"] == pytest.approx(cost["device_s"]) and free["idle_share"] == pytest.approx(0, abs=1e-9)
    parts = token_breakdown(llama, gpu=GPU).set_index("category")["value"]
    assert parts.sum() == pytest.approx(cost["token_s"])
    assert parts["Idle"] == pytest.approx(cost["idle_share"] * cost["token_s"])


def test_narrow_weights_halve_the_bytes_of_weights_and_nothing_else(llama):
    rows = token_rows(llama)
    less = narrow_weights(rows)
    assert (rows["read_bytes"] - less["read_bytes"]).tolist() == (weight_bytes(rows) // 2).tolist()
    assert less.drop(columns="read_bytes").equals(rows.drop(columns="read_bytes"))


def test_a_model_that_does_not_decode_is_refused():
    with pytest.raises(ValueError, match=r"stable-diffusion-1\.5 has no stage 'decode'; choose"):
        token_cost(count("stable-diffusion-1.5", tiny=True), gpu=GPU)


def test_a_graph_is_the_same_kernels_without_the_host():
    start = Rung("SDPA", "bfloat16", "flash", Levers())
    graph = start._replace(levers=Levers(execution="graphs"))
    options = {"gpu": GPU, "request": Request(prompt_tokens=64, new_tokens=4)}
    eager, replayed = (project_rung("llama-2-7b", rung, **options) for rung in (start, graph))
    assert per_unit_s(replayed) == pytest.approx(token_cost(eager, gpu=GPU)["device_s"])
    assert per_unit_s(eager) == pytest.approx(token_cost(eager, gpu=GPU)["token_s"])


def test_quantized_rungs_change_linear_layers_only():
    rung = Rung("", "bfloat16", "flash", Levers(execution="graphs"))
    eight = rung._replace(levers=replace(rung.levers, quantization="fp8-dynamic"))
    plain, quantized = (project_rung("dit-xl-2-256", each, gpu="h100-sxm") for each in (rung, eight))
    linear = plain["category"] == "Linear"
    assert quantized["time_s"][~linear].equals(plain["time_s"][~linear])
    ratio = quantized["time_s"][linear].sum() / plain["time_s"][linear].sum()
    assert 0.5 <= ratio < 0.9
    with pytest.raises(ValueError, match="a100-80gb has no fp8 products"):
        project_rung("dit-xl-2-256", eight, gpu=GPU)


def test_a_ladder_says_what_a_projection_leaves_out():
    rows = project_ladder("sdxl-base-1.0", gpu=GPU, tiny=True).set_index("rung")
    assert list(rows.index) == [rung.name for rung in ladder("sdxl-base-1.0")]
    assert pd.isna(rows.at["channels last", "value"]) and rows["value"].drop("channels last").notna().all()
    assert rows.at["channels last", "note"] == "without channels last and fused qkv"
    assert rows.at["quantized", "note"].endswith("int8 instead of fp8")
    assert rows.at["eager fp32", "gain"] == 1
    first = ladder("sdxl-base-1.0")[:2]
    rows, fast = (
        project_ladder("sdxl-base-1.0", gpu=GPU, tf32=tf32, rungs=first).set_index("rung") for tf32 in (False, True)
    )
    assert (
        2 * fast.at["eager fp32", "value"] < rows.at["eager fp32", "value"] and fast.at["eager fp32", "note"] == "TF32"
    )
    assert fast["value"].iloc[1] == rows["value"].iloc[1]


def test_each_published_speed_stands_at_its_rung():
    llama = published_rungs("llama-2-7b", gpu=GPU).set_index("rung")["value"]
    assert llama.to_dict() == pytest.approx({"graphs": 1 / 104.9, "quantized": 1 / 155.58, "SDPA": 1 / 25.5})
    sdxl = published_rungs("sdxl-base-1.0", gpu=GPU, steps=30)
    docs = sdxl[sdxl["source"].str.startswith("diffusers docs")]
    assert docs["value"].tolist() == [7.36, 4.63, 3.31, 2.54, 2.52, 2.43]
    assert docs["rung"].tolist() == ["eager fp32", "bf16", "SDPA", "compile", "compile", "quantized"]
    assert published_rungs("seamless-m4t-v2-large", gpu=GPU).empty  # seconds of a whole corpus


def test_a_projected_ladder_is_near_the_published_one():
    projected = project_ladder("llama-2-7b", gpu=GPU).set_index("rung")["value"]
    published = published_rungs("llama-2-7b", gpu=GPU).set_index("rung")["value"]
    ratio = projected[published.index] / published
    assert ratio[["graphs", "quantized"]].between(0.85, 1.15).all() and ratio.between(0.6, 1.7).all()


def test_levers_alone_start_at_one_and_half_the_steps_is_nearly_half_the_time():
    gains = project_levers("stable-diffusion-1.5", gpu=GPU).set_index("lever")["gain"]
    assert gains["as it is"] == 1 and 1.8 < gains["half the steps"] < 2
    assert gains["eager attention"] < 1 and gains["float32"] < 1 and gains["compile"] > 1
    assert gains["guidance split"] < 1  # two executions of one image leave the GPU emptier than one of two
    assert "guidance split" not in project_levers("flux.1-dev", gpu="h100-sxm", tiny=True)["lever"].tolist()
    assert "linear layers in fp8" in project_levers("flux.1-dev", gpu="h100-sxm", tiny=True)["lever"].tolist()
    sheet = get_gpu(GPU)
    bare = replace(sheet, peak_flop_s={key: value for key, value in sheet.peak_flop_s.items() if key != "int8"})
    assert not project_levers("flux.1-dev", gpu=bare, tiny=True)["lever"].str.contains("linear").any()


def test_bars_are_hatched_where_measured_and_points_where_published():
    rows = [("a", 2.0, "projected", "t4", None), ("b", float("nan"), "projected", "t4", None)]
    rows += [("a", 3.0, "measured", "cpu", 0.2), ("b", 4.0, "published", None, None)]
    data = pd.DataFrame(rows, columns=["rung", "value", "time_kind", "machine", "spread"])
    ax = ladder_bars(data, unit="ms", scale=1e3, limit=0.5)
    widths = {bar.get_hatch() or "": bar.get_width() for bar in ax.patches if bar.get_width()}
    assert widths == {"": 2000.0, "///": 3000.0}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["2,000", "not in a projection", "3,000"]
    assert ax.get_xlabel() == "ms" and any("published" in label for label in ax.get_legend_handles_labels()[1])


def test_a_climb_stands_beside_what_was_published_of_each_model():
    few = [rung for rung in ladder("llama-2-7b") if rung.name in ("SDPA", "graphs")]
    names = ["llama-2-7b", "codellama-7b"]
    climbed = climb(dict.fromkeys(names, (GPU, None)), [], rungs=few, tiny=True, progress=False)
    ours, said = of_kind(climbed, "projected"), of_kind(climbed, "published")
    assert ours.groupby("model", sort=False)["rung"].agg(list).to_dict() == dict.fromkeys(names, ["SDPA", "graphs"])
    assert "source" not in ours and "gain" not in said and set(said["model"]) <= set(names)
    both = rungs_beside(climbed)
    assert set(both["rung"]) == {"SDPA", "graphs"} and len(both) == said["rung"].isin(["SDPA", "graphs"]).sum()
    assert (both["projected_s"] / both["published_s"]).tolist() == both["ratio"].tolist()
    figure = ladder_panels(climbed, dict.fromkeys(names, "title"), unit="ms/token", scale=1e3)
    assert [ax.get_xlabel() for ax in figure.axes] == ["ms/token"] * 2


def test_denoising_steps_of_a_climb_choose_what_is_projected_and_published():
    cases = {"sdxl-base-1.0": (GPU, 30)}
    rungs = [rung for rung in ladder("sdxl-base-1.0") if rung.name in ("eager fp32", "bf16")]
    climbed = climb(cases, [], tf32=True, rungs=rungs, progress=False)
    projected = of_kind(climbed, "projected").set_index("rung")
    assert projected.at["eager fp32", "note"] == "TF32"
    alone = per_unit_s(project_rung("sdxl-base-1.0", rungs[1], gpu=GPU, request=Request(steps=30)))
    assert projected.at["bf16", "value"] == pytest.approx(alone)
    said = published_rungs("sdxl-base-1.0", gpu=GPU, steps=30)["value"].tolist()
    assert of_kind(climbed, "published")["value"].tolist() == said and len(said) > 3
