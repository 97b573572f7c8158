"""What an operator is asked, and nothing else of a call."""

import pytest
import torch

from mmchar.tracing.question import OperatorCall, question

aten = torch.ops.aten


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def test_tensors_are_found_in_order_those_in_lists_and_by_name_too():
    parts = [meta(number) for number in range(1, 6)]
    asked, found = question((parts[0], [parts[1], None, [parts[2]]], 3), {"mask": parts[3], "more": (parts[4],)})
    assert [id(one) for one in found] == [id(one) for one in parts]
    assert asked == question((parts[0], (parts[1], None, (parts[2],)), 3), {"mask": parts[3], "more": [parts[4]]})[0]
    assert len({asked}) == 1  # it can be looked up


@pytest.mark.parametrize(
    "other",
    [
        (meta(4, 8, dtype=torch.float16), 1),
        (meta(8, 4).t(), 1),
        (torch.empty(4, 8), 1),
        (meta(4, 8), 1.0),
        (meta(4, 8), True),
        (meta(4, 8), None),
        (meta(4, 8),),
        ([meta(4, 8), 1],),
    ],
    ids=["type", "strides", "device", "real", "truth", "nothing", "fewer", "nested"],
)
def test_another_look_or_another_number_is_another_question(other):
    assert question((meta(4, 8), 1), {})[0] != question(other, {})[0]


def test_names_of_arguments_count_and_values_of_tensors_do_not():
    one, two = torch.zeros(3), torch.ones(3)
    assert question((one,), {"dim": 0})[0] == question((two,), {"dim": 0})[0]
    assert question((one,), {"dim": 0})[0] != question((one,), {"axis": 0})[0] != question((one,), {})[0]


def test_real_numbers_are_alike_where_they_do_not_matter():
    asked = [question((meta(3), number), {}, reals=False)[0] for number in (0.1, 0.2, 1, True, False)]
    assert asked[0] == asked[1] and len(set(asked)) == 4


def test_a_nested_tensor_is_no_question():
    nested = torch.nested.nested_tensor([torch.rand(3, 4), torch.rand(5, 4)])
    with pytest.raises(ValueError, match="pad the sequences to one length"):
        OperatorCall.of(aten.relu.default, "relu", ([nested],), {})
