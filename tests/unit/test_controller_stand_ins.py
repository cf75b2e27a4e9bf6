"""Which app may answer for which other: known, in no circle, with a signature that suits."""

from __future__ import annotations

import msgspec
import pytest
from controller_world import app

from understudy.core.controller.stand_ins import check_known, check_signatures, mismatch
from understudy.wire.errors import InvalidArgument
from understudy.wire.records import AppVersion, TensorSpec

X = TensorSpec("x", "FP32", (-1, 4))
Y = TensorSpec("y", "FP32", (-1, 3))


def served(name: str, *fallback: str, inputs: tuple[TensorSpec, ...] = (X,)) -> AppVersion:
    return msgspec.structs.replace(app(name), inputs=inputs, outputs=(Y,), fallback=fallback)


def test_a_stand_in_must_be_deployed():
    check_known(served("a", "app:b"), {"b": ()})
    with pytest.raises(InvalidArgument, match="'b' isn't deployed"):
        check_known(served("a", "app:b"), {})


@pytest.mark.parametrize(
    ("links", "circle"),
    [
        ({}, "b -> b"),
        ({"a": ("b",)}, "b -> a -> b"),
        ({"a": ("c",), "c": ("b",)}, "b -> a -> c -> b"),
        ({"a": ("c", "d"), "c": (), "d": ("a", "b")}, "b -> a -> d -> b"),
    ],
)
def test_circles_are_refused(links: dict[str, tuple[str, ...]], circle: str):
    name = circle.split(" -> ")[1]
    with pytest.raises(InvalidArgument, match=f"a circle: {circle}"):
        check_known(served("b", f"app:{name}"), links)


def test_ways_that_meet_without_a_circle_are_fine():
    check_known(served("a", "app:b", "app:c"), {"b": ("d",), "c": ("d",), "d": ()})


@pytest.mark.parametrize(
    ("ours", "theirs", "suits"),
    [
        (X, X, True),
        (TensorSpec("x", "FP32", (8, 4)), X, True),
        (X, TensorSpec("x", "FP32", (8, 4)), False),
        (X, TensorSpec("x", "FP64", (-1, 4)), False),
        (X, TensorSpec("x", "FP32", (4,)), False),
        (X, TensorSpec("z", "FP32", (-1, 4)), False),
    ],
)
def test_inputs_must_be_taken_as_they_come(ours: TensorSpec, theirs: TensorSpec, suits: bool):
    assert bool(mismatch(served("a", inputs=(ours,)), served("b", inputs=(theirs,)))) is not suits


def test_signatures_are_checked_from_both_ends():
    other = served("b", inputs=(TensorSpec("x", "INT64", (-1, 4)),))
    with pytest.raises(InvalidArgument, match=r"'b' can't stand in for 'a': its input is x INT64\[-1,4\]"):
        check_signatures(served("a", "app:b"), {"b": other})
    with pytest.raises(InvalidArgument, match="app 'a' names 'b' in its fallback, but now"):
        check_signatures(other, {"a": served("a", "app:b")})
    check_signatures(served("a", "app:b"), {"b": served("b")})
