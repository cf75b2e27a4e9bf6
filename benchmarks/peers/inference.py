"""The two models, as every peer runs them: ONNX Runtime, one thread for an inference, JSON or raw bytes in.

The folder $MODELS has `digits.onnx` and `image.onnx`. One thread, because an inference is shorter than it
takes to wake another, and because the processes that a server starts share the cores.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Array = npt.NDArray[np.float32]
IMAGE_SHAPE = (1, 3, 224, 224)


class Model:
    def __init__(self, name: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        path = Path(os.environ["MODELS"]) / f"{name}.onnx"
        self.name = name
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def infer(self, rows: Array) -> Array:
        (probabilities,) = self._session.run(None, {"x": rows})
        return probabilities  # type: ignore[no-any-return]

    def answer(self, rows: Array) -> dict[str, Any]:
        return answer_of(self.name, self.infer(rows))


def answer_of(model: str, probabilities: Array) -> dict[str, Any]:
    """The body of an answer in the Open Inference Protocol."""
    output = {
        "name": "probabilities",
        "shape": list(probabilities.shape),
        "datatype": "FP32",
        "data": probabilities.ravel().tolist(),
    }
    return {"model_name": model, "outputs": [output]}


def rows_of_json(request: dict[str, Any]) -> Array:
    """The rows in a request of the Open Inference Protocol."""
    tensor = request["inputs"][0]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


def rows_of_bytes(body: bytes) -> Array:
    return np.frombuffer(body, np.float32).reshape(IMAGE_SHAPE)
