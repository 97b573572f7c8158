"""How readings become a verdict and a condition."""

from mmchar.runs.verdicts import HOLDS, IF, NOT
from mmchar.study.verdicts.claim import judge, near

READINGS = {
    ("latent", "all"): 53.0,
    ("latent", "kernels"): 41.0,
    ("pixel", "all"): 72.0,
    ("pixel", "kernels"): 57.0,
}


def test_all_or_none_of_the_readings_decide_without_a_condition():
    assert judge(READINGS, (40, 80)) == (HOLDS, "")
    assert judge(READINGS, (0, 40)) == (NOT, "")


def test_a_condition_is_what_the_readings_that_hold_have_in_common():
    assert judge(READINGS, near(44)) == (IF, "latent")  # 33 to 55: both of latent, none of pixel
    assert judge(READINGS, (50, 60)) == (IF, "latent, all; or pixel, kernels")


def test_a_condition_is_said_by_what_fails_where_that_is_shorter():
    assert judge(READINGS, (0, 60)) == (IF, "not pixel, all")
