"""Levers: what is possible, what is refused by name, and the ladders made of them."""

import pytest
from samples import one_line

from mmchar.measuring.optimization.ladder import FIELDS, Levers, from_mapping, ladder
from mmchar.models.loading import zoo_names


def test_defaults_are_pytorch_as_it_is():
    assert Levers().given() == {}
    assert from_mapping({}) == Levers()
    assert Levers(execution="compiled", channels_last=True).given() == {"execution": "compiled", "channels_last": True}
    assert from_mapping(Levers(layer_skip=3, acceptance=0.7).given()) == Levers(layer_skip=3, acceptance=0.7)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"executon": "eager"}, "unknown lever 'executon'; did you mean 'execution'"),
        ({"execution": "compile"}, "unknown execution 'compile'; did you mean 'compiled'"),
        ({"quantization": "int8"}, "choose one of none, int8-weight-only"),
        ({"quantization": None}, "unknown quantization None"),
        ({"cfg": "twice"}, "choose one of batched, split"),
        ({"channels_last": "yes"}, "channels_last='yes'"),
        ({"layer_skip": 1, "acceptance": 0.5}, "layer_skip=1"),
        ({"layer_skip": True}, "layer_skip=True"),
        ({"layer_skip": 2}, "go together"),
        ({"acceptance": 0.5}, "go together"),
        ({"layer_skip": 2, "acceptance": 1.5}, "acceptance=1.5"),
        ({"layer_skip": 2, "acceptance": 0.5, "draft_tokens": 0}, "draft_tokens=0"),
        ({"layer_skip": 2, "acceptance": 0.5, "execution": "graphs"}, "layer_skip cannot be measured with"),
    ],
)
def test_bad_levers_are_refused_by_name(bad, says):
    with pytest.raises(ValueError, match=says) as caught:
        from_mapping(bad)
    one_line(caught)


def test_what_an_execution_uses():
    uses = {name: (Levers(execution=name).compiles, Levers(execution=name).on_graphs) for name in ("eager", "graphs")}
    assert uses == {"eager": (False, False), "graphs": (False, True)}
    both = Levers(execution="compiled-graphs")
    assert both.compiles and both.on_graphs


@pytest.mark.parametrize(
    "model",
    ["sdxl-base-1.0", "flux.1-dev", "llama-2-7b", "codellama-7b", "chameleon-7b", "seamless-m4t-v2-large"],
)
def test_a_ladder_goes_from_eager_float32_to_the_quantized_model(model):
    assert model in zoo_names()
    rungs = ladder(model)
    assert [rung.name for rung in rungs[:3]] == ["eager fp32", "bf16", "SDPA"]
    assert [rung.name for rung in rungs[-3:]] == ["compile", "graphs", "quantized"]
    assert (rungs[0].dtype, rungs[0].attention) == ("float32", "eager")
    assert {rung.dtype for rung in rungs[1:]} == {"bfloat16"}
    settings = [(rung.dtype, rung.attention, rung.levers) for rung in rungs]
    assert len(set(settings)) == len(rungs), "every rung differs from the others"
    for lower, upper in zip(rungs[3:], rungs[4:], strict=False):  # each keeps what the one before it has
        assert set(lower.levers.given()) <= set(upper.levers.given())


def test_no_ladder_is_told_with_those_there_are():
    with pytest.raises(ValueError, match="no ladder for 'flux'; .*flux.1-dev"):
        ladder("flux")


def test_fields_are_plain_names():
    assert FIELDS[:2] == ("execution", "quantization")
