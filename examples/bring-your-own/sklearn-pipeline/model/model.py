"""Pickled pipelines that take a data frame. Two classes, because two variants share this directory."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd

from understudy import InputError


class AllColumns:
    file = "all-columns.pkl"

    def load(self, path: str) -> None:
        self._pipeline = pickle.loads((Path(path) / self.file).read_bytes())

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        frame = pd.DataFrame({name: column[:, 0] for name, column in inputs.items()})
        unknown = set(frame["sex"]) - {"f", "m"}
        if unknown:
            raise InputError(f"sex: f or m, not {', '.join(map(repr, sorted(unknown)))}")
        return {"progression": self._pipeline.predict(frame)[:, None]}


class ThreeColumns(AllColumns):
    file = "three-columns.pkl"
