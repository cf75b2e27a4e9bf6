"""How much memory an inference takes with the size of its inputs, measured with more and more rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import NamedTuple

import numpy as np

from understudy.adapters.memory import peak_mb, reset_peak
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array
from understudy.worker.costs import Appetite, array_bytes

Tensors = dict[str, Array]
TARGET_BYTES = 4 * 1024 * 1024  # of inputs; large beside what else a process does meanwhile
ROWS_MAX = 65_536
GROWTH = 4  # times as many rows in each run
# A model may compare every row with every other: the next run may cost GROWTH squared as much as this one.
RUN_S_MAX = 0.3  # a run that took longer is the last
RUN_MB_MAX = 6.0  # likewise if it added as much more than the one before
# What is measured counts if it was large enough to tell it from what else a process does.
TOLD_BYTES = 256 * 1024  # of inputs
TOLD_MB = 4.0
MARGIN = 1.25


class _Run(NamedTuple):
    input_bytes: int
    output_bytes: int
    added_mb: float
    took_s: float


def appetite(
    predict: Callable[[Tensors], Tensors], probe: Tensors, inputs: tuple[TensorSpec, ...]
) -> Appetite:
    """What inferences cost; the cautious guess for a model that takes one size only, or no more rows."""
    given = [spec for spec in inputs if spec.name in probe]
    if not given or any(spec.shape[:1] != (-1,) or not probe[spec.name].size for spec in given):
        return Appetite()
    runs: list[_Run] = []
    for tensors in _growing(probe):
        try:
            runs.append(_measured(predict, tensors))
        except Exception:  # so many rows aren't what it takes; it says so to whoever sends them
            break
        more_mb = runs[-1].added_mb - runs[-2].added_mb if runs[1:] else 0.0
        if runs[-1].took_s > RUN_S_MAX or more_mb > RUN_MB_MAX:
            break
    return _judged(runs)


def _growing(probe: Tensors) -> Iterator[Tensors]:
    row_bytes = sum(array_bytes(array) / len(array) for array in probe.values())
    rows_max = int(min(ROWS_MAX, max(1, TARGET_BYTES // row_bytes)))
    rows = max(map(len, probe.values()))
    while True:
        yield {
            name: np.repeat(array[:1], rows, axis=0) if rows > len(array) else array
            for name, array in probe.items()
        }
        if rows >= rows_max:
            return
        rows = min(rows_max, rows * GROWTH)


def _measured(predict: Callable[[Tensors], Tensors], tensors: Tensors) -> _Run:
    before_mb = reset_peak()
    started_s = perf_counter()
    outputs = predict(tensors)
    took_s = perf_counter() - started_s
    return _Run(
        sum(array_bytes(array) for array in tensors.values()),
        sum(array_bytes(array) for array in outputs.values() if isinstance(array, np.ndarray)),
        peak_mb() - before_mb,
        took_s,
    )


def _judged(runs: list[_Run]) -> Appetite:
    default = Appetite()
    if not runs:
        return default
    last = runs[-1]
    per_byte = default.per_byte
    # What the smallest run took as well doesn't come with the size.
    more_mb = last.added_mb - (runs[0].added_mb if runs[1:] else 0.0)
    more_bytes = last.input_bytes - (runs[0].input_bytes if runs[1:] else 0)
    if more_bytes and (more_bytes >= TOLD_BYTES or more_mb >= TOLD_MB):
        per_byte = max(per_byte, MARGIN * more_mb * 2**20 / more_bytes)
    return Appetite(per_byte, MARGIN * last.output_bytes / last.input_bytes)
