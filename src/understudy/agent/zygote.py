"""The zygote: a process that has imported the runtime and forks blank workers from itself.

A fork costs milliseconds and shares the runtime's memory, where a fresh interpreter costs hundreds of
both. It runs one thread, holds no model, and knows nothing of what its children do. It is their parent, so
it alone learns their exit status; it reaps them one by one, through a handle to each. What a worker's model
started becomes the zygote's child when the worker is gone, and is ended then.

    agent -> zygote   Fork                  zygote -> agent   Forked, ForkFailed, Exited
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import selectors
import signal
import socket
import sys

import msgspec

from understudy.adapters.descendants import adopt_orphans, end_children
from understudy.adapters.inherited import settle_inherited
from understudy.adapters.parents import run_and_exit
from understudy.adapters.printing import capture
from understudy.adapters.titles import keep_room, title
from understudy.settings.runtimes import RUNTIMES
from understudy.settings.worker import WorkerTuning

MESSAGE_BYTES_MAX = 65_536
TRIAL = "try"  # instead of a socket: see whether it could start
# Before a fork there must be one thread, and a worker's inference uses as many as it was told.
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# What is installed of these.
PRELOADED = (
    "numpy",
    *(module for facts in RUNTIMES.values() for module in facts.preload),
    "uvloop",
    "understudy.worker.process",
)


class Fork(msgspec.Struct, frozen=True, tag=True):
    worker: str
    socket: str
    tcp_host: str
    settings: WorkerTuning


class Forked(msgspec.Struct, frozen=True, tag=True):
    worker: str
    pid: int


class ForkFailed(msgspec.Struct, frozen=True, tag=True):
    worker: str
    reason: str


class Exited(msgspec.Struct, frozen=True, tag=True):
    """`status` as of waitstatus_to_exitcode: negative for a signal."""

    pid: int
    status: int


Answer = Forked | ForkFailed | Exited


class Zygote:
    """Serves one agent over `control`; ends when the agent does. Its workers live on."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._children: dict[int, int] = {}  # pidfd -> pid

    def serve(self) -> None:
        while True:
            ready = [key for key, _ in self._selector.select()]
            ended = [key.fd for key in ready if key.fileobj is not self._control]
            for pidfd in ended:
                self._reap(pidfd)
            if ended:
                end_children(spared=self._children.values())
            if len(ended) == len(ready):
                continue
            request = self._control.recv(MESSAGE_BYTES_MAX)
            if not request:
                return
            self._fork(msgspec.msgpack.decode(request, type=Fork))

    def _fork(self, request: Fork) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._answer(ForkFailed(request.worker, f"fork: {error.strerror}"))
            return
        if pid == 0:
            run_and_exit(lambda: self._be_worker(request))
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._selector.register(pidfd, selectors.EVENT_READ)
        self._answer(Forked(request.worker, pid))

    def _be_worker(self, request: Fork) -> None:
        # Closed one by one, as objects: none may close a number later that means something else by then.
        self._selector.close()
        self._control.close()
        for pidfd in self._children:
            os.close(pidfd)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        title("worker (blank)")
        from understudy.worker.process import WorkerArgs, run_worker

        log = capture()
        run_worker(WorkerArgs(request.worker, request.socket, request.tcp_host, request.settings, log))

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._answer(Exited(pid, os.waitstatus_to_exitcode(status)))

    def _answer(self, answer: Answer) -> None:
        # An agent that is gone is noticed by the next `recv`.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.send(msgspec.msgpack.encode(answer))


def import_runtime() -> None:
    for module in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is shared with the children stays shared


def main() -> None:
    settle_inherited()
    # Signals to the whole group are for the agent and the workers; the zygote ends when the agent does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep_room()
    os.environ.update(SINGLE_THREADED)
    if len(sys.argv) > 2:  # what its models start finds their packages too
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.argv[2], os.environ.get("PYTHONPATH")]))
    if sys.argv[1] == TRIAL:
        import_runtime()
        return
    control = socket.socket(fileno=int(sys.argv[1]))
    adopt_orphans()
    title("zygote")
    import_runtime()
    Zygote(control).serve()


if __name__ == "__main__":
    main()
