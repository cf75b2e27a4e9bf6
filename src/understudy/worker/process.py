"""The process around a worker: its threads, event loop, sockets, signals, children, exit."""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from threading import Thread

import msgspec
import structlog
import uvloop

from understudy.adapters.crash_policy import EXIT_BROKEN, CrashPolicy
from understudy.adapters.descendants import adopt_orphans, end_children
from understudy.adapters.doors import Acceptor, Entrance, tcp_address_of
from understudy.adapters.logs import configure
from understudy.adapters.printing import keep_small
from understudy.adapters.task_groups import ungrouped
from understudy.settings.worker import WorkerTuning
from understudy.wire.errors import ConfigError
from understudy.worker.forks import Forks
from understudy.worker.model import Model
from understudy.worker.model_thread import ModelThread
from understudy.worker.service import Worker

DRAIN_TIMEOUT_S = 5.0  # after a signal; `Drain` brings its own
CLOSE_TIMEOUT_S = 1.0  # for the last answers to leave
UNLOAD_TIMEOUT_S = 1.0  # for a model to put its things away

log = structlog.get_logger()


class WorkerArgs(msgspec.Struct, frozen=True):
    """`worker`: a name for logs. `door`: descriptors as `Entrance` takes them."""

    worker: str
    door: tuple[int, ...]
    settings: WorkerTuning = WorkerTuning()


class _Process:
    """The two threads of a worker: the main one is the model's, the other one runs our loop."""

    def __init__(self, args: WorkerArgs) -> None:
        self.error: BaseException | None = None
        self._args = args
        self._model_thread = ModelThread()
        self._entrance = Entrance(args.door)
        self._forks = Forks(self._model_thread.leave_to_child, self._entrance.line)

    def run(self) -> None:
        adopt_orphans()
        self._forks.watch()
        # In this context, which names the process in the log.
        Thread(target=copy_context().run, args=(self._run_loop,), name="loop", daemon=True).start()
        self._model_thread.serve()

    def _run_loop(self) -> None:
        try:
            with ungrouped(ConfigError), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self.error = error
        end_children()
        self._model_thread.end()
        if self._model_thread.busy:  # with something that never ends
            if self.error is not None:
                log.error("loop.failed", what="the loop ended", error=repr(self.error), exc_info=self.error)
            os._exit(0 if self.error is None else EXIT_BROKEN)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        CrashPolicy().watch(loop)  # a callback that raised may have left requests without an answer
        loop.set_default_executor(ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory"))
        args = self._args
        async with asyncio.TaskGroup() as tasks:
            worker = Worker(args.settings, tasks, self._model_thread)
            worker.progress.write_to(self._entrance.progress)
            for listener in self._entrance.listeners[1:]:
                worker.tcp_address = tcp_address_of(listener)
            self._model_thread.on_signal(partial(worker.drain, DRAIN_TIMEOUT_S))
            output = tasks.create_task(keep_small(args.settings.output_bytes_max))
            acceptors = [Acceptor(listener, worker.make_link, tasks) for listener in self._entrance.listeners]
            self._note_listeners(acceptors)
            loop.add_reader(self._entrance.line, self._renew, worker, acceptors, tasks)
            log.info("worker.started", tcp_address=worker.tcp_address)
            await worker.stopped.wait()
            loop.remove_reader(self._entrance.line)
            for acceptor in acceptors:
                acceptor.close()
            await _close_links(worker)
            worker.stop_loading()
            output.cancel()
            if worker.model is not None and not self._model_thread.busy:
                await _unload(worker.model, self._model_thread)
        log.info("worker.stopped")

    def _note_listeners(self, acceptors: list[Acceptor]) -> None:
        self._forks.addresses = [acceptor.listener.getsockname() for acceptor in acceptors]

    def _renew(self, worker: Worker, acceptors: list[Acceptor], tasks: asyncio.TaskGroup) -> None:
        """Somebody removed the socket, and with it what lay beside it: go on at the one that came instead."""
        try:
            renewed = self._entrance.renewed()
        except EOFError:  # the agent that made them is gone
            asyncio.get_running_loop().remove_reader(self._entrance.line)
            return
        if renewed is not None:
            listener, progress = renewed
            former, acceptors[0] = acceptors[0], Acceptor(listener, worker.make_link, tasks)
            former.close()  # links live on
            worker.progress.write_to(progress)
            self._note_listeners(acceptors)


def run_worker(args: WorkerArgs) -> None:
    """Serve until drained, signalled or orphaned; then return. To be called by the main thread.

    An inference or a load that didn't end in time ends the process instead, with the same status: the caller
    should end it with `os._exit(0)`.
    """
    configure("worker", args.worker)
    process = _Process(args)
    process.run()
    if process.error is not None:
        raise process.error


async def _unload(model: Model, thread: ModelThread) -> None:
    failure = "it takes too long"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(UNLOAD_TIMEOUT_S):
            failure = await thread.ask(model.unload)
    if failure:
        log.warning("model.unload_failed", error=failure)


async def _close_links(worker: Worker) -> None:
    for link in list(worker.links):
        link.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await worker.unlinked.wait()
