"""The same generation on every GPU, and on several in every way: sorted, with what fits and what was refused."""

import pytest

import mmchar
from mmchar.projection.data_sheets import get_gpu, list_gpus
from mmchar.projection.parallel.layout import Degrees
from mmchar.projection.planning.choices import best_ways, on_every_gpu, ways_up_to
from mmchar.projection.planning.decoders import Generation
from mmchar.projection.planning.step_caching import cache_steps
from mmchar.projection.summary import summarize
from mmchar.projection.uncertainty import projection_errors, time_range

FLUX = "flux.1-dev"


@pytest.fixture(scope="module")
def everywhere():
    return on_every_gpu(Generation.of(FLUX)).set_index("gpu")


def test_every_gpu_with_the_type_is_a_row_and_the_fastest_is_first(everywhere):
    known = list_gpus().set_index("name")
    assert set(everywhere.index) == set(known.index[known["bfloat16_flop_s"].notna()])
    able = everywhere[everywhere["room"] != "none"]
    assert able["total_s"].is_monotonic_increasing
    one = summarize(mmchar.project(FLUX, gpu="h100-sxm"))
    assert everywhere.loc["h100-sxm", "time_s"] == pytest.approx(one["time_s"])
    assert everywhere.loc["h100-sxm", "mfu"] == pytest.approx(one["mfu"])


def test_a_board_that_is_too_small_has_the_least_offloading_that_leaves_room(everywhere):
    assert everywhere.loc["h100-sxm", ["offload", "room"]].tolist() == ["none", "fits"]
    assert everywhere.loc["rtx-4090", ["offload", "room"]].tolist() == ["model", "tight"]  # 24.3 of 24 GB
    assert everywhere.loc["rtx-4080", ["offload", "room"]].tolist() == ["sequential", "fits"]
    small = everywhere.loc["rtx-4080"]
    assert small["total_s"] == pytest.approx(
        small["time_s"] + small["moved_bytes"] / get_gpu("rtx-4080").host_link_bytes_s
    )


def test_a_gpu_of_a_vendor_that_nobody_measured_has_the_range_of_everything(everywhere):
    errors = projection_errors()
    errors = errors[(errors["quantity"] == "latency") & (errors["n"] >= 5)]
    row = everywhere.loc["mi300x"]
    assert row["low_s"] == pytest.approx(row["time_s"] / (1 + errors["high"].max()))
    assert row["high_s"] == pytest.approx(row["time_s"] / (1 + errors["low"].min()))
    widths = everywhere["high_s"] / everywhere["low_s"]
    assert widths["mi300x"] == pytest.approx(widths.max()) and widths["h100-sxm"] < widths.max()
    told = time_range(mmchar.project(FLUX, gpu="mi300x"), row["time_s"])
    assert told["why"].startswith("nothing on a GPU of AMD was measured")


def test_the_ways_are_all_that_degrees_take_and_no_more():
    ways = ways_up_to(8)
    assert all(Degrees(**way).gpus <= 8 for way in ways)
    assert len({tuple(sorted(way.items())) for way in ways}) == len(ways)
    assert {"cfg": 1, "ulysses": 1, "ring": 1} in ways and {"cfg": 2, "ulysses": 2, "ring": 2} in ways
    # cfg 1: 20 pairs of ulysses x ring <= 8, and 2 to 8 of three kinds; cfg 2: 8 pairs <= 4, and 2 to 4 of three
    assert len(ways) == 20 + 21 + 8 + 9


def test_the_fastest_way_is_first_with_its_efficiency_and_reasons_of_the_others():
    found = best_ways(FLUX, mmchar.Request(steps=4), 4, gpu="h100-sxm")
    assert found["time_s"].is_monotonic_increasing and found["gpus"].max() == 4
    alone = found[found["gpus"] == 1]
    assert alone["efficiency"].item() == pytest.approx(1) and alone["sent_bytes"].item() == 0
    pair = found[found["way"] == "ulysses 2"].iloc[0]
    assert pair["efficiency"] == pytest.approx(alone["time_s"].item() / (2 * pair["time_s"]))
    assert set(found["way"][~found["exact"]]) == {"patch 2", "patch 4", "pipefusion 2", "pipefusion 4"}
    assert "does not divide" in found.attrs["refused"]["ulysses 3"]
    assert "guidance" in found.attrs["refused"]["cfg 2"]


def test_cached_steps_are_cached_in_every_way():
    plain, cached = (
        best_ways(FLUX, mmchar.Request(steps=4), 2, gpu="h100-sxm", change=change).set_index("way")
        for change in (None, lambda table: cache_steps(table, "first-block", hit_rate=0.5))
    )
    assert (cached.loc[["one GPU", "ulysses 2"], "time_s"] < plain.loc[["one GPU", "ulysses 2"], "time_s"]).all()
    assert cached.loc["ulysses 2", "sent_bytes"] < 0.6 * plain.loc["ulysses 2", "sent_bytes"]
    assert "not with patch" in cached.attrs["refused"]["patch 2"]


def test_no_gpus_are_refused():
    with pytest.raises(ValueError, match="^best of 0 GPUs; give 1 or more$"):
        best_ways(FLUX, None, 0, gpu="h100-sxm")
