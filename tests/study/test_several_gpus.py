"""Ways to share a generation: against one GPU, by method, over sizes, what is sent, what was learned, by hand."""

import pandas as pd
import pytest

from mmchar import Request
from mmchar.projection.scaling import on_several
from mmchar.study.questions import several_gpus as of

GPU, FLUX = "h100-sxm", "flux.1-dev"


@pytest.fixture(scope="module")
def ways():
    asked = of.ways_of_a_transformer([2], combined=False)
    return of.against_one(on_several(FLUX, Request(), asked, gpu=GPU, tiny=True))


def by_hand():
    rows = [("one GPU", "one GPU", 1, 8.0, 6.0, 10.0, 50.0, 0, ""), ("ring 2", "ring", 2, 4.0, 2.0, 5.0, 75.0, 3e9, "")]
    rows += [("cfg 2", "CFG", 2, None, None, None, None, None, "no guidance")]
    columns = ["way", "method", "gpus", "time_s", "low_s", "high_s", "energy_j", "sent_bytes", "reason"]
    return pd.DataFrame(rows, columns=columns).assign(model="m", launch=12.0)


def test_a_way_stands_against_one_gpu_of_its_model():
    found = of.against_one(by_hand()).set_index("way").loc["ring 2"]
    assert (found["speed_up"], found["joule_times"], found["gigabyte_sent"]) == (2, 1.5, 3)
    assert (found["low"], found["high"]) == (8 / 5, 8 / 2)  # the slowest, then the fastest that it may be
    text = of.learned(of.against_one(by_hand()))
    assert text.startswith("- **m**: fastest with ring 2, 4 s (2 to 5), 2.00x, at 1.50x the energy of one GPU; 12 % of")


def test_every_method_begins_with_one_gpu(ways):
    found = of.by_method(ways, FLUX)
    assert found.groupby("method")["gpus"].agg(list).to_dict() == dict.fromkeys(of.METHODS, [1, 2])
    assert (found.loc[found["gpus"] == 1, "speed_up"] == 1).all()
    assert of.able(of.against_one(by_hand()))["way"].tolist() == ["one GPU", "ring 2"]


def test_two_gpus_send_what_the_formulas_say(ways):
    ulysses, ring = of.sent_by_two(ways, FLUX)
    # of T tokens of width w: 4 T w / 2 * 1 / 2 by Ulysses, 2 T w * 1 / 2 by a ring, both T w
    assert ulysses == pytest.approx(ring, rel=0.15) and ulysses > 0
    assert of.sent_by_two(of.against_one(by_hand()), "m").empty


def test_rings_of_eight_and_four_by_hand():
    rows = [("ring 4", 3, 5.0), ("ring 8", 8, 6.0), ("ulysses 8", 2, 1.0)]
    table = pd.DataFrame(rows, columns=["way", "sent_bytes", "time_s"]).assign(model="m", reason="")
    refused = table.assign(model="n", reason=["", "", "heads"])
    found = of.rings(pd.concat([table, refused]), ["m", "n"])
    assert found.to_dict("records") == [{"model": "m", "more": 4.0, "four_s": 5.0, "eight_s": 6.0}]


def test_sizes_have_speed_ups_of_their_own_and_a_model_without_sizes_none():
    options = {"batch": 1, "gpus": 2, "gpu": GPU, "tiny": True, "progress": False}
    found = of.over_sizes(FLUX, [64, 128], **options)
    assert set(found["side"]) == {64} and found.loc[found["way"] == "one GPU", "speed_up"].tolist() == [1]
    none = of.over_sizes("stable-audio-open-1.0", [64], **options)
    assert none.pivot_table(index="method", columns="side", values=["speed_up", "time_s"]).empty


def test_ways_of_each_kind():
    assert of.ways_of_a_unet([2, 4]) == [{}, {"patch": 2}, {"patch": 4}, {"cfg": 2}]
    assert {"ulysses": 4, "ring": 2} in of.ways_of_a_transformer([2]) and of.ways_of_a_transformer([2])[0] == {}
