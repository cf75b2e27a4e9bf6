"""The waiting model as every peer runs it: JSON in, JSON out."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.faults.accelerator import NAME, Model
from benchmarks.peers.inference import Array, rows_of_json

DATATYPES = {"label": "INT64", "probabilities": "FP32", "pid": "INT64"}


class Accelerator:
    def __init__(self) -> None:
        self._model = Model()

    def outputs(self, rows: Array) -> list[dict[str, Any]]:
        """Tensors as the Open Inference Protocol writes them."""
        arrays = self._model.predict({"x": np.asarray(rows, np.float32)})
        return [
            {"name": name, "shape": list(a.shape), "datatype": DATATYPES[name], "data": a.ravel().tolist()}
            for name, a in arrays.items()
        ]

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"model_name": NAME, "outputs": self.outputs(rows_of_json(request))}
