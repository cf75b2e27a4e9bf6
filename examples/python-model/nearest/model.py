"""The species of an iris, by a vote of the flowers most like it. The full-size variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]

NEIGHBOURS = 7
SPECIES = 3


class Model:
    """A worker creates it, calls `load` once with the artifact's directory, then `predict` per batch."""

    def load(self, path: str) -> None:
        rows = np.loadtxt(Path(path) / "flowers.csv", np.float32, delimiter=",", skiprows=1)
        self._flowers = rows[:, :4]
        self._species = rows[:, 4].astype(np.int64)

    def predict(self, inputs: Arrays) -> Arrays:
        differences = inputs["flower"][:, None, :] - self._flowers
        nearest = (differences**2).sum(2).argpartition(NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        votes = (self._species[nearest][:, :, None] == np.arange(SPECIES)).mean(1, dtype=np.float32)
        return {"species": votes.argmax(1), "certainty": votes.max(1)}
