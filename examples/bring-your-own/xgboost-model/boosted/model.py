"""Boosted trees, read by xgboost."""

from pathlib import Path

import numpy as np
import xgboost


class Model:
    def load(self, path: str) -> None:
        self._trees = xgboost.Booster({"nthread": 1}, model_file=Path(path) / "model.ubj")

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"malignant": self._trees.inplace_predict(inputs["measurements"])[:, None]}
