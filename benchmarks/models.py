"""The two models that every contender serves, what they are asked, and the right answers.

`digits`: a small network, 64 numbers in and 10 out. `image`: the mean of each channel of a 3x224x224 image
and one layer on them, 10 out; an inference takes some 50 us, so that moving the 600 KB is what is measured.
All weights are drawn from `SEED`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from understudy.wire.inference import ModelInferRequest, ModelInferResponse

SEED = 20_240_607
SHAPES = {"digits": (1, 64), "image": (1, 3, 224, 224)}
OUTPUTS = 10
JSON = "application/json"
BYTES = "application/octet-stream"
OIP_JSON_BYTES = "Inference-Header-Content-Length"  # how much of a body is JSON; tensors follow

Array = npt.NDArray[np.float32]


@dataclass
class Payload:
    """A request: the bytes in `file`, to be sent to the model's path with `headers`."""

    model: str
    file: Path
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/v2/models/{self.model}/infer"


def write_models(folder: Path) -> None:
    """`digits.onnx` and `image.onnx`."""
    generator = np.random.default_rng(SEED)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(generator.normal(0, 0.2, shape).astype(np.float32), name)

    hidden = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["features"]),
    ]
    means = [
        helper.make_node("GlobalAveragePool", ["x"], ["means"]),
        helper.make_node("Flatten", ["means"], ["features"]),
    ]
    for name, nodes, features, more in (
        ("digits", hidden, 32, [weights("w1", 64, 32), weights("b1", 32)]),
        ("image", means, 3, []),
    ):
        graph = helper.make_graph(
            [
                *nodes,
                helper.make_node("Gemm", ["features", "w2", "b2"], ["h2"]),
                helper.make_node("Softmax", ["h2"], ["probabilities"], axis=1),
            ],
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *SHAPES[name][1:]])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", OUTPUTS])],
            [*more, weights("w2", features, OUTPUTS), weights("b2", OUTPUTS)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())


def rows(model: str) -> Array:
    generator = np.random.default_rng(SEED + 1)
    if model == "digits":
        return (generator.integers(0, 17, SHAPES[model]) / 16).astype(np.float32)
    return generator.random(SHAPES[model], np.float32)


def write_payloads(folder: Path) -> dict[str, Payload]:
    """Each request in each encoding that a contender wants."""
    digits, image = rows("digits"), rows("image").tobytes()
    described = {"name": "x", "shape": SHAPES["image"], "datatype": "FP32"}
    head = _json(described | {"parameters": {"binary_data_size": len(image)}})
    text = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(image).decode()]}
    contents = {
        "digits": (
            "digits",
            _json({**_described(digits), "data": digits.ravel().tolist()}),
            {"Content-Type": JSON},
        ),
        "digits as array": ("digits", json.dumps({"x": digits.tolist()}).encode(), {"Content-Type": JSON}),
        "digits as protobuf": ("digits", _protobuf(digits), {}),
        "image as bytes": ("image", image, {"Content-Type": BYTES}),
        "image as base64": ("image", _json(text), {"Content-Type": JSON}),
        "image as tensor": ("image", head + image, {"Content-Type": BYTES, OIP_JSON_BYTES: str(len(head))}),
    }
    payloads = {}
    for name, (model, body, headers) in contents.items():
        payloads[name] = Payload(model, folder / name.replace(" ", "-"), headers)
        payloads[name].file.write_bytes(body)
    return payloads


def _protobuf(array: Array) -> bytes:
    """A serialized ModelInferRequest with one raw tensor."""
    request = ModelInferRequest(model_name="digits", raw_input_contents=[array.tobytes()])
    request.inputs.add(**_described(array))
    return bytes(request.SerializeToString())


def _described(array: Array) -> dict[str, Any]:
    return {"name": "x", "shape": list(array.shape), "datatype": "FP32"}


def _json(tensor: dict[str, Any]) -> bytes:
    """A request with one tensor in the Open Inference Protocol."""
    return json.dumps({"inputs": [tensor]}).encode()


def right_answer(folder: Path, model: str) -> list[float]:
    """What `model` says to its request, asked without any server."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / f"{model}.onnx"), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"x": rows(model)})
    return [float(p) for p in probabilities[0]]


def is_right(body: bytes, expected: list[float]) -> bool:
    """Whether a reply has the right numbers, up to the rounding of 32-bit floats in text."""
    answer = json.loads(body)
    if isinstance(answer, list):  # an array without more, in rows
        return bool(list(np.shape(answer)) == [1, OUTPUTS] and np.allclose(answer[0], expected, atol=1e-5))
    output = answer["outputs"][0]
    return output["shape"] == [1, OUTPUTS] and bool(np.allclose(output["data"], expected, atol=1e-5))


def is_right_protobuf(body: bytes, expected: list[float]) -> bool:
    """The same of a serialized ModelInferResponse, whose numbers are raw or typed."""
    response = ModelInferResponse.FromString(body)
    (output,) = response.outputs
    raw = response.raw_output_contents
    numbers = np.frombuffer(raw[0], "<f4") if raw else np.array(output.contents.fp32_contents)
    return list(output.shape) == [1, OUTPUTS] and bool(np.allclose(numbers, expected, atol=1e-5))
