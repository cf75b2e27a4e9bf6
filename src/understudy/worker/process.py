"""The process around a worker: event loop, sockets, signals, exit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import structlog
import uvloop

from understudy.adapters.links import listen
from understudy.adapters.logs import configure
from understudy.adapters.printing import keep_small
from understudy.adapters.progress import ProgressWriter, progress_path
from understudy.adapters.task_groups import ungrouped
from understudy.invariants import InvariantBroken
from understudy.settings.worker import WorkerTuning
from understudy.wire.errors import ConfigError
from understudy.worker.service import Worker

DRAIN_TIMEOUT_S = 5.0  # after a signal; `Drain` brings its own
CLOSE_TIMEOUT_S = 1.0  # for the last answers to leave
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


def run_worker(args: WorkerArgs) -> None:
    """Serve until drained, signalled or orphaned; then return.

    An inference or a load that didn't end in time is left behind in its thread, so the caller should end
    the process with `os._exit(0)`. Raises `ConfigError` if the addresses can't be listened at.
    """
    configure("worker", args.worker, args.log)
    with ungrouped(ConfigError), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(args))


async def _serve(args: WorkerArgs) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_on_exception)
    loop.set_default_executor(ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory"))
    async with asyncio.TaskGroup() as tasks:
        worker = Worker(args.worker, args.settings, tasks)
        worker.progress = ProgressWriter(progress_path(args.socket))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.drain, DRAIN_TIMEOUT_S)
        output = tasks.create_task(keep_small(args.settings.output_bytes_max))
        servers = [await listen(f"unix:{args.socket}", worker.make_link)]
        if args.tcp_host:
            server = await listen(f"tcp:{args.tcp_host}:0", worker.make_link)
            host, port = server.sockets[0].getsockname()[:2]
            worker.tcp_address = f"tcp:{host}:{port}"
            servers.append(server)
        log.info("worker.started", socket=args.socket, tcp_address=worker.tcp_address)
        await worker.stopped.wait()
        for server in servers:
            server.close()
        Path(args.socket).unlink(missing_ok=True)
        Path(progress_path(args.socket)).unlink(missing_ok=True)
        await _close_links(worker)
        worker.stop_loading()
        output.cancel()
    worker.thread.shutdown(wait=False, cancel_futures=True)
    log.info("worker.stopped")


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
