"""Small ONNX files as exporters write them, and worse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
value = helper.make_tensor_value_info
node = helper.make_node


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    constants: dict[str, Any] | None = None,
    *,
    ir_version: int = 8,
    opset: int = 17,
) -> Path:
    kept = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), kept)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), path)
    return path


def classifier(path: Path, labels: list[int] | list[str]) -> Path:
    """As scikit-learn's converter writes one: a label, and a map of probabilities per row."""
    rng = np.random.default_rng(1)
    names: dict[str, Any] = {
        f"classlabels_{'strings' if isinstance(labels[0], str) else 'ints'}": labels,
    }
    linear = node(
        "LinearClassifier", ["X"], ["label", "scores"], domain="ai.onnx.ml", post_transform="SOFTMAX",
        coefficients=rng.normal(size=4 * len(labels)).tolist(), intercepts=[0.0] * len(labels), **names,
    )  # fmt: skip
    kind = "strings" if isinstance(labels[0], str) else "int64s"
    zipped = node(
        "ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", **{f"classlabels_{kind}": labels}
    )
    key = STRING if isinstance(labels[0], str) else INT64
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(key, helper.make_tensor_type_proto(FLOAT, []))
    )
    outputs = [value("label", key, [None]), onnx.ValueInfoProto(name="probabilities", type=maps)]
    return save(path, [linear, zipped], [value("X", FLOAT, [None, 4])], outputs)


def with_external_data(path: Path, location: str = "weights.bin") -> Path:
    weights = numpy_helper.from_array(np.eye(64, dtype=np.float32) * 2, "w")
    graph = helper.make_graph(
        [node("MatMul", ["x", "w"], ["y"])], "graph", [value("x", FLOAT, ["n", 64])],
        [value("y", FLOAT, ["n", 64])], [weights],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path
