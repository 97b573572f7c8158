"""What a generation holds in memory, offloaded, sliced and tiled: by hand, by accelerate's hooks, and as published."""

from dataclasses import replace

import pytest
import torch
from test_roofline import table

import mmchar
from mmchar.generation.recording import Subject
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.planning.decoders import Generation
from mmchar.projection.planning.memory import first_to_fit, fit_in_memory, room, ways_to_hold

T4 = get_gpu("t4")  # 16 GB, 16 GB/s to the host
FLUX = "flux.1-dev"


def layer():
    return torch.nn.Linear(500_000, 1000, bias=False, device="meta", dtype=torch.bfloat16)  # 1 GB


def generation(text_gb, denoiser_gb, decoder_gb):
    """Text encoder, denoiser of 10 steps and decoder of as many modules as they have GB, with 1, 2, 3 GB alive."""
    shapes = {"text": (text_gb, 1, 1), "denoiser": (denoiser_gb, 10, 2), "vae": (decoder_gb, 1, 3)}
    networks, rows = {}, []
    for role, (modules, repeats, live) in shapes.items():
        networks[role] = torch.nn.Sequential(*(layer() for _ in range(modules)))
        for index in range(modules):
            site = {"stage": role, "component": role, "module": str(index), "repeats": repeats}
            rows.append({**site, "live_bytes": live * 10**9})
    counted = table(*rows)
    params = {"text": text_gb, "denoiser": denoiser_gb, "vae": decoder_gb}
    counted.attrs = {"dtype": "bfloat16", "params": {role: many * 500_000_000 for role, many in params.items()}}
    return Generation(counted, lambda: Subject("made up", networks, lambda: None))


def ways(*sizes, gpu=T4):
    return {way["offload"]: way for way in ways_to_hold(generation(*sizes), gpu)}


def test_all_weights_stay_or_those_of_one_component_or_of_one_module():
    found = ways(9, 6, 1)
    assert found["none"]["peak_bytes"] == (9 + 6 + 1 + 3) * 10**9
    assert found["model"]["peak_bytes"] == (9 + 1) * 10**9 and found["model"]["stage"] == "text"
    assert found["sequential"]["peak_bytes"] == (1 + 3) * 10**9 and found["sequential"]["stage"] == "vae"
    assert [way["weight_bytes"] + way["live_bytes"] for way in found.values()] == [
        way["peak_bytes"] for way in found.values()
    ]


def test_components_go_up_and_down_once_and_modules_up_in_every_execution():
    found = ways(9, 6, 1)
    assert found["none"]["moved_bytes"] == 0
    assert found["model"]["moved_bytes"] == 2 * (9 + 6 + 1) * 10**9
    assert found["sequential"]["moved_bytes"] == (9 + 10 * 6 + 1) * 10**9
    assert found["sequential"]["moved_s"] == pytest.approx(70 / 16)  # PCIe 3.0 x16, 16 GB/s


def test_a_single_network_has_nothing_to_take_turns_with():
    assert list(ways(0, 6, 0)) == ["none", "sequential"]


def test_what_is_left_for_the_allocator_decides_between_fitting_and_tight():
    assert [room(int(gb * 1e9), T4) for gb in (12.8, 12.9, 16.7, 16.9)] == ["fits", "tight", "tight", "none"]


def test_the_search_ends_at_the_first_way_that_fits():
    assert [way["offload"] for way in first_to_fit(generation(2, 6, 1), T4)] == ["none"]
    assert [way["offload"] for way in first_to_fit(generation(9, 6, 1), T4)] == ["model"]
    tight = first_to_fit(generation(9, 14, 1), T4)  # 14 + 2 GB of the T4's 16
    assert [(way["offload"], way["room"]) for way in tight] == [("model", "tight"), ("sequential", "fits")]
    twice = first_to_fit(generation(1, 11, 1), T4)  # 13 + 3 GB resident are tight, as are 11 + 2 GB
    assert [(way["offload"], way["room"]) for way in twice] == [("none", "tight"), ("sequential", "fits")]


