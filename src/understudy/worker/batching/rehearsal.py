"""Several rows alone, together, in another order and beside extreme neighbours: is each answer the same?

Evidence, no proof: what depends on values that were never drawn passes. So a share of what is batched is
computed again while a variant serves (`rechecks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from understudy.wire.errors import UnderstudyError
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array
from understudy.worker.batching.rows import Row, draw_rounds, extreme_rows
from understudy.worker.batching.tolerance import Tolerance
from understudy.worker.raised import breaks_contract
from understudy.worker.runtimes.contract import load_failed

ROUNDS_MAX = 16
ROWS = 4  # of a round
LARGE_ROWS_MAX = 32  # of the one large batch
TIME_S = 2.0  # no round begins later, except for the first
SLOW_S = 0.25  # a model that takes as long is rehearsed with two rows

Predict = Callable[[Row], dict[str, Array]]  # raises `UnderstudyError`


class Outcome(StrEnum):
    SAME = "same"
    DIFFERENT = "different"
    NOT_SHOWN = "not shown"


class Rehearsed(NamedTuple):
    outcome: Outcome
    reason: str


class _Different(Exception):
    pass


class Rehearsal:
    """Of one model. `predict` guards what it returns; `clock` is in seconds."""

    def __init__(
        self,
        predict: Predict,
        inputs: tuple[TensorSpec, ...],
        tolerance: Tolerance,
        clock: Callable[[], float],
    ) -> None:
        self._predict = predict
        self._inputs = inputs
        self._tolerance = tolerance
        self._clock = clock
        self._compared = 0  # rows
        self._answers: list[dict[str, Array]] = []  # to different rows, a few
        self._refusal = ""

    def run(self, own: list[Row], rows_max: int, latency_s: float) -> Rehearsed:
        """`own`: rows that the app gave.

        Raises LOAD_FAILED if what the model returns for several rows contradicts its signature.
        """
        until_s = self._clock() + TIME_S
        count = max(2, min(rows_max, ROWS if latency_s < SLOW_S else 2))
        try:
            for number, drawn in enumerate(draw_rounds(self._inputs, own, count)):
                if number >= ROUNDS_MAX or (number and self._clock() > until_s):
                    break
                if unstable := self._round(drawn, rows_max if latency_s < SLOW_S else count):
                    return Rehearsed(Outcome.NOT_SHOWN, unstable)
        except _Different as different:
            return Rehearsed(Outcome.DIFFERENT, str(different))
        return self._judged()

    def _judged(self) -> Rehearsed:
        if not self._compared:
            why = f", the others were refused ({self._refusal})" if self._refusal else ""
            return Rehearsed(
                Outcome.NOT_SHOWN, f"it took fewer than two different rows{why}; a [probe] with several helps"
            )
        if len(self._answers) < 2:
            return Rehearsed(
                Outcome.NOT_SHOWN,
                f"its answer to each of {self._compared} rows was the same, which shows nothing; "
                "a [probe] with rows that are answered differently helps",
            )
        return Rehearsed(
            Outcome.SAME, f"the answers to {self._compared} rows were the same alone, together and reordered"
        )

    def _round(self, drawn: list[Row], rows_max: int) -> str:
        """Raises `_Different`. Returns why the model can't be judged, if it can't."""
        rows: list[Row] = []
        alone: list[dict[str, Array]] = []
        for row in drawn:
            if any(_equal(row, other) for other in rows):
                continue
            answer = self._alone(row)
            if answer is not None:
                rows.append(row)
                alone.append(answer)
        if not rows:
            return ""
        again = self._alone(rows[0])
        if again is None or (difference := self._tolerance.difference(alone[0], again)):
            what = difference if again is not None else "it failed the second time"
            return f"it doesn't answer the same row alike: {what}"
        if len(rows) < 2:
            return ""
        self._remember(alone)
        order = list(range(len(rows)))
        self._compare(rows, alone, order, "beside others")
        self._compare(rows, alone, order[::-1], "in another order")
        size = min(rows_max, LARGE_ROWS_MAX)
        if not self._compared and size > len(rows):
            self._compare(rows, alone, (order * size)[:size], f"among {size}")
        self._beside_extremes(rows[0], alone[0])
        self._compared += len(rows)
        return ""

    def _beside_extremes(self, row: Row, alone: dict[str, Array]) -> None:
        rows, answers = [row], [alone]
        for other in extreme_rows(self._inputs, row):
            answer = self._alone(other)
            if answer is not None:
                rows.append(other)
                answers.append(answer)
        if len(rows) > 1:
            self._compare(rows, answers, list(range(len(rows)))[::-1], "beside extreme ones")

    def _alone(self, row: Row) -> dict[str, Array] | None:
        """The answer; None if the model refuses the row."""
        try:
            answer = self._asked(row)
        except UnderstudyError as error:
            self._refusal = error.message
            return None
        for name, array in answer.items():
            if array.ndim == 0 or len(array) != 1:
                got = f"{len(array)} rows" if array.ndim else "a single number"
                raise _Different(f"output {name!r} has {got} for one row")
        return answer

    def _asked(self, row: Row) -> dict[str, Array]:
        """Models may change what they are given, and keep what they return."""
        answer = self._predict({name: array.copy() for name, array in row.items()})
        return {name: array.copy() for name, array in answer.items()}

    def _compare(
        self, rows: Sequence[Row], alone: Sequence[dict[str, Array]], order: Sequence[int], how: str
    ) -> None:
        joined = {name: np.concatenate([rows[i][name] for i in order]) for name in rows[0]}
        try:
            together = self._asked(joined)
        except UnderstudyError as error:
            if breaks_contract(error):
                raise load_failed(f"for {len(order)} rows, {error.message}") from error
            raise _Different(f"it fails when rows run together: {error.message}") from error
        for name, array in together.items():
            if array.ndim == 0 or len(array) != len(order):
                got = len(array) if array.ndim else "no"
                raise _Different(f"output {name!r} has {got} rows for {len(order)}")
        for place, i in enumerate(order):
            own = {name: array[place : place + 1] for name, array in together.items()}
            if difference := self._tolerance.difference(alone[i], own):
                raise _Different(f"{difference} when the row runs {how}")

    def _remember(self, answers: Sequence[dict[str, Array]]) -> None:
        for answer in answers:
            if len(self._answers) < 2 and not any(_equal(answer, known) for known in self._answers):
                self._answers.append(answer)


def _equal(a: dict[str, Array], b: dict[str, Array]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)
