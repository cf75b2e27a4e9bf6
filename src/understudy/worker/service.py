"""A worker's answers to every message: blank at first, then one replica, then gone.

Lives here: the worker's lifecycle and who is connected. Does not live here: requests (`serving`), loading
(`model`), the process around it (`process`).
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from time import perf_counter

import structlog

from understudy.adapters.links import FrameLink
from understudy.adapters.memory import pss_mb
from understudy.adapters.progress import ProgressWriter
from understudy.adapters.titles import title
from understudy.core.lifecycle import WORKER, WorkerPhase, advance
from understudy.settings.worker import WorkerTuning
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.frames import HEADER_BYTES_MAX, Frame
from understudy.wire.messages import (
    BatchingEnded,
    Cancel,
    Drain,
    Drained,
    Infer,
    Load,
    Loaded,
    Ping,
    Pong,
    Probe,
    Rehearse,
    Stats,
    WorkerStats,
    decode_message,
)
from understudy.worker.batching.asked import rehearse
from understudy.worker.batching.rechecks import Rechecks
from understudy.worker.model import Model, load_model
from understudy.worker.model_thread import ModelThread
from understudy.worker.serving import Serving

# Round trips to the model's thread. The shortest counts: it is kept, and the machine may be busy just now.
HOPS_MEASURED = 9

log = structlog.get_logger()


class Worker:
    """Dispatches frames. `stopped` is set when the process should end; `tasks` outlives every load."""

    def __init__(self, settings: WorkerTuning, tasks: asyncio.TaskGroup, thread: ModelThread) -> None:
        self.tcp_address = ""
        self.stopped = asyncio.Event()
        self.links: set[FrameLink] = set()
        self.unlinked = asyncio.Event()  # set while nobody is connected
        self.progress = ProgressWriter()
        self.model: Model | None = None
        self._thread = thread
        self._settings = settings
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._state = WorkerPhase.BLANK
        self._load: Load | None = None
        self._loading: asyncio.Task[None] | None = None
        self._serving: Serving | None = None
        self._agent: FrameLink | None = None
        self._drainers: list[tuple[FrameLink, int]] = []
        self._executed_before_drain = 0
        self._orphan_timer: asyncio.TimerHandle | None = None
        self._hop_s = tasks.create_task(self._measure_hop())  # now, while nobody waits for it
        self._await_links()

    def make_link(self) -> FrameLink:
        return FrameLink(
            self._on_frame,
            self._on_lost,
            frame_bytes_max=self._settings.frame_bytes_max,
            on_made=self._on_made,
        )

    def drain(self, timeout_s: float) -> None:
        """Finish what is queued, then set `stopped`; after `timeout_s` without finishing."""
        if self._state == WorkerPhase.DRAINING:
            return
        self._state = advance(WORKER, self._state, "drain_asked")
        if self._serving is None:
            self._finish()
            return
        self._executed_before_drain = self._serving.executed
        self._loop.call_later(timeout_s, self._finish)
        self._serving.when_idle(self._finish)

    def stop_loading(self) -> None:
        """Forget about a load that goes on in the thread: nothing can end it but the end of the process."""
        if self._loading is not None:
            self._loading.cancel()

    # links

    def _on_made(self, link: FrameLink) -> None:
        self.links.add(link)
        self.unlinked.clear()
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
            self._orphan_timer = None

    def _on_lost(self, link: FrameLink, error: Exception | None) -> None:
        self.links.discard(link)
        if self._serving is not None:
            self._serving.forget(link)
        if not self.links:
            self._await_links()

    def _await_links(self) -> None:
        self.unlinked.set()
        self._orphan_timer = self._loop.call_later(self._settings.orphan_timeout_s, self._end_orphaned)

    def _end_orphaned(self) -> None:
        log.info("worker.orphaned", orphan_timeout_s=self._settings.orphan_timeout_s)
        self.stopped.set()

    # messages

    def _on_frame(self, link: FrameLink, frame: Frame) -> None:
        message = decode_message(frame)
        stream = frame.stream
        if type(message) is Infer:
            if self._state == WorkerPhase.READY and self._serving is not None:
                self._serving.infer(link, stream, message, frame.payload, frame.flags)
            else:
                link.fail(stream, self._not_ready())
            return
        match message:
            case Cancel():
                if self._serving is not None:
                    self._serving.cancel(link, stream)
            case Ping():
                link.send(Pong(), stream)
            case Stats():
                self._hear_agent(link)
                self._send_stats(link, stream)
            case Probe(inference):
                self._hear_agent(link)
                if self._state == WorkerPhase.READY and self._serving is not None:
                    self._serving.probe(link, stream, inference=inference)
                else:
                    link.fail(stream, self._not_ready())
            case Load():
                self._start_load(link, stream, message)
            case Rehearse():
                if self._load is not None and self.model is not None:
                    rehearse(self._thread, self._load, self.model, link, stream)
                else:
                    link.fail(stream, self._not_ready())
            case BatchingEnded():
                if self._serving is not None:
                    self._serving.rechecks.end()
            case Drain():
                self._drainers.append((link, stream))
                self.drain(message.timeout_ms / 1000)
            case _:
                pass  # of a newer version, or not for a worker

    def _hear_agent(self, link: FrameLink) -> None:
        """Whoever asks these is the agent, and a new one is told what the former knew."""
        if link is not self._agent:
            self._agent = link
            self._tell_batching_ended()

    def _tell_batching_ended(self) -> None:
        if self._serving is not None and self._serving.rechecks.found and self._agent is not None:
            self._agent.send(BatchingEnded(self._serving.rechecks.found))

    def _not_ready(self) -> UnderstudyError:
        if self._state == WorkerPhase.DRAINING:
            return UnderstudyError(Code.DRAINING, "the replica is draining")
        return UnderstudyError(Code.UNAVAILABLE, f"no model is loaded; the worker is {self._state}")

    def _send_stats(self, link: FrameLink, stream: int) -> None:
        # Reading the memory takes a millisecond and more, so it is kept off the loop.
        reading = self._loop.run_in_executor(None, pss_mb)
        reading.add_done_callback(partial(self._reply_stats, link, stream))

    def _reply_stats(self, link: FrameLink, stream: int, reading: asyncio.Future[float]) -> None:
        if reading.cancelled():
            return
        stats = WorkerStats(os.getpid(), self._state, pss_mb=reading.result(), tcp_address=self.tcp_address)
        if self._load is not None:
            stats.replica = self._load.replica
            stats.app = self._load.app
            stats.version = self._load.version
            stats.variant = self._load.variant
        if self._serving is not None:
            stats.requests = self._serving.requests
            stats.failures = self._serving.failures
            stats.queued = self._serving.queued_rows
            stats.infer_us_mean = self._serving.infer_us_mean
            stats.batches = self._serving.batches
            stats.batching_ended = self._serving.rechecks.found
        link.send(stats, stream)

    # loading

    def _start_load(self, link: FrameLink, stream: int, load: Load) -> None:
        if self._state == WorkerPhase.DRAINING:
            link.fail(stream, self._not_ready())
            return
        if self._state != WorkerPhase.BLANK:
            what = f"the worker is {self._state} with a model; a worker is loaded once"
            link.fail(stream, UnderstudyError(Code.CONFLICT, what))
            return
        self._state = advance(WORKER, self._state, "load_asked")
        self._load = load
        title(f"worker {load.app}/{load.variant}")
        self._loading = self._tasks.create_task(self._finish_load(link, stream, load))

    async def _finish_load(self, link: FrameLink, stream: int, load: Load) -> None:
        hop_s = await self._hop_s
        try:
            model, loaded = await self._thread.ask(load_model, load, self._settings.threads)
        except UnderstudyError as error:
            self._state = advance(WORKER, self._state, "load_failed")
            self._load = None
            log.error(
                "model.load_failed",
                replica=load.replica,
                path=load.path,
                error=error.message,
                traceback=error.traceback,
            )
            link.fail(stream, error)
            return
        self._become_ready(load, model, loaded, hop_s)
        if self._state == WorkerPhase.READY:
            link.send(loaded, stream)
        else:
            link.fail(stream, self._not_ready())

    def _become_ready(self, load: Load, model: Model, loaded: Loaded, hop_s: float) -> None:
        self._state = advance(WORKER, self._state, "loaded")
        self.progress.end(proven=True)  # loading ended in an inference
        self.model = model
        model.codec.bodies.bytes_max = self._settings.frame_bytes_max - HEADER_BYTES_MAX
        rechecks = Rechecks(model, load, self._settings.recheck_share, self._tell_batching_ended)
        self._serving = Serving(model, load, hop_s, self._thread, rechecks, self.progress)
        log.info(
            "model.loaded",
            replica=load.replica,
            load_ms=round(loaded.load_ms, 1),
            hop_us=round(hop_s * 1e6),
        )

    async def _measure_hop(self) -> float:
        """Seconds from the loop to the thread and back, doing nothing there."""
        hops_s = []
        for _ in range(HOPS_MEASURED):
            started_s = perf_counter()
            await self._thread.ask(int)
            hops_s.append(perf_counter() - started_s)
        return min(hops_s)

    # draining

    def _finish(self) -> None:
        finished = 0
        if self._serving is not None:
            self._serving.abandon(self._not_ready())
            finished = self._serving.executed - self._executed_before_drain
        for link, stream in self._drainers:
            link.send(Drained(finished), stream)
        self._drainers.clear()
        self.stopped.set()
