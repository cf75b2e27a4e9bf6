"""A worker process: blank, then one replica, with the queue and the batches of the real one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from understudy.core.batching import Batcher
from understudy.core.lifecycle import WorkerPhase
from understudy.core.planning.footprint import load_ms, replica_mb
from understudy.sim.clock import Act, Process
from understudy.sim.network import End
from understudy.sim.scenario import BAD_DATA
from understudy.wire.errors import Code
from understudy.wire.frames import Buffer, FrameDecoder
from understudy.wire.messages import (
    Cancel,
    Failure,
    Infer,
    Kind,
    Pong,
    Result,
    decode_message,
    encode_message,
)
from understudy.wire.records import AppVersion, Variant

ROW_COST = 0.1  # of the first row's time, for each further one of a batch


@dataclass(frozen=True, slots=True)
class SimRequest:
    """A request, or a probe: that has no `end`, but somebody who is told that it was answered."""

    end: End | None
    stream: int
    deadline_s: float
    bad: bool = False  # the model can't do anything with it, wherever it runs
    probed: Act | None = None


class SimWorker:
    """`slow` stretches its inferences; `fails` is the fraction of them that fail."""

    def __init__(self, name: str, process: Process, random: Random, queue_rows_max: int) -> None:
        self.name = name
        self.process = process
        self.state = WorkerPhase.BLANK
        self.app = ""
        self.version = 0
        self.variant: Variant | None = None
        self.slow = 1.0
        self.fails = 0.0
        self.batches = 0
        self.running: tuple[float, int, float] | None = None  # began, rows, longest time left to a request
        self.proven_s = -math.inf
        self._noops: list[Act] = []  # behind the batch that is running
        self._random = random
        self._queue_rows_max = queue_rows_max
        self._queue: Batcher[SimRequest] = Batcher(1, 0.0, queue_rows_max)

    @property
    def memory_mb(self) -> float:
        return replica_mb(self.variant) if self.variant is not None else 0.0

    def be_well(self) -> None:
        self.slow, self.fails = 1.0, 0.0

    def load(self, app: AppVersion, variant: Variant, done: Callable[[float], None]) -> None:
        self.state, self.app, self.version, self.variant = WorkerPhase.LOADING, app.app, app.version, variant
        self._queue = Batcher(app.batching.rows_max, 0.0, self._queue_rows_max)
        took_ms = load_ms(variant) * (0.8 + 0.4 * self._random.random())

        def loaded() -> None:
            if self.state == WorkerPhase.LOADING:
                self.state = WorkerPhase.READY
                self.proven_s = self.process.now
                done(took_ms)

        self.process.after(took_ms / 1000, loaded)

    def drain(self, timeout_s: float) -> None:
        """Finish what is queued, then end."""
        self.state = WorkerPhase.DRAINING
        self.process.after(timeout_s, self.process.kill)
        self._pump()

    def accept(self, end: End) -> None:
        """A connection of a gateway."""
        decoder = FrameDecoder()

        def received(message: tuple[bytes, Buffer]) -> None:
            for frame in decoder.feed(message[0] + bytes(message[1])):
                if frame.kind == Kind.PING:
                    end.send(encode_message(Pong(), frame.stream))
                    continue
                order = decode_message(frame)
                if isinstance(order, Infer):
                    self._infer(end, frame.stream, order, bytes(frame.payload).startswith(BAD_DATA))
                else:
                    assert isinstance(order, Cancel)
                    self._queue.remove(partial(_is_of, end, frame.stream))

        end.received = received
        end.lost = lambda: self._forget(end)

    def _forget(self, end: End) -> None:
        self._queue.remove(lambda waiting: waiting.end is end)

    def _infer(self, end: End, stream: int, infer: Infer, bad: bool) -> None:
        waiting = SimRequest(end, stream, self.process.now + infer.timeout_us / 1e6, bad)
        if self.state != WorkerPhase.READY:
            code = Code.DRAINING if self.state == WorkerPhase.DRAINING else Code.UNAVAILABLE
            end.send(encode_message(Failure(code, "not ready"), stream))
        elif not self._queue.add(waiting, 1, "", self.process.now):
            end.send(encode_message(Failure(Code.BUSY, "full"), stream))
        else:
            self._pump()

    def probe(self, probed: Act, *, inference: bool) -> None:
        """An inference of the agent's, in the same queue; or a no-op."""
        if not inference:
            self._noops.append(probed)
            if self.running is None:
                self._answer_noops()
        elif self.state == WorkerPhase.READY:
            waiting = SimRequest(None, 0, float("inf"), probed=probed)
            self._queue.add_beyond_bound(waiting, 1, "", self.process.now)
            self._pump()

    def _answer_noops(self) -> None:
        noops, self._noops = self._noops, []
        for probed in noops:
            probed()

    def _pump(self) -> None:
        if self.running is not None:
            return
        now = self.process.now
        batch: list[SimRequest] = []
        while not batch and self._queue.rows:
            taken = self._queue.take(now)
            batch = [waiting for waiting in taken if waiting.deadline_s > now]
            self._answer([waiting for waiting in taken if waiting.deadline_s <= now], Code.TIMEOUT, 0.0)
        if not batch:
            if self.state == WorkerPhase.DRAINING:
                self.process.kill()
            return
        assert self.variant is not None
        assert self.variant.profile is not None
        took_s = self.variant.profile.latency_ms / 1000 * self.slow * (0.8 + 0.4 * self._random.random())
        took_s *= 1 + ROW_COST * (len(batch) - 1)
        budget_s = (
            max((waiting.deadline_s for waiting in batch if waiting.end is not None), default=now) - now
        )
        self.running = now, len(batch), budget_s
        self.process.after(took_s, lambda: self._executed(batch, took_s))

    def _executed(self, batch: list[SimRequest], took_s: float) -> None:
        self.running = None
        self.batches += 1
        failure = Code.MODEL_FAILED if self._random.random() < self.fails else None
        if failure is None:
            self.proven_s = self.process.now
        self._answer([w for w in batch if w.bad], Code.MODEL_FAILED, took_s)
        self._answer([w for w in batch if not w.bad], failure, took_s)
        self._answer_noops()
        self._pump()

    def _answer(self, batch: list[SimRequest], failure: Code | None, took_s: float) -> None:
        for waiting in batch:
            if waiting.end is None:
                assert waiting.probed is not None
                waiting.probed()
            elif failure is not None:
                waiting.end.send(encode_message(Failure(failure, "it was so decided"), waiting.stream))
            else:
                waiting.end.send(encode_message(Result(round(took_s * 1e6), 0, len(batch)), waiting.stream))


def _is_of(end: End, stream: int, waiting: SimRequest) -> bool:
    return waiting.end is end and waiting.stream == stream
