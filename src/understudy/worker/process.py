"""The process around a worker: its threads, event loop, sockets, signals, children, exit."""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import structlog
import uvloop

from understudy.adapters.descendants import adopt_orphans, end_children
from understudy.adapters.links import listen
from understudy.adapters.logs import configure
from understudy.adapters.printing import keep_small
from understudy.adapters.progress import ProgressWriter, progress_path
from understudy.adapters.task_groups import ungrouped
from understudy.invariants import InvariantBroken
from understudy.settings.worker import WorkerTuning
from understudy.wire.errors import ConfigError
from understudy.worker.forks import Forks
from understudy.worker.model import Model
from understudy.worker.model_thread import ModelThread
from understudy.worker.service import Worker

DRAIN_TIMEOUT_S = 5.0  # after a signal; `Drain` brings its own
CLOSE_TIMEOUT_S = 1.0  # for the last answers to leave
UNLOAD_TIMEOUT_S = 1.0  # for a model to put its things away
EXIT_BROKEN = 70  # EX_SOFTWARE of sysexits.h

log = structlog.get_logger()


class WorkerArgs(msgspec.Struct, frozen=True):
    """`worker`: a name for logs. `socket`: path to listen at. `tcp_host`: listen on a free port there too.

    `log`: a descriptor; -1 stands for standard error.
    """

    worker: str
    socket: str
    tcp_host: str = ""
    settings: WorkerTuning = WorkerTuning()
    log: int = -1


class _Process:
    """The two threads of a worker: the main one is the model's, the other one runs our loop."""

    def __init__(self, args: WorkerArgs) -> None:
        self.error: BaseException | None = None
        self._args = args
        self._model_thread = ModelThread()
        self._forks = Forks(self._model_thread.leave_to_child)

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
        loop.set_exception_handler(_on_exception)
        loop.set_default_executor(ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory"))
        args = self._args
        async with asyncio.TaskGroup() as tasks:
            worker = Worker(args.worker, args.settings, tasks, self._model_thread)
            worker.progress = ProgressWriter(progress_path(args.socket))
            self._model_thread.on_signal(partial(worker.drain, DRAIN_TIMEOUT_S))
            output = tasks.create_task(keep_small(args.settings.output_bytes_max))
            servers = [await listen(f"unix:{args.socket}", worker.make_link)]
            if args.tcp_host:
                server = await listen(f"tcp:{args.tcp_host}:0", worker.make_link)
                host, port = server.sockets[0].getsockname()[:2]
                worker.tcp_address = f"tcp:{host}:{port}"
                servers.append(server)
            keeping = tasks.create_task(
                servers[0].keep(lambda what: log.warning("socket.restored", message=what))
            )
            self._forks.addresses += [server.sockets[0].getsockname() for server in servers]
            log.info("worker.started", socket=args.socket, tcp_address=worker.tcp_address)
            await worker.stopped.wait()
            keeping.cancel()
            for server in servers:
                server.close()
            Path(args.socket).unlink(missing_ok=True)
            Path(progress_path(args.socket)).unlink(missing_ok=True)
            await _close_links(worker)
            worker.stop_loading()
            output.cancel()
            if worker.model is not None and not self._model_thread.busy:
                await _unload(worker.model, self._model_thread)
        log.info("worker.stopped")


def run_worker(args: WorkerArgs) -> None:
    """Serve until drained, signalled or orphaned; then return. To be called by the main thread.

    An inference or a load that didn't end in time ends the process instead, with the same status: the caller
    should end it with `os._exit(0)`. Raises `ConfigError` if the addresses can't be listened at.
    """
    configure("worker", args.worker, args.log)
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


def _on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A callback of ours that raised may have left requests without an answer: better a clean start."""
    error = context.get("exception")
    broken = isinstance(error, InvariantBroken) or "handle" in context
    log.error("loop.failed", what=context.get("message"), error=repr(error), exc_info=error)
    if broken:
        os._exit(EXIT_BROKEN)
