"""All variants of an app look the same to its clients, or the difference is named."""

from __future__ import annotations

import msgspec
import pytest

from understudy.core.controller.signature import common_signature, told_changes
from understudy.wire.errors import InvalidArgument
from understudy.wire.messages import Measured
from understudy.wire.records import AppVersion, Profile, TensorSpec

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


def told(before: list[TensorSpec], after: list[TensorSpec], *, of: str = "inputs") -> tuple[str, ...]:
    current, coming = AppVersion("a", 1, ()), AppVersion("a", 2, ())
    return told_changes(
        msgspec.structs.replace(current, **{of: tuple(before)}),
        msgspec.structs.replace(coming, **{of: tuple(after)}),
    )


OPTIONAL = TensorSpec("o", "FP32", (-1,), optional=True)


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ([spec(-1, 4)], [spec(-1, 5)], "input x FP32[-1,4] is now x FP32[-1,5]"),
        ([spec(-1, 4)], [spec(8, 4)], "input x FP32[-1,4] is now x FP32[8,4]"),
        ([spec(-1, 4)], [spec(4)], "input x FP32[-1,4] is now x FP32[4]"),
        ([spec(-1)], [spec(-1, datatype="FP64")], "input x FP32[-1] is now x FP64[-1]"),
        ([spec(-1), OPTIONAL], [spec(-1)], "input o FP32[-1] (optional) is gone"),
        ([spec(-1)], [spec(-1), spec(-1, name="z")], "input z FP32[-1] is needed now"),
    ],
)
def test_what_clients_can_no_longer_send_is_told(
    before: list[TensorSpec], after: list[TensorSpec], change: str
) -> None:
    assert told(before, after) == (f"clients of version 1 may fail with this one: {change}",)


def test_outputs_that_are_other_than_they_were_are_told() -> None:
    (said,) = told([spec(-1, 2), spec(-1, name="z")], [spec(-1, 3)], of="outputs")
    assert "output x FP32[-1,2] is now x FP32[-1,3]; output z FP32[-1] is gone" in said


def test_what_takes_more_or_gives_more_changes_nothing_for_clients() -> None:
    assert told([spec(8, 4)], [spec(-1, 4), OPTIONAL]) == ()
    assert told([spec(-1, -1)], [spec(-1, 2), spec(-1, name="z")], of="outputs") == ()
    assert told_changes(None, AppVersion("a", 1, ())) == ()
