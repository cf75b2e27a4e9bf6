"""Datatypes and shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.wire.tensors import fits, is_finite, round_to_bf16, show_shape


@pytest.mark.parametrize(
    ("shape", "pattern", "fitting"),
    [
        ((1, 64), (-1, 64), True),
        ((7, 64), (-1, 64), True),
        ((), (), True),
        ((0, 64), (-1, 64), False),
        ((-1, 64), (-1, 64), False),
        ((1, 3), (-1, 64), False),
        ((64,), (-1, 64), False),
        ((1, 1, 64), (-1, 64), False),
        ((2**31, 64), (-1, 64), True),  # refused later: no data has so many elements
    ],
)
def test_fits(shape: tuple[int, ...], pattern: tuple[int, ...], fitting: bool) -> None:
    assert fits(shape, pattern) is fitting


def test_output_may_be_empty_where_any_length_is_declared() -> None:
    assert fits((0, 4), (-1, 4), length_min=0)
    assert not fits((0, 0), (-1, 4), length_min=0)


def test_long_shapes_are_shown_cut() -> None:
    assert show_shape((1, 64)) == "[1,64]"
    assert len(show_shape([2**31] * 5000)) < 250


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_is_finite_sees_one_bad_value_anywhere(bad: float) -> None:
    array = np.full((5, 7), 3e38, np.float32)
    assert is_finite(array)
    array[4, 6] = bad
    assert not is_finite(array)
    assert is_finite(array[:, :6])


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bf16_is_the_nearest_representable_value(value: float) -> None:
    exact = np.array([value], np.float32)
    rounded = round_to_bf16(exact)
    bits = rounded.view(np.uint32)
    assert not bits[0] & 0xFFFF
    down = (exact.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)[0]
    up = np.uint32((int(exact.view(np.uint32)[0]) & 0xFFFF0000) + 0x10000)
    up_value = np.array([up], np.uint32).view(np.float32)[0]
    if np.isfinite(rounded[0]):
        distance = abs(float(rounded[0]) - float(value))
        assert distance <= abs(float(down) - float(value))
        assert not np.isfinite(up_value) or distance <= abs(float(up_value) - float(value))


def test_bf16_ties_to_even_and_keeps_what_is_not_a_number() -> None:
    ties = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)
    assert round_to_bf16(ties).view(np.uint32).tolist() == [0x3F800000, 0x3F820000]
    assert np.isnan(round_to_bf16(np.array([0x7FFFFFFF], np.uint32).view(np.float32)))[0]
    assert np.isinf(round_to_bf16(np.array([3.4e38], np.float32)))[0]