def test_a_tiled_decoder_takes_less_and_a_sliced_batch_what_one_image_takes():
    asked = {"gpu": "t4", "dtype": "float16", "tiny": True}
    one = fit_in_memory(FLUX, **asked, height=256, width=256).set_index(["offload", "decoder"])["live_bytes"]
    assert ("sequential", "sliced") not in one.index  # nothing to slice
    assert one["sequential", "tiled"] < 0.5 * one["sequential", "whole"]
    four = fit_in_memory(FLUX, **asked, height=256, width=256, batch=4).set_index(["offload", "decoder"])["live_bytes"]
    assert four["sequential", "whole"] == pytest.approx(4 * one["sequential", "whole"], rel=0.01)
    assert one["sequential", "whole"] < four["sequential", "sliced"] < 1.2 * one["sequential", "whole"]
    assert four["sequential", "tiled"] < four["sequential", "sliced"]


def test_a_decoder_that_its_pipeline_runs_in_float32_is_tiled_in_float32():
    asked = {"tiny": True, "height": 512, "width": 512}
    half, single = (Generation.of("sdxl-base-1.0", dtype=dtype, **asked) for dtype in ("float16", "float32"))
    alive = [
        made[made["stage"] == "decode_image"]["live_bytes"].max()
        for made in (half.table, single.table, half.decoded("tiled"), single.decoded("tiled"))
    ]
    assert alive[0] == alive[1] > 2 * alive[2] == 2 * alive[3]


def test_tiling_is_tried_only_where_all_else_finds_room(monkeypatch):
    made = Generation.of("sdxl-base-1.0", dtype="float16", tiny=True, height=512, width=512)  # 54 MB, tiled
    tried = []
    monkeypatch.setattr(Generation, "decoded", lambda _self, decoder: tried.append(decoder) or made.table.iloc[:0])
    first_to_fit(made, replace(T4, memory_bytes=5e6))
    assert tried == []  # denoising takes 11 MB, however little of the weights is there
    first_to_fit(made, replace(T4, memory_bytes=60e6))
    assert "tiled" in tried


def test_a_pipeline_of_ones_own_stays_as_it_is():
    from mmchar.generation.programs import pipeline_of

    model = mmchar.load(FLUX, device="cpu", dtype="float32", tiny=True)
    pipe = pipeline_of(model, model.spec.resolve(None))
    found = fit_in_memory(pipe, gpu="t4", prompt="a cat", height=256, width=256, num_inference_steps=2)
    assert found["decoder"].tolist() == ["whole", "tiled"] * 3
    assert not pipe.vae.use_tiling and pipe.vae.device.type == "cpu"


def test_bytes_moved_module_by_module_are_those_that_accelerate_moves(monkeypatch):
    from accelerate import cpu_offload, hooks

    from mmchar.generation.on_device import realized
    from mmchar.generation.programs import plan

    name, asked = "stable-diffusion-1.5", {"dtype": "float32", "tiny": True}
    model = mmchar.load(name, device="cpu", **asked)
    (stage,) = [stage for stage in plan(model.spec, model.spec.resolve(None)) if stage.name == "denoise"]
    unet = model.components["unet"]
    stage = realized(stage, unet, device="cpu", dtype="float32")
    moved, place = [], hooks.set_module_tensor_to_device

    def counted(module, name, device, value=None, **more):
        if device != "meta" and value is not None and name in module._parameters:
            moved.append(value.nbytes)
        return place(module, name, device, value=value, **more)

    monkeypatch.setattr(hooks, "set_module_tensor_to_device", counted)
    cpu_offload(unet, execution_device=torch.device("cpu"))
    moved.clear()
    stage.work(unet)()
    whole = Generation.of(name, **asked)
    only = whole.table[whole.table["stage"] == "denoise"]
    only.attrs = whole.table.attrs
    (way,) = [
        way
        for way in ways_to_hold(Generation(only, whole.subject), T4)
        if (way["offload"], way["decoder"]) == ("sequential", "whole")
    ]
    assert way["moved_bytes"] == sum(moved) * stage.repeats > 0


@pytest.mark.slow
def test_the_peaks_of_cogvideox_are_those_published_less_what_the_allocator_reserves():
    published_gib = {("none", "whole"): 33, ("model", "whole"): 19, ("model", "tiled"): 11, ("sequential", "tiled"): 4}
    found = fit_in_memory("cogvideox-2b", gpu="a100-80gb").set_index(["offload", "decoder"])["peak_bytes"] / 2**30
    for way, gib in published_gib.items():
        assert 0.75 * gib < found[way] < gib, way
