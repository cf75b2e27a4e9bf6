"""All variants of an app look the same to its clients, or the difference is named."""

from __future__ import annotations

import pytest

from understudy.core.controller.signature import common_signature
from understudy.wire.errors import InvalidArgument
from understudy.wire.messages import Measured
from understudy.wire.records import Profile, TensorSpec

PROFILE = Profile(40, 10, 10, 1)


def measured(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Measured:
    return Measured(PROFILE, tuple(inputs), tuple(outputs))


def spec(*shape: int, name: str = "x", datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def test_one_variant_speaks_for_itself() -> None:
    assert common_signature({"a": measured([spec(-1, 4)], [spec(-1)])}) == ((spec(-1, 4),), (spec(-1),))


def test_an_input_is_optional_if_every_variant_can_do_without_it() -> None:
    needed, optional = spec(-1), TensorSpec("x", "FP32", (-1,), optional=True)
    assert common_signature({"a": measured([optional], [needed])})[0] == (optional,)
    both = {"a": measured([optional], [needed]), "b": measured([needed], [needed])}
    assert common_signature(both)[0] == (needed,)


def test_open_lengths_are_narrowed_for_inputs_and_widened_for_outputs() -> None:
    one, other = measured([spec(-1, 4)], [spec(-1, 2)]), measured([spec(-1, -1)], [spec(-1, -1)])
    for pair in ({"a": one, "b": other}, {"b": other, "a": one}):
        assert common_signature(pair) == ((spec(-1, 4),), (spec(-1, -1),))


def test_the_order_of_tensors_does_not_matter() -> None:
    x, y = spec(1), spec(2, name="y")
    assert common_signature({"a": measured([x, y], [x]), "b": measured([y, x], [x])}) == ((x, y), (x,))


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (spec(-1, 5), r"x FP32\[-1,4\] against x FP32\[-1,5\]"),
        (spec(-1, 4, datatype="FP64"), "x FP64"),
        (spec(-1, 4, name="z"), "z FP32"),
        (spec(4), r"x FP32\[4\]"),
    ],
)
def test_differences_are_named(other: TensorSpec, difference: str) -> None:
    with pytest.raises(InvalidArgument, match=difference) as failure:
        common_signature({"a": measured([spec(-1, 4)], []), "b": measured([other], [])})
    assert "'a' and 'b' have different inputs" in failure.value.message
