"""Outputs on meta are remembered by what they follow from, and by all of it."""

import pytest
import torch
from hypothesis import given, strategies as st

from mmchar.tracing import meta_outputs
from mmchar.tracing.meta_outputs import meta_output

aten = torch.ops.aten


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.fixture(autouse=True)
def forgotten():
    meta_outputs._remembered.clear()


def same(first, second):
    return (first.shape, first.stride(), first.dtype) == (second.shape, second.stride(), second.dtype)


def test_an_operator_that_was_asked_before_is_not_run_again():
    calls = []

    class Counted:
        is_view, _schema = False, aten.mul.Tensor._schema

        def __call__(self, *args):
            calls.append(args)
            return aten.mul.Tensor(*args)

    func = Counted()
    first = meta_output(func, (meta(4, 1), meta(3)), {})
    again = meta_output(func, (meta(4, 1), meta(3)), {})
    assert len(calls) == 1 and same(first, again) and first is not again
    assert first.untyped_storage()._cdata != again.untyped_storage()._cdata  # two tensors, both alive
    meta_output(func, (meta(5, 1), meta(3)), {})
    assert len(calls) == 2


def test_a_number_is_another_question_than_a_truth_or_a_real_number():
    whole = meta(4, dtype=torch.int64)
    types = [meta_output(aten.add.Tensor, (whole, number), {}).dtype for number in (1, 1.0, True, 1)]
    assert types == [torch.int64, torch.float32, torch.int64, torch.int64]


def test_strides_and_the_default_type_are_part_of_the_question():
    turned = meta(8, 4).t()
    assert not same(meta_output(aten.neg.default, (meta(4, 8),), {}), meta_output(aten.neg.default, (turned,), {}))
    whole, before = (meta(4, dtype=torch.int64),), torch.get_default_dtype()
    first = meta_output(aten.sqrt.default, whole, {})
    torch.set_default_dtype(torch.float64)
    try:
        assert meta_output(aten.sqrt.default, whole, {}).dtype == torch.float64 != first.dtype
    finally:
        torch.set_default_dtype(before)


def test_views_and_writes_always_run():
    base = meta(4, 8)
    view = meta_output(aten.t.default, (base,), {})
    assert view.untyped_storage()._cdata == base.untyped_storage()._cdata
    assert meta_output(aten.add_.Tensor, (base, 1), {}) is base
    assert meta_outputs._remembered == {}


def test_what_gives_its_input_back_is_not_remembered():
    base = meta(4)
    for _ in range(2):
        out = meta_output(aten.lift_fresh.default, (base,), {})
        assert out.untyped_storage()._cdata == base.untyped_storage()._cdata
    assert meta_outputs._remembered == {}


def test_several_outputs_are_made_again():
    args = (meta(2, 6), [6], meta(6), meta(6), 1e-5)
    first = meta_output(aten.native_layer_norm.default, args, {})
    again = meta_output(aten.native_layer_norm.default, args, {})
    assert len(meta_outputs._remembered) == 1
    assert all(same(one, other) for one, other in zip(first, again, strict=True))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from([torch.float32, torch.bfloat16]))
def test_an_answer_from_memory_is_the_one_that_running_gives(shape, dtype):
    a, b = meta(*shape, dtype=dtype), meta(shape[-1])
    for func, args in ((aten.mul.Tensor, (a, b)), (aten.mean.dim, (a, [-1], True)), (aten.cat.default, ([a, a], 0))):
        ran = func(*args)
        assert same(meta_output(func, args, {}), ran) and same(meta_output(func, args, {}), ran)
