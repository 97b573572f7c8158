"""Every model of the zoo at published scale: parameters, FLOPs and lengths by second routes. Each is counted once."""

import pytest
from second_routes import WITHOUT_CLOSED_FORM, assert_same_lengths, ends, flop_of_step, torch_flop

from mmchar.counting.operator_table import COLUMNS, count, summarize_count
from mmchar.counting.planned_stages import stages
from mmchar.counting.seqlen import closed_form_of, has_closed_form
from mmchar.models.loading import load, zoo_names
from mmchar.tracing.operators import ATTENTION_CORES, CATEGORIES


@pytest.fixture(scope="module", params=zoo_names())
def published(request):
    """A model of the zoo with its operator table at published scale: what is tested of it runs one after the other."""
    return load(request.param), count(request.param)


def test_published_scale_agrees_with_the_formulas_of_flop_counter_mode_to_the_integer(published):
    model, table = published
    for stage in stages(model.spec):
        rows = table[table["stage"] == stage.name]
        for step, at in ends(stage):
            assert flop_of_step(rows, at) == torch_flop(model, stage.at(step), counter=False), (stage.name, step)


def test_published_stages_are_of_components_and_their_lengths_have_a_closed_form(published):
    model, table = published
    plan = stages(model.spec)
    assert plan and len({stage.name for stage in plan}) == len(plan)
    assert all(stage.component in model.spec.components and stage.repeats > 0 for stage in plan)
    if has_closed_form(model.spec):
        assert_same_lengths(closed_form_of(model.spec, plan), table)
    else:
        assert model.spec.name in WITHOUT_CLOSED_FORM


def test_no_operator_is_uncounted(published):
    _, table = published
    assert summarize_count(table)["uncounted"] == []
    assert set(table["category"]) <= set(CATEGORIES)
    assert list(table.columns) == list(COLUMNS)
    assert (table[["calls", "repeats"]] > 0).all(axis=None)
    assert (table[["flop", "read_bytes", "write_bytes", "mask_bytes", "live_bytes"]] >= 0).all(axis=None)
    assert ((table["attention"] != "") == table["op"].isin(ATTENTION_CORES)).all()


def test_parameters_are_the_published_ones_or_say_why(published):
    model, _ = published
    for role, part in model.spec.components.items():
        if part.published_params is None:
            assert part.params_reason or part.params_source, f"{role}: no published count and no word about it"
            continue
        off = model.params[role] / part.published_params - 1
        assert part.params_source
        assert abs(off) <= 0.02 or part.params_reason, (
            f"{role}: {off:+.1%} against the published count, without a reason"
        )
