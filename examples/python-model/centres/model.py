"""The species of an iris, by its sepal alone: nearest of three centres. The understudy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]


class Model:
    def load(self, path: str) -> None:
        self._centres = np.loadtxt(Path(path) / "centres.csv", np.float32, delimiter=",", skiprows=1)

    def predict(self, inputs: Arrays) -> Arrays:
        differences = inputs["flower"][:, None, :2] - self._centres
        closeness = np.exp(-4.0 * (differences**2).sum(2))
        shares = closeness / closeness.sum(1, keepdims=True)
        return {"species": shares.argmax(1), "certainty": shares.max(1)}
