"""What a model may return, and whose fault it is when it may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import TensorSpec
from understudy.worker.guard import Guard

OUTPUTS = (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("label", "BYTES", (-1,)))
INPUTS = {"x": np.ones((2, 3), np.float32), "text": np.array(["a", "b"], dtype=object)}


def outputs(**changed: Any) -> dict[str, Any]:
    return {"y": np.ones((2, 2), np.float32), "label": np.array(["p", b"q"], dtype=object)} | changed


def test_good_outputs_pass_and_undeclared_ones_are_left_out() -> None:
    accepted = Guard(OUTPUTS, batched=True).accept(outputs(more=1), INPUTS, 2)
    assert list(accepted) == ["y", "label"]


BAD = {
    "missing": (outputs(y=None), "output 'y' is missing"),
    "list": (outputs(y=[[1.0, 2.0]]), "output 'y' is list, not an array"),
    "dtype": (outputs(y=np.ones((2, 2))), "output 'y' is float64, not FP32 (float32)"),
    "byte order": (outputs(y=np.ones((2, 2), ">f4")), "output 'y' is >f4, not FP32 (float32)"),
    "shape": (outputs(y=np.ones((2, 3), np.float32)), "output 'y' has shape [2,3], which doesn't fit [-1,2]"),
    "rank": (outputs(y=np.ones(2, np.float32)), "output 'y' has shape [2], which doesn't fit [-1,2]"),
    "rows": (outputs(y=np.ones((1, 2), np.float32)), "output 'y' has 1 rows for 2 rows of input"),
    "nan": (outputs(y=np.array([[0, 1], [2, np.nan]], np.float32)), "output 'y' has NaN or infinity"),
    "infinity": (outputs(y=np.array([[0, 1], [-np.inf, 0]], np.float32)), "output 'y' has NaN or infinity"),
    "objects": (
        outputs(label=np.array(["p", 1], dtype=object)),
        "output 'label' has elements that are neither text nor bytes",
    ),
    "no dict": ([1.0], "the model returned list, not a dict of arrays"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_outputs_are_refused(case: str) -> None:
    returned, message = BAD[case]
    with pytest.raises(UnderstudyError) as caught:
        Guard(OUTPUTS, batched=True).accept(returned, INPUTS, 2)
    assert caught.value.code is Code.OUTPUT_INVALID
    assert caught.value.message == message


def test_without_batching_an_output_may_have_any_length_even_none() -> None:
    guard = Guard((TensorSpec("boxes", "FP32", (-1, 4)),), batched=False)
    for rows in (0, 1, 7):
        guard.accept({"boxes": np.zeros((rows, 4), np.float32)}, INPUTS, 1)


def test_an_input_that_is_not_finite_is_the_callers_fault() -> None:
    inputs = {"x": np.array([[1.0, np.inf, 0.0]], np.float32)}
    with pytest.raises(UnderstudyError, match="input 'x' has NaN or infinity") as caught:
        Guard(OUTPUTS, batched=True).accept(outputs(y=np.full((2, 2), np.nan, np.float32)), inputs, 2)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("kind", ["U1", "S1"])
def test_text_arrays_of_numpy_are_text(kind: str) -> None:
    guard = Guard((TensorSpec("label", "BYTES", (-1,)),), batched=True)
    guard.accept({"label": np.array(["p", "q"], dtype=kind)}, INPUTS, 2)


@pytest.mark.parametrize(
    ("shape", "pattern", "restored"),
    [
        ((1, 4), (-1,), None),
        ((2, 4), (-1,), None),
        ((1, 5, 3), (-1, 3), None),
        ((1, 4), (-1, 1), None),
        ((1, 1), (-1,), (1,)),
        ((3, 1), (-1,), (3,)),
        ((4,), (-1, 4), (1, 4)),
        ((4,), (-1, 1), (4, 1)),
    ],
)
def test_one_row_is_no_length_too_many(
    shape: tuple[int, ...], pattern: tuple[int, ...], restored: tuple[int, ...] | None
) -> None:
    guard = Guard((TensorSpec("y", "FP32", pattern),), batched=False, by_rows=True)
    returned = {"y": np.zeros(shape, np.float32)}
    if restored is None:
        with pytest.raises(UnderstudyError, match=r"output 'y' has shape .* which doesn't fit"):
            guard.accept(returned, INPUTS, shape[0])
    else:
        assert guard.accept(returned, INPUTS, shape[0])["y"].shape == restored
