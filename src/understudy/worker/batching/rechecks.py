"""Doubt at work: a few batched answers are computed again, alone, and a difference ends batching.

One request of a batch is kept until there is room; nothing else is done on its way. The first batches are
chosen more often than later ones, and the time that all of it takes is a share of the time at work.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import structlog

from understudy.wire.messages import Load
from understudy.wire.tensors import Array
from understudy.worker.batching.tolerance import Tolerance
from understudy.worker.model import Done, Model
from understudy.worker.oip import Request

FREE_S = 0.2  # of work that need not be earned first
WAIT_S = 1.0  # a replica that is never idle makes room then

log = structlog.get_logger()


class Rechecks:
    """Of one replica. `found`: the difference that was seen here; empty while there is none.

    `tell` is called when one was found.
    """

    __slots__ = (
        "_batches", "_every", "_exact", "_insists", "_kept", "_kept_s", "_model", "_share", "_spent_s",
        "_stop", "_tell", "_tolerance", "ended", "found",
    )  # fmt: skip

    def __init__(self, model: Model, load: Load, share: float, tell: Callable[[], None]) -> None:
        self.found = ""
        self.ended = not model.batched or share <= 0.0
        self._model = model
        self._tell = tell
        self._stop: Callable[[], None] = _nothing
        self._share = share
        self._every = max(1, round(1 / share)) if share > 0.0 else 0
        self._tolerance = Tolerance(model.outputs, load.batching.tolerance)
        # What is proven row by row differs by rounding alone, which may flip a label of two equal scores.
        self._exact = load.verdict is None or load.verdict.by != "graph"
        self._insists = load.batching.mode == "always"
        self._batches = 0
        self._spent_s = 0.0
        self._kept: tuple[Request, dict[str, Array]] | None = None
        self._kept_s = 0.0

    def on_end(self, stop: Callable[[], None]) -> None:
        self._stop = stop

    @property
    def waiting(self) -> bool:
        return self._kept is not None

    def offer(self, done: Done, worked_s: float) -> None:
        """A batch of several requests is answered. `worked_s`: the replica's time at work until now."""
        if self.ended:
            return
        self._batches += 1
        number = self._batches
        if number & (number - 1) and number % self._every:
            return
        if self._kept is not None or self._spent_s > FREE_S + self._share * worked_s or done.outputs is None:
            return
        chosen = number % len(done.requests)
        start = sum(request.rows for request in done.requests[:chosen])
        request = done.requests[chosen]
        rows = slice(start, start + request.rows)
        self._kept = request, {name: array[rows].copy() for name, array in done.outputs.items()}
        self._kept_s = monotonic()

    def due(self, now: float, *, idle: bool) -> bool:
        return self._kept is not None and (idle or now - self._kept_s > WAIT_S)

    def run(self) -> str:
        """What differs, if anything; in the model's thread."""
        kept, self._kept = self._kept, None
        if kept is None:
            return ""
        started_s = monotonic()
        difference = self._compared(*kept)
        self._spent_s += monotonic() - started_s
        return difference

    def conclude(self, difference: str) -> None:
        """On the loop, with what `run` said."""
        if difference and not self.ended:
            self.found = f"seen at work: {difference} when it is computed alone"
            log.warning("batching.ended", reason=self.found)
            self.end()
            self._tell()

    def end(self) -> None:
        """No batches from now on, whoever found out why."""
        if not self.ended:
            self.ended = True
            self._stop()

    def _compared(self, request: Request, batched: dict[str, Array]) -> str:
        alone = self._alone(request)
        if alone is None:
            return ""
        difference = self._tolerance.difference(alone, batched, floats=not self._exact)
        if difference and self._insists:
            again = self._alone(request)  # who insists knows of a model that doesn't answer alike
            if again is None or self._tolerance.difference(alone, again, floats=not self._exact):
                return ""
        return difference

    def _alone(self, request: Request) -> dict[str, Array] | None:
        inputs = {name: array.copy() for name, array in request.inputs.items()}
        (done,) = self._model.execute(
            [Request(inputs, request.rows, request.key, None, (), parameters=request.parameters)]
        )
        return None if done.outputs is None else {name: array.copy() for name, array in done.outputs.items()}


def _nothing() -> None:
    return None
