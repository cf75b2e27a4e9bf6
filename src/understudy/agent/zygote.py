"""The zygote: a process that has imported the runtime and forks blank workers from itself.

A fork costs milliseconds and shares the runtime's memory, where a fresh interpreter costs hundreds of
both. It runs one thread, holds no model, and knows nothing of what its children do. It is their parent, so
it alone learns their exit status; it reaps them one by one, through a handle to each. What a worker's model
started becomes the zygote's child when the worker is gone, and is ended then.

A worker with walls of its own around it takes some milliseconds to be put behind them, in which the zygote
goes on. Each request brings the descriptors of the worker's door.

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
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from understudy.adapters.descendants import adopt_orphans, end_children
from understudy.adapters.doors import DESCRIPTORS_MAX
from understudy.adapters.inherited import settle_inherited
from understudy.adapters.parents import run_and_exit
from understudy.adapters.printing import capture
from understudy.adapters.sandbox import namespaces
from understudy.adapters.sandbox.restricted import restrict
from understudy.adapters.sandbox.walls import Tier, Walls
from understudy.adapters.titles import keep_room, title
from understudy.settings.runtimes import RUNTIMES
from understudy.settings.worker import WorkerTuning

MESSAGE_BYTES_MAX = 65_536
END_TIMEOUT_S = 1.0
POLL_S = 0.01
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
    settings: WorkerTuning
    walls: Walls = Walls()


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


@dataclass(slots=True, eq=False)
class _Birth:
    """A worker on its way behind its walls, as `namespaces.be_parent` tells of it."""

    request: Fork
    ours: socket.socket
    worker: int = 0
    init: int = 0
    inside: bool = False


class Zygote:
    """Serves one agent over `control`; ends when the agent does. Its workers live on."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._children: dict[int, int] = {}  # pidfd -> pid: workers, and processes that help one to be born
        self._workers: dict[int, int] = {}  # pids that the agent knows -> that of process 1 beside it, or 0
        self._ending: set[int] = set()  # of those processes 1, whose kernel ends what else there is
        self._births: set[_Birth] = set()
        self._asked = True  # by an agent that is there

    def serve(self) -> None:
        while self._serve_once(None):
            pass
        # Nobody asks any more: leave nothing of workers that have ended, or were never told of.
        deadline_s = time.monotonic() + END_TIMEOUT_S
        self._selector.unregister(self._control)
        self._asked = False
        while (self._serve_once(0) or self._ending or self._births) and time.monotonic() < deadline_s:
            self._serve_once(POLL_S)

    def _serve_once(self, timeout_s: float | None) -> bool:
        """Whether there was something, and not the end."""
        ready = [key for key, _ in self._selector.select(timeout_s)]
        ended = [key.fd for key in ready if key.fd in self._children]
        for key in ready:
            if isinstance(key.data, _Birth):
                self._hear(key.data)
        for pidfd in ended:
            self._reap(pidfd)
        if ended:
            end_children(spared=self._children.values())
        if self._control not in (key.fileobj for key in ready):
            return bool(ready)
        request, door, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES_MAX, DESCRIPTORS_MAX)
        if request:
            self._fork(msgspec.msgpack.decode(request, type=Fork), door)
            for descriptor in door:
                os.close(descriptor)
        return bool(request)

    def _fork(self, request: Fork, door: list[int]) -> None:
        try:
            if request.walls.tier is Tier.NAMESPACES:
                self._beget(request, door)
                return
            pid = self._child(lambda: self._be_worker(request, door))
        except OSError as error:
            self._answer(ForkFailed(request.worker, f"fork: {error.strerror}"))
            return
        self._workers[pid] = 0
        self._answer(Forked(request.worker, pid))

    def _beget(self, request: Fork, door: list[int]) -> None:
        """By a process that stands up the walls. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def be_parent() -> None:
            ours.close()
            namespaces.be_parent(request.walls, lambda: self._be_worker(request, door), theirs)

        with theirs:
            try:
                self._child(be_parent)
            except OSError:
                ours.close()
                raise
        birth = _Birth(request, ours)
        self._births.add(birth)
        self._selector.register(ours, selectors.EVENT_READ, birth)

    def _child(self, run: Callable[[], None]) -> int:
        """A process that runs `run`, and is watched. Raises OSError."""
        pid = os.fork()
        if pid == 0:
            self._leave()
            run_and_exit(run)
        self._watch(pid)
        return pid

    def _hear(self, birth: _Birth) -> None:
        """What the parent or the worker itself says, or that they ended before they said all."""
        told = birth.ours.recv(MESSAGE_BYTES_MAX)
        problem = ""
        if told.startswith(b"pids "):
            birth.worker, birth.init = map(int, told.split()[1:])
        elif told == namespaces.INSIDE:
            birth.inside = True
        else:
            problem = told.decode() or "it ended on its way"
        if not problem and not (birth.worker and birth.inside):
            return
        if problem:
            for pid in (birth.worker, birth.init):
                if pid:
                    os.kill(pid, signal.SIGKILL)  # by then they are nobody else's, for the parent waits
            self._answer(ForkFailed(birth.request.worker, f"its walls: {problem}"))
        else:
            self._watch(birth.init)
            self._watch(birth.worker)
            self._workers[birth.worker] = birth.init
            self._answer(Forked(birth.request.worker, birth.worker))
            if not self._asked:
                os.kill(birth.worker, signal.SIGKILL)
        self._births.discard(birth)
        self._selector.unregister(birth.ours)
        birth.ours.close()  # what the parent waits for

    def _watch(self, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._selector.register(pidfd, selectors.EVENT_READ)

    def _leave(self) -> None:
        """In a child. One by one, as objects: none may close a number later that means something else."""
        self._selector.close()
        self._control.close()
        for birth in self._births:
            birth.ours.close()
        for pidfd in self._children:
            os.close(pidfd)

    def _be_worker(self, request: Fork, door: list[int]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        title("worker (blank)")
        from understudy.worker.hints import stand_behind
        from understudy.worker.process import WorkerArgs, run_worker

        if request.walls.tier is Tier.LANDLOCK:
            restrict(request.walls)
        stand_behind(request.walls)
        capture()
        run_worker(WorkerArgs(request.worker, tuple(door), request.settings))

    def _reap(self, pidfd: int) -> None:
        pid = self._children[pidfd]
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:  # it ended before whoever helped it to be born, and is ours in a moment
            time.sleep(POLL_S)
            return
        del self._children[pidfd]
        self._selector.unregister(pidfd)
        os.close(pidfd)
        self._ending.discard(pid)
        if pid in self._workers:
            if init := self._workers.pop(pid):
                self._ending.add(init)
                os.kill(init, signal.SIGKILL)
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
