"""A loaded model at work: queue, batches, answers.

Everything here happens on the event loop except `Model.execute`. That runs in the model's thread, while
arrivals gather for the next batch; or inline, if the runtime doesn't care and it costs less than a hop to the
thread. One batch runs at a time. No task is made and nothing is logged on the way of a request that succeeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from understudy.adapters.links import FrameLink
from understudy.adapters.progress import ProgressWriter
from understudy.core.batching import Batcher, Durations
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.frames import ENCODING_PROTOBUF, Buffer
from understudy.wire.messages import Infer, Load, Probed
from understudy.worker.answers import Replies, Waiting, out_of_memory
from understudy.worker.batching.rechecks import Rechecks
from understudy.worker.model import Done, Model
from understudy.worker.model_thread import ModelThread
from understudy.worker.oip import Request

# The loop's timers have a resolution of 1 ms. The rest of a shorter wait is spent polling for arrivals.
TIMER_RESOLUTION_S = 0.001
PROBES_QUEUED_MAX = 8  # they may queue beyond the bound: a full queue must not hide that nothing moves


class Serving:
    """Takes requests, answers every one of them on its link unless it is cancelled or the link is gone."""

    def __init__(
        self,
        model: Model,
        load: Load,
        hop_s: float,
        thread: ModelThread,
        rechecks: Rechecks,
        progress: ProgressWriter,
    ) -> None:
        self.requests = 0  # taken in, probes not counted
        self.batches = 0  # executed
        self.executed = 0  # ran and were answered, probes too
        self._model = model
        self._answers = Replies(model.codec)
        self._decode = model.codec.decode
        self._loop = asyncio.get_running_loop()
        self._thread = thread
        self._batcher: Batcher[Waiting] = Batcher(
            max(1, load.batching.rows_max) if model.batched else 1,
            load.batching.wait_us / 1e6,
            load.queue_rows_max,
            model.request_bytes_max,
        )
        self._durations = Durations(hop_s)
        self._durations.observe(self._decode(model.probe).rows, model.probe_s, inline=True)
        self._probes_queued = 0
        self._progress = progress
        self._pump_due = False
        self._in_thread = False
        self._execute_s = 0.0
        self._when_idle: Callable[[], None] | None = None
        self.rechecks = rechecks
        rechecks.on_end(self._run_alone)

    def _run_alone(self) -> None:
        """Requests don't share batches any more."""
        self._batcher.rows_max = 1

    @property
    def failures(self) -> int:
        """Answered with a failure that is the model's."""
        return self._answers.failures

    @property
    def queued_rows(self) -> int:
        return self._batcher.rows

    @property
    def infer_us_mean(self) -> float:
        """Of a batch, over the replica's life."""
        return self._execute_s * 1e6 / self.batches if self.batches else 0.0

    def infer(self, link: FrameLink, stream: int, infer: Infer, body: Buffer, flags: int = 0) -> None:
        """`flags` are those of the frame: which encoding `body` has."""
        self.requests += 1
        now = monotonic()
        if self._batcher.is_full:
            link.fail(stream, _busy(self._batcher.rows))
            return
        try:
            if flags & ENCODING_PROTOBUF:
                request = self._model.codec.decode_protobuf(body)
            else:
                request = self._decode(body, infer.json_bytes)
            size_bytes = self._model.cost(request, len(body))
        except UnderstudyError as error:
            link.fail(stream, error)
            return
        except MemoryError:
            link.fail(stream, out_of_memory("decode the request"))
            return
        waiting = Waiting(link, stream, request, now, now + infer.timeout_us / 1e6, False)
        if not self._batcher.add(waiting, request.rows or 1, request.key, now, size_bytes):
            link.fail(stream, _busy(self._batcher.rows))
        elif not self._pump_due:
            self._schedule()

    def probe(self, link: FrameLink, stream: int, *, inference: bool = True) -> None:
        if not inference:
            began_s = monotonic()
            # Behind whatever runs there.
            self._thread.call(int, 0, lambda *_: link.send(Probed((monotonic() - began_s) * 1000), stream))
            return
        if self._probes_queued >= PROBES_QUEUED_MAX:
            link.fail(stream, UnderstudyError(Code.BUSY, "too many probes are waiting"))
            return
        now = monotonic()
        request = self._decode(self._model.probe)
        self._probes_queued += 1
        waiting = Waiting(link, stream, request, now, float("inf"), True)
        self._batcher.add_beyond_bound(waiting, request.rows, request.key, now)
        if not self._pump_due:
            self._schedule()

    def cancel(self, link: FrameLink, stream: int) -> None:
        self._drop(lambda waiting: waiting.stream == stream and waiting.link is link)

    def forget(self, link: FrameLink) -> None:
        """Nobody waits on `link` any more."""
        self._drop(lambda waiting: waiting.link is link)

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, as soon as nothing is queued or running."""
        self._when_idle = callback
        if not self._pump_due:
            self._schedule()

    def abandon(self, error: UnderstudyError) -> None:
        """Answer everything queued with `error`. What runs now is not waited for."""
        for waiting in self._batcher.remove(lambda _: True):
            waiting.link.fail(waiting.stream, error)

    def _drop(self, match: Callable[[Waiting], bool]) -> None:
        if self._batcher.rows:
            self._probes_queued -= sum(waiting.is_probe for waiting in self._batcher.remove(match))

    def _schedule(self) -> None:
        # At the end of the loop's turn: whatever else arrived in it joins the batch.
        self._pump_due = True
        self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Run the next batch if one is due; otherwise see to it that this is called again in time."""
        self._pump_due = False
        if self._in_thread:
            return
        now = monotonic()
        if self.rechecks.due(now, idle=not self._batcher.rows):
            self._in_thread = True
            self._progress.begin(1, now, 0.0)
            self._thread.call(lambda _: self.rechecks.run(), None, self._rechecked)
            return
        batch = self._batcher.take(now)
        if not batch:
            self._wait_for_more(now)
            return
        batch = [waiting for waiting in batch if waiting.deadline_s > now or self._expire(waiting)]
        if not batch:
            self._schedule()
            return
        requests = [waiting.request for waiting in batch]
        rows = sum([request.rows for request in requests])
        budget_s = max([waiting.deadline_s for waiting in batch if not waiting.is_probe], default=now) - now
        self._progress.begin(rows, now, budget_s)
        if not self._model.own_thread and self._durations.run_inline(rows):
            results = self._model.execute(requests)
            ended_s = monotonic()
            self._observe(results, rows, ended_s - now, inline=True)
            self._answer(batch, results, rows, now, ended_s)
            if self._batcher.rows or self._when_idle is not None or self.rechecks.waiting:
                self._schedule()
            return
        self._in_thread = True
        self._thread.call(self._execute_timed, requests, partial(self._answer_from_thread, batch, rows))

    def _wait_for_more(self, now: float) -> None:
        wake_s = self._batcher.wake_s()
        if wake_s is None:
            if self._when_idle is not None:
                callback, self._when_idle = self._when_idle, None
                callback()
            return
        self._pump_due = True
        delay_s = wake_s - now - TIMER_RESOLUTION_S
        if delay_s < TIMER_RESOLUTION_S:
            self._loop.call_soon(self._pump)
        else:
            self._loop.call_later(delay_s, self._pump)

    def _execute_timed(self, requests: Sequence[Request]) -> tuple[list[Done], float, float]:
        started_s = monotonic()
        results = self._model.execute(requests)
        return results, started_s, monotonic()

    def _answer_from_thread(
        self,
        batch: list[Waiting],
        rows: int,
        timed: tuple[list[Done], float, float],
        broken: BaseException | None,
    ) -> None:
        self._in_thread = False
        if broken is not None:
            raise broken
        results, started_s, ended_s = timed
        self._observe(results, rows, ended_s - started_s, inline=False)
        self._answer(batch, results, rows, started_s, ended_s)
        self._pump()

    def _rechecked(self, difference: str, broken: BaseException | None) -> None:
        self._in_thread = False
        if broken is not None:
            raise broken
        self._progress.end(proven=False)
        self.rechecks.conclude(difference)
        self._pump()

    def _observe(self, results: list[Done], rows: int, duration_s: float, *, inline: bool) -> None:
        if len(results) == 1:  # otherwise it failed, and its parts ran again
            self._durations.observe(rows, duration_s, inline=inline)
        self._progress.end(proven=any(done.error is None for done in results))
        self.batches += 1
        self.executed += sum([len(done.requests) for done in results])
        self._execute_s += duration_s

    def _answer(
        self, batch: list[Waiting], results: list[Done], rows: int, started_s: float, ended_s: float
    ) -> None:
        if self._probes_queued:
            self._probes_queued -= sum([waiting.is_probe for waiting in batch])
        index = 0
        for done in results:
            answered = batch[index : index + len(done.requests)]
            index += len(answered)
            if len(answered) > 1 and done.outputs is not None:
                self.rechecks.offer(done, self._execute_s)
            self._answers.send(done, answered, rows, started_s, ended_s)

    def _expire(self, waiting: Waiting) -> bool:
        """Answer a request whose time ran out in the queue. False: it is not to be run."""
        waited_ms = (monotonic() - waiting.arrived_s) * 1000
        what = "the deadline passed in the queue"
        waiting.link.fail(waiting.stream, UnderstudyError(Code.TIMEOUT, what, waited_ms=round(waited_ms, 1)))
        return False


def _busy(queued_rows: int) -> UnderstudyError:
    return UnderstudyError(Code.BUSY, "the replica's queue is full", queued_rows=queued_rows)
