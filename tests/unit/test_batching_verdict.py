"""May requests share a batch? By the graph, by rehearsal, and by what is seen at work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from understudy.core.worker.graph import Graph, Node, Tensor
from understudy.core.worker.proof import Proof, prove
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array
from understudy.worker.batching.rehearsal import Outcome, Rehearsal, Rehearsed
from understudy.worker.batching.tolerance import Tolerance

X = TensorSpec("x", "FP32", (-1, 3))
Y = TensorSpec("y", "FP32", (-1, 3))
TEXT = TensorSpec("x", "BYTES", (-1,))
WORDS = TensorSpec("y", "INT64", (-1, -1))
Outputs = dict[str, Array]


def node(op: str, *inputs: str, to: str = "y", domain: str = "", **attributes: Any) -> Node:
    return Node(op, inputs, (to,), domain, attributes)


def whole(*values: int) -> Tensor:
    return Tensor((len(values),), None, values)


def proof(*nodes: Node, inner: tuple[int, ...] = (3,), **constants: Tensor) -> Proof:
    spec = TensorSpec("x", "FP32", (-1, *inner))
    return prove(Graph(nodes, constants, {"": 17, "ai.onnx.ml": 3}), [spec], [Y])


SHAPE = (node("Shape", "x", to="s"), node("Gather", "s", "zero", to="n", axis=0))
ROW_WISE = {
    "dense": [node("Gemm", "x", "w", "b", to="h"), node("Softmax", "h", axis=1)],
    "constant-row": [node("Add", "x", "row")],
    "reduce-columns": [node("ReduceMean", "x", axes=[1], keepdims=1)],
    "there-and-back": [node("Transpose", "x", to="t"), node("Transpose", "t")],
    "flatten": [node("Flatten", "x")],
    "reshape-zero": [node("Reshape", "x", "keep")],
    "reshape-counted": [*SHAPE, node("Concat", "n", "rest", to="to", axis=0), node("Reshape", "x", "to")],
    "matmul-both": [
        node("Unsqueeze", "x", "one", to="u"),
        node("Transpose", "u", to="v", perm=[0, 2, 1]),
        node("MatMul", "v", "u"),
    ],
    "embedding": [node("Gather", "w", "x")],
    "trees": [node("TreeEnsembleRegressor", "x", domain="ai.onnx.ml", n_targets=1)],
    "expanded": [node("Shape", "x", to="s"), node("Expand", "scalar", "s", to="e"), node("Add", "e", "x")],
}
CROSSING = {
    "softmax-over-rows": [node("Softmax", "x", axis=0)],
    "softmax-negative-axis": [node("Softmax", "x", axis=-2)],
    "cumulative": [node("CumSum", "x", "zero")],
    "reduce-all": [node("ReduceMax", "x")],
    "gram": [node("Transpose", "x", to="t"), node("MatMul", "t", "x")],
    "concat-rows": [node("Concat", "x", "x", axis=0)],
    "first-row": [node("Slice", "x", "zero", "one", "zero")],
    "statistics": [
        Node("BatchNormalization", ("x", "row", "row", "row", "row"), ("y",), "", {"training_mode": 1})
    ],
    "dynamic-scale": [Node("DynamicQuantizeLinear", ("x",), ("y", "scale", "z"))],
}
UNKNOWN = {
    "own-operator": [node("Mystery", "x")],
    "own-attribute": [node("Relu", "x", mystery=1)],
    "random": [node("RandomNormalLike", "x")],
    "by-place": [node("Add", "x", "table")],
    "fixed-first-length": [node("Reshape", "x", "baked")],
    "as-one-row": [node("Reshape", "x", "flat")],
    "divided-by-rows": [
        *SHAPE,
        node("Cast", "n", to="f"),
        node("Div", "x", "f"),
    ],
    "one-or-many": [node("Squeeze", "x")],
    "no-rows-left": [node("Identity", "row")],
    "branches": [Node("If", ("x",), ("y",))],
}
CONSTANTS = {
    "w": Tensor((3, 3)),
    "b": Tensor((3,)),
    "row": Tensor((3,)),
    "table": Tensor((5, 3)),
    "scalar": Tensor(()),
    "zero": whole(0),
    "one": whole(1),
    "rest": whole(-1),
    "keep": whole(0, -1),
    "baked": whole(1, -1),
    "flat": whole(-1),
}


@pytest.mark.parametrize("name", ROW_WISE)
def test_a_graph_that_works_row_by_row_is_proven(name: str) -> None:
    found = proof(*ROW_WISE[name], **CONSTANTS)
    assert found.proven, found.reason


@pytest.mark.parametrize("name", CROSSING)
def test_an_operator_that_works_across_rows_is_named(name: str) -> None:
    found = proof(*CROSSING[name], **CONSTANTS)
    assert not found.proven
    assert found.crosses
    assert "output 'y': " in found.reason


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(("layout", "proven"), [(0, False), (1, True)])
def test_recurrent_layers_say_whether_rows_are_steps_of_time(op: str, layout: int, proven: bool) -> None:
    weights = {"w": Tensor((1, 32, 6)), "r": Tensor((1, 32, 8)), "one": whole(1)}
    layer = [node(op, "x", "w", "r", to="all", hidden_size=8, layout=layout), node("Flatten", "all")]
    found = proof(*layer, inner=(-1, 6), **weights)
    assert found.proven == proven, found.reason
    assert proven or (found.crosses and "takes the rows for steps of time" in found.reason)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_understood_is_not_proven(name: str) -> None:
    found = proof(*UNKNOWN[name], **CONSTANTS)
    assert not found.proven
    assert not found.crosses


def rehearsed(
    predict: Callable[[Array], Array],
    inputs: TensorSpec = X,
    outputs: TensorSpec = Y,
    own: Any = (),
    **tolerance: Any,
) -> Rehearsed:
    def asked(row: dict[str, Array]) -> Outputs:
        return {"y": predict(row["x"])}

    clock = iter(range(10**6)).__next__
    ticking = Rehearsal(asked, (inputs,), Tolerance((outputs,), **tolerance), lambda: clock() / 1000)
    return ticking.run(list(own), 32, 0.001)


def padded(texts: Array) -> Array:
    words = [str(text).split() for text in texts]
    made = np.zeros((len(words), max(map(len, words), default=0)), np.int64)
    for row, each in enumerate(words):
        made[row, : len(each)] = [len(word) for word in each]
    return made


def only_above(x: Array) -> Array:
    return np.where(x > 50, x.max(), x)


MIXING: dict[str, Callable[[Array], Array]] = {
    "centred": lambda x: x - x.mean(0),
    "softmax": lambda x: np.exp(x.clip(-9, 9)) / np.exp(x.clip(-9, 9)).sum(0),
    "cumulative": lambda x: x.cumsum(0),
    "sorted": lambda x: np.sort(x, axis=0),
    "by-place": lambda x: x + np.arange(len(x), dtype=x.dtype)[:, None],
    "only-if-large": only_above,
    "only-with-many": lambda x: x - x.mean(0) if len(x) > 8 else x,
    "scaled-by-the-largest": lambda x: x / np.abs(x).max(initial=1.0),
    "fewer-when-alike": lambda x: np.unique(x, axis=0),
    "detections": lambda x: x[x[:, 0] > 0],
}


@pytest.mark.parametrize("name", MIXING)
def test_rehearsal_finds_rows_that_look_at_one_another(name: str) -> None:
    found = rehearsed(MIXING[name])
    assert found.outcome is Outcome.DIFFERENT, found
    assert "output 'y'" in found.reason


def test_padding_to_the_longest_text_is_found() -> None:
    assert rehearsed(padded, TEXT, WORDS).outcome is Outcome.DIFFERENT


def test_rounding_is_no_difference_and_changed_inputs_do_no_harm() -> None:
    weights = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)

    def predict(x: Array) -> Array:
        x += 1.0
        return np.tanh(x @ weights)

    assert rehearsed(predict).outcome is Outcome.SAME


def test_a_model_that_answers_one_row_differently_each_time_shows_nothing() -> None:
    count = iter(range(10**6))
    found = rehearsed(lambda x: x + next(count))
    assert found.outcome is Outcome.NOT_SHOWN
    assert "doesn't answer the same row alike" in found.reason


def test_rows_that_are_all_answered_alike_show_nothing() -> None:
    assert rehearsed(lambda x: np.zeros_like(x)).outcome is Outcome.NOT_SHOWN


def test_a_tolerance_lets_small_differences_pass() -> None:
    def nearly(x: Array) -> Array:
        return (x * (1 + 0.01 * (len(x) > 1))).astype(np.float32)

    assert rehearsed(nearly).outcome is Outcome.DIFFERENT
    assert rehearsed(nearly, declared=0.05).outcome is Outcome.SAME
