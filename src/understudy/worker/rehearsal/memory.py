"""How much memory an inference takes with the size of its inputs, measured with many rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from understudy.adapters.memory import peak_mb, reset_peak
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array
from understudy.worker.costs import POINTER_FACTOR, Appetite

TARGET_BYTES = 4 * 1024 * 1024  # of inputs; large beside what else a process does meanwhile
ROWS_MAX = 65_536
MARGIN = 1.25


def appetite(
    predict: Callable[[dict[str, Array]], dict[str, Array]],
    probe: dict[str, Array],
    inputs: tuple[TensorSpec, ...],
) -> Appetite:
    """What inferences cost; the cautious guess for a model that takes one size only, or no more rows."""
    given = [spec for spec in inputs if spec.name in probe]
    if not given or any(spec.shape[:1] != (-1,) or not probe[spec.name].size for spec in given):
        return Appetite()
    row_bytes = sum(_bytes(array) / len(array) for array in probe.values())
    rows = int(min(ROWS_MAX, max(1, TARGET_BYTES // row_bytes)))
    many = {
        name: np.repeat(array[:1], rows, axis=0) if rows > len(array) else array
        for name, array in probe.items()
    }
    size = sum(_bytes(array) for array in many.values())
    try:
        before_mb = reset_peak()
        outputs = predict(many)
        added_mb = peak_mb() - before_mb
    except Exception:  # so many rows aren't what it takes; it says so to whoever sends them
        return Appetite()
    returned = sum(_bytes(array) for array in outputs.values() if isinstance(array, np.ndarray))
    default = Appetite()
    return Appetite(max(default.per_byte, MARGIN * added_mb * 2**20 / size), MARGIN * returned / size)


def _bytes(array: Array) -> int:
    return array.nbytes * POINTER_FACTOR if array.dtype.hasobject else array.nbytes
