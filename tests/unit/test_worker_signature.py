"""Where the app's declaration and the model's own signature meet."""

from __future__ import annotations

from typing import Any

import pytest

from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Load
from understudy.wire.records import TensorSpec
from understudy.worker.runtimes import Runtime
from understudy.worker.signature import Signature, agree

X = TensorSpec("x", "FP32", (-1, 3))
Y = TensorSpec("y", "FP32", (-1, 2))
LABEL = TensorSpec("label", "INT64", (-1,))
Specs = tuple[TensorSpec, ...]


class Silent:
    """A runtime that only knows a signature."""

    def __init__(self, inputs: Specs, outputs: Specs) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.described = False
        self.axes: dict[str, tuple[str, ...]] = {}
        self.notes: tuple[str, ...] = ()

    def load(self, path: str, options: dict[str, Any]) -> None: ...

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}


def agreed(declared: tuple[Specs, Specs], own: tuple[Specs, Specs] = ((), ())) -> Signature:
    runtime: Runtime = Silent(*own)
    return agree(Load("r", "app", 1, "v", "python", "", inputs=declared[0], outputs=declared[1]), runtime)


def test_either_side_is_enough() -> None:
    assert agreed(((X,), (Y,))) == Signature((X,), (Y,))
    assert agreed(((), ()), ((X,), (Y,))) == Signature((X,), (Y,))


def test_an_app_may_declare_some_of_the_outputs() -> None:
    assert agreed(((X,), (Y,)), ((X,), (LABEL, Y))).outputs == (Y,)


def test_the_narrower_shape_counts() -> None:
    wide = TensorSpec("x", "FP32", (-1, -1))
    unknown = TensorSpec("y", "FP32", ())
    assert agreed(((X,), (Y,)), ((wide,), (unknown,))) == Signature((X,), (Y,))
    assert agreed(((wide,), (Y,)), ((X,), (Y,))).inputs == (X,)


def test_an_input_is_optional_if_the_app_says_so_and_the_model_can_do_without() -> None:
    optional = TensorSpec("x", "FP32", (-1, 3), optional=True)
    assert agreed(((optional,), (Y,))).inputs == (optional,)
    assert agreed(((optional,), (Y,)), ((optional,), (Y,))).inputs == (optional,)
    assert agreed(((X,), (Y,)), ((optional,), (Y,))).inputs == (X,)
    assert agreed(((LABEL,), (Y,)), ((optional, LABEL), (Y,))).inputs == (LABEL,)
    with pytest.raises(UnderstudyError, match="declared as optional, but the model needs it"):
        agreed(((optional,), (Y,)), ((X,), (Y,)))


def test_requests_are_batched_if_every_tensor_counts_rows() -> None:
    assert agreed(((X,), (Y, LABEL))).batched
    assert not agreed(((X,), (Y, TensorSpec("total", "FP32", ())))).batched
    assert not agreed(((TensorSpec("x", "FP32", (1, 3)),), (Y,))).batched


CONFLICTS = {
    "nothing": (((), ()), ((), ()), "no inputs are declared, and the model doesn't say which it has"),
    "no outputs": (((X,), ()), ((), ()), "no outputs are declared"),
    "datatype": (((TensorSpec("x", "FP31", (1,)),), (Y,)), ((), ()), "unknown datatype 'FP31'; known: BOOL"),
    "shape": (((TensorSpec("x", "FP32", (-2,)),), (Y,)), ((), ()), "input 'x': shape [-2] is not valid"),
    "rank": (((TensorSpec("x", "FP32", (1,) * 33),), (Y,)), ((), ()), "is not valid"),
    "twice": (((X, X), (Y,)), ((), ()), "inputs are declared twice: x, x"),
    "other name": (((X,), (LABEL,)), ((X,), (Y,)), "the model has no output 'label'; it has y"),
    "too few": (((X,), (Y,)), ((X, LABEL), (Y,)), "needs an input 'label' that the app doesn't declare"),
    "other type": (
        ((X,), (Y,)),
        ((TensorSpec("x", "FP64", (-1, 3)),), (Y,)),
        "input 'x' is declared as FP32 [-1,3], the model has FP64 [-1,3]",
    ),
    "other shape": (
        ((X,), (Y,)),
        ((TensorSpec("x", "FP32", (-1, 4)),), (Y,)),
        "input 'x' is declared as FP32 [-1,3], the model has FP32 [-1,4]",
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_disagreement_is_named(case: str) -> None:
    declared, own, message = CONFLICTS[case]
    with pytest.raises(UnderstudyError) as caught:
        agreed(declared, own)
    assert caught.value.code is Code.LOAD_FAILED
    assert message in caught.value.message
