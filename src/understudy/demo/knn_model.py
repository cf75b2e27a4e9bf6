"""k nearest neighbours in NumPy: a model for Understudy's `python` runtime.

This file is copied into the artifact as `model.py`; it imports nothing but NumPy. The worker creates
`Model`, calls `load` once with the artifact's directory, then `predict` with whole batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class Model:
    """Votes of the `k` nearest points. The answer's probabilities are the shares of the votes."""

    def load(self, path: str) -> None:
        with np.load(Path(path) / "neighbours.npz") as data:
            self._points = data["points"]
            self._labels = data["labels"]
            self._k = int(data["k"])
            self._classes = int(data["classes"])
        self._squares = (self._points**2).sum(1)

    def predict(self, inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """`input` FP32 [rows, features] -> `label` INT64 [rows], `probabilities` FP32 [rows, classes]."""
        rows = inputs["input"]
        # |a - b|^2 without |a|^2, which is the same for all points of a row
        distances = self._squares - 2.0 * (rows @ self._points.T)
        nearest = np.argpartition(distances, self._k - 1, axis=1)[:, : self._k]
        votes = np.zeros((len(rows), self._classes), np.float32)
        np.add.at(votes, (np.arange(len(rows))[:, None], self._labels[nearest]), 1.0)
        return {"label": votes.argmax(1).astype(np.int64), "probabilities": votes / self._k}
