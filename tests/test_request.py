"""Requests: defaults, limits, and one clear line for everything that cannot be."""

import pytest
from hypothesis import given, strategies as st

from mmchar.request import FIELDS, Limit, Request, from_mapping, resolve, terms

DEFAULTS = {"batch": 1, "prompt_tokens": 77, "height": 512, "width": 512, "steps": 50, "guidance": 7.5}
LIMITS = {"prompt_tokens": Limit(max=77), "height": Limit(multiple_of=8, max=2048), "width": Limit(multiple_of=8)}


def full(**asked):
    return resolve(Request(**asked), model="m", defaults=DEFAULTS, limits=LIMITS)


def test_defaults_fill_what_is_not_asked():
    assert full(height=768).given() == {**DEFAULTS, "height": 768}


def test_guidance_above_one_guides():
    assert full().guided
    assert not full(guidance=1.0).guided


@given(
    st.sampled_from(sorted(set(FIELDS) - {"guidance"})),
    st.one_of(st.integers(max_value=0), st.floats(), st.text(), st.booleans()),
)
def test_a_count_that_is_no_positive_whole_number_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}=.* is not a whole number of 1 or more$|^steps is an empty list"):
        Request(**{name: value})


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "7.5", True])
def test_bad_guidance_is_refused(value):
    with pytest.raises(ValueError, match=r"^guidance=.* is not a number"):
        Request(guidance=value)


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (
            {"frames": 16},
            "m takes no 'frames'; its request fields are batch, prompt_tokens, height, width, steps, guidance",
        ),
        ({"prompt_tokens": 1024}, "prompt_tokens=1024 is outside the reach of m; it takes from 1 to 77"),
        ({"height": 500}, "height=500 does not fit m; it must be a multiple of 8, e.g. 496 or 504"),
        ({"height": 4}, "height=4 does not fit m; it must be a multiple of 8, e.g. 8"),
        ({"steps": (10, 20)}, "steps=10,20 does not fit m; give one number"),
    ],
)
def test_outside_the_models_reach_names_the_limit(asked, line):
    with pytest.raises(ValueError) as error:
        full(**asked)
    assert str(error.value) == line


def test_a_form_and_a_sum_can_be_limits():
    defaults = {"frames": 76, "prompt_tokens": 10, "new_tokens": 5}
    limits = {"frames": Limit(of_form=(5, 1)), "prompt_tokens+new_tokens": Limit(max=16)}
    assert resolve(None, model="m", defaults=defaults, limits=limits).frames == 76
    with pytest.raises(ValueError, match=r"frames=75 does not fit m; it must be 5k\+1, e.g. 71 or 76"):
        resolve(Request(frames=75), model="m", defaults=defaults, limits=limits)
    with pytest.raises(
        ValueError, match=r"prompt_tokens\+new_tokens=17 is outside the reach of m; it takes from 1 to 16"
    ):
        resolve(Request(new_tokens=7), model="m", defaults=defaults, limits=limits)


def test_a_limit_counts_a_field_as_often_as_it_says():
    assert terms("prompt_tokens+576*images") == {"prompt_tokens": 1, "images": 576}
    defaults, limits = {"prompt_tokens": 10, "images": 1}, {"prompt_tokens+576*images": Limit(max=1162)}
    assert resolve(Request(images=2), model="m", defaults=defaults, limits=limits).images == 2  # 10 + 2 * 576 = 1162
    with pytest.raises(ValueError, match=r"^prompt_tokens\+576\*images=1163 is outside the reach of m; it takes"):
        resolve(Request(images=2, prompt_tokens=11), model="m", defaults=defaults, limits=limits)
    with pytest.raises(ValueError, match=r"^limit 'many\*images': 'many' is not a whole number"):
        terms("many*images")


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(ValueError, match="unknown request field 'heigth'; did you mean 'height'"):
        from_mapping({"heigth": 8})
