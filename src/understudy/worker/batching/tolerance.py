"""How much two answers to the same row may differ and still be the same answer.

A row computed in a batch is rounded differently than alone: kernels add in another order. The tolerance is a
fraction of the largest magnitude in that output's row, by datatype; what isn't a float has to be equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array, show_shape

# Fractions. Seen with ONNX Runtime between one row and a batch of 32: below 1e-6 of FP32 after hundreds of
# layers; half precision has 11 and 8 bits of its own.
TOLERANCES = {"FP64": 1e-9, "FP32": 1e-4, "FP16": 1e-2, "BF16": 5e-2}
MAGNITUDE_MIN = 1e-2  # below it, a difference is measured against this instead of the row itself


class Tolerance:
    """For the outputs of one model. `declared`, a fraction, replaces the table and goes for integers too."""

    def __init__(self, outputs: Sequence[TensorSpec], declared: float | None = None) -> None:
        self._allowed = {spec.name: _allowed(spec.datatype, declared) for spec in outputs}

    def difference(self, alone: dict[str, Array], other: dict[str, Array], *, floats: bool = False) -> str:
        """What differs more than it may, as the end of a sentence; empty if nothing does.

        Both have the same rows. `floats`: only these are looked at.
        """
        for name, allowed in self._allowed.items():
            a, b = alone[name], other[name]
            if a.shape != b.shape:
                return f"output {name!r} has shape {show_shape(b.shape)} instead of {show_shape(a.shape)}"
            if allowed is None:
                if not floats and not np.array_equal(_comparable(a), _comparable(b)):
                    return f"output {name!r} isn't the same"
                continue
            found = _differs(a, b)
            if found > allowed and not (floats and a.dtype.kind != "f"):
                return f"output {name!r} differs by {found:.2g} of its magnitude ({allowed:g} is tolerated)"
        return ""


def _allowed(datatype: str, declared: float | None) -> float | None:
    """None: it has to be equal."""
    if datatype in TOLERANCES:
        return TOLERANCES[datatype] if declared is None else declared
    return None if declared is None or datatype in ("BYTES", "BOOL") else declared


def _differs(a: Array, b: Array) -> float:
    """The largest difference, as a fraction of the largest magnitude in the same row."""
    if not a.size:
        return 0.0
    rows = len(a) if a.ndim else 1
    x, y = a.astype(np.float64).reshape(rows, -1), b.astype(np.float64).reshape(rows, -1)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.where(same, 0.0, np.abs(x - y))
    distance[np.isnan(distance)] = np.inf
    finite = np.where(np.isfinite(x), np.abs(x), 0.0)
    magnitude = np.maximum(finite.max(axis=1), MAGNITUDE_MIN)
    return float((distance.max(axis=1) / magnitude).max())


def _comparable(array: Array) -> Array:
    """Text and bytes of the same content are the same."""
    if array.dtype.kind not in "OSU":
        return array
    flat = [v.encode() if isinstance(v, str) else v for v in array.ravel().tolist()]
    made = np.empty(len(flat), dtype=object)
    made[:] = flat
    return made
