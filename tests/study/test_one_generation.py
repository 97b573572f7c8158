"""One generation from every side: sums of its table by two routes, expectations by hand."""

import pandas as pd
import pytest

from mmchar import count, get_gpu, project, stages
from mmchar.models.loading import get_spec
from mmchar.study.questions import one_generation as question

GPU, SD = "a100-80gb", "stable-diffusion-1.5"


@pytest.fixture(scope="module")
def spec():
    return get_spec(SD, tiny=True)


@pytest.fixture(scope="module")
def plan(spec):
    return stages(spec)


@pytest.fixture(scope="module")
def table():
    return count(SD, dtype="bfloat16", tiny=True)


@pytest.fixture(scope="module")
def timed(table):
    return [project(table, gpu=GPU, attention=kernel) for kernel in ("flash", "eager")]


def test_networks_and_stages(spec, plan):
    assert set(question.networks(spec)["component"]) == set(spec.components)
    found = question.steps(plan).set_index("stage")
    assert found.at["denoise", "repeats"] == 3 and found.at["denoise", "runs"] == "unet"  # PNDM: one call more


def test_flop_by_category_and_stage(table):
    found, total = question.tera_flop(table), (table["flop"] * table["repeats"]).sum() / 1e12
    assert found.at["total", "all"] == pytest.approx(total)
    assert found["all"].drop("total").sum() == pytest.approx(total)
    rows = question.heaviest(table, 2)
    assert rows.index[0] == (table["flop"] * table["repeats"]).idxmax() and len(rows) == 2


def test_lengths_of_the_form_and_of_the_run(spec, plan, table):
    from mmchar.counting.seqlen import seen

    form = question.lengths_by_form(spec, plan)
    assert question.same_lengths(form, seen(table)) and question.same_lengths(form.iloc[::-1], seen(table))
    assert not question.same_lengths(form.assign(q_len=1), seen(table))
    row = pd.DataFrame({"batch": [2], "heads": [8], "q_len": [64], "kv_len": [77]})
    assert question.largest_matrix_bytes(row, "bfloat16") == 157_696  # 2 * 8 * 64 * 77 * 2 bytes
    assert question.largest_matrix_bytes(row.head(0), "bfloat16") == 0


def test_what_was_published_of_it():
    spec = get_spec(SD)
    lengths = pd.DataFrame({"batch": [2], "heads": [8], "q_len": [4096], "kv_len": [4096]})
    found = question.expected(spec, lengths, "bfloat16").set_index("what")["expected"]
    many = sum(part.published_params for part in spec.components.values())
    assert found.tolist() == [f"{many:,}", f"{2 * many / 1e9:.3g}", "0.537"]  # 2 * 8 * 4096^2 * 2 bytes
    built = pd.DataFrame()
    built.attrs["params"] = {role: 2 * part.published_params for role, part in spec.components.items()}
    assert question.built_over_published(built, spec) == 2


def test_times_by_stage_and_what_bounds_them(timed):
    flash, eager = timed
    times = question.by_stage(flash, eager)
    assert times.at["total", "eager_s"] == pytest.approx((eager["time_s"] * eager["repeats"]).sum())
    assert times.at["total", "eager / flash"] == times.at["total", "eager_s"] / times.at["total", "flash_s"]
    assert question.bounds(flash).sum(axis=1).between(98, 102).all()  # rounded to whole percent
    assert question.timeline(flash, eager)["live_eager_bytes"].max() >= flash["live_bytes"].max()


def test_the_floor_is_arithmetic_at_the_peak(table):
    peak = get_gpu(GPU).peak("bfloat16")
    assert question.floor_s(table, GPU) == (table["flop"] * table["repeats"]).sum() / peak


def test_measured_rows_hold_the_flop_that_was_counted(plan):
    measured = count(SD, dtype="float32", tiny=True)
    one, two = question.flop_counted_and_measured(measured, SD, plan)
    assert one == two == (measured["flop"] * measured["repeats"]).sum()
    one, two = question.flop_counted_and_measured(measured.assign(flop=2 * measured["flop"]), SD, plan)
    assert two == 2 * one


def test_what_was_learned(timed):
    text = question.learned(*timed, GPU)
    assert f"on {GPU} (projected, flash attention)" in text and "Most of it is `" in text
    runs = {"flash": timed[0], "eager": timed[1]}
    rows = question.breakdown(runs, SD)
    assert rows["run"].unique().tolist() == ["flash", "eager"] and set(rows["time_kind"]) == {"projected"}
