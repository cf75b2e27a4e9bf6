"""The model that every server has in the comparison under faults: it waits, as for an accelerator.

Waiting costs no CPU, so that a server's capacity is that of its replicas and not of the cores that it shares
with the load generator. This file is the artifact of Understudy's `python` runtime too; it imports nothing
but NumPy.
"""

import os
import time
from pathlib import Path

import numpy as np

NAME = "waiting"
WAIT_S = 0.005
SLOW_WAIT_S = 10 * WAIT_S


def slow_mark(folder: Path, pid: int) -> Path:
    """While this file exists, the model waits ten times as long in process `pid`."""
    return folder / f"slow-{pid}"


class Model:
    def __init__(self) -> None:
        self._pid = os.getpid()
        self._slow = str(slow_mark(Path(os.environ["MODELS"]), self._pid))

    def load(self, path: str) -> None:
        """Has nothing to load."""

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`x` FP32 [1, n] -> where its largest number is, its softmax, and who answers."""
        x = inputs["x"]
        time.sleep(SLOW_WAIT_S if os.path.exists(self._slow) else WAIT_S)
        shares = np.exp(x)
        return {
            "label": x.argmax(axis=1).astype(np.int64),
            "probabilities": shares / shares.sum(axis=1, keepdims=True),
            "pid": np.full(len(x), self._pid, np.int64),
        }
