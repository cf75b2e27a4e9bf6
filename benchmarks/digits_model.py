"""The model that every contender serves: a small network of fixed weights, 64 numbers in and 10 out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SEED = 20_240_607
INPUTS, HIDDEN, OUTPUTS = 64, 32, 10
NAME = "digits"


def write_model(path: Path) -> None:
    """A multi-layer perceptron 64 -> 32 -> 10 with ReLU and softmax. Its weights are drawn from `SEED`."""
    generator = np.random.default_rng(SEED)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(generator.normal(0, 0.2, shape).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"]),
            helper.make_node("Relu", ["h1"], ["h2"]),
            helper.make_node("Gemm", ["h2", "w2", "b2"], ["h3"]),
            helper.make_node("Softmax", ["h3"], ["probabilities"], axis=1),
        ],
        NAME,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", INPUTS])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", OUTPUTS])],
        [
            weights("w1", INPUTS, HIDDEN),
            weights("b1", HIDDEN),
            weights("w2", HIDDEN, OUTPUTS),
            weights("b2", OUTPUTS),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def request() -> dict[str, Any]:
    """One inference request of the Open Inference Protocol, version 2."""
    data = np.random.default_rng(SEED + 1).integers(0, 17, INPUTS) / 16
    tensor = {"name": "x", "shape": [1, INPUTS], "datatype": "FP32", "data": data.tolist()}
    return {"inputs": [tensor]}


def right_answer(path: Path) -> list[float]:
    """What the model at `path` says to `request()`, asked without any server."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows = np.asarray(request()["inputs"][0]["data"], np.float32).reshape(1, INPUTS)
    (probabilities,) = session.run(None, {"x": rows})
    return [float(p) for p in probabilities[0]]


def is_right(body: bytes, expected: list[float]) -> bool:
    """Whether a reply has the right numbers, up to the rounding of 32-bit floats in text."""
    output = json.loads(body)["outputs"][0]
    return output["shape"] == [1, OUTPUTS] and bool(np.allclose(output["data"], expected, atol=1e-5))
