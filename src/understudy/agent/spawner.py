"""The agent's side of its zygote: keeps one running, asks it for workers, hears of their exits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Callable

import msgspec
import structlog

from understudy.adapters.processes import process_stat
from understudy.agent.variables import for_models
from understudy.agent.zygote import MESSAGE_BYTES_MAX, Answer, Exited, Fork, Forked, ForkFailed
from understudy.settings.agent import AgentTuning

# Models in huge pages, read by glibc at its start. Loading a model is mostly touching fresh memory, and a
# page of 4 KB costs as much as one of 2 MB. A heap has huge pages only if all threads share the main one
# (`arena_max`: the thread that loads would have its own) and large pieces come from it, not from mappings
# of their own that are given back and asked for again (the thresholds). Measured with files of 8 to 338 MB:
# they load in a third to a half of the time, and a killed worker is torn down, and so missed, sooner.
HEAP_PIECE_BYTES_MAX = 256 * 1024 * 1024
HEAP = {
    "hugetlb": 1,
    "arena_max": 1,
    "mmap_threshold": HEAP_PIECE_BYTES_MAX,
    "trim_threshold": HEAP_PIECE_BYTES_MAX,
}
HUGE_PAGES = {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in HEAP.items())}
FORK_TIMEOUT_S = 10.0  # the zygote has imported its runtime and answered by then, or is replaced
STOP_TIMEOUT_S = 2.0
BROKEN_AFTER = 3  # zygotes

_decode = msgspec.msgpack.Decoder(Answer).decode


class Spawner:
    """Forks workers. A zygote that dies is replaced, and what it still owed is asked of the new one.

    `command` starts the zygote with the number of its socket. `clear` ends what a zygote that has ended left,
    and takes so many seconds at most.
    """

    def __init__(
        self,
        command: Callable[[str], list[str]],
        tuning: AgentTuning,
        on_forked: Callable[[str, int], None],
        on_failed: Callable[[str, str], None],
        on_exited: Callable[[int, int], None],
        on_broken: Callable[[], None] | None = None,
        *,
        trusted: bool = True,
        clear: Callable[[float], object] = lambda _: None,
    ) -> None:
        self._command = command
        self._tuning = tuning
        self._on_forked = on_forked
        self._on_failed = on_failed
        self._on_exited = on_exited
        self._trusted = trusted  # else it runs code of models, and nothing that it says is relied on
        self._clear = clear
        self._on_broken = on_broken  # zygotes end again and again before they have forked anything
        self._loop = asyncio.get_running_loop()
        self._log = structlog.get_logger()
        self._owed: dict[str, tuple[Fork, list[int]]] = {}
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._failures = 0
        self._closed = False
        self.generation = 0  # of the zygote; it knows the exit status of its own children only

    def start(self) -> None:
        variables = for_models(os.environ, self._tuning.worker_environment)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                self._command(str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                # What workers print is read elsewhere, and this is the agent's log.
                stdout=None if self._trusted else subprocess.DEVNULL,
                stderr=None if self._trusted else subprocess.DEVNULL,
                # Last: glibc moves the variable, and the first one is what a title is found by.
                env={**variables, **{k: v for k, v in HUGE_PAGES.items() if k not in variables}},
            )
        self._control = ours
        self.generation += 1
        self._loop.add_reader(ours, self._readable)
        for request, door in self._owed.values():
            self._send(request, door)

    def fork(self, request: Fork, door: list[int]) -> None:
        """`door`: descriptors that go with it; they are to be kept until it is answered."""
        self._owed[request.worker] = request, door
        self._send(request, door)

    async def close(self) -> None:
        """End the zygote; workers that are still there live on."""
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._hang_up()
        if self._process is not None:
            await asyncio.to_thread(_end, self._process, STOP_TIMEOUT_S)
            await asyncio.to_thread(self._clear, STOP_TIMEOUT_S)

    def _send(self, request: Fork, door: list[int]) -> None:
        if self._control is None:
            return  # asked again when the next zygote is there
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(FORK_TIMEOUT_S, self._overdue)
        # A full or broken socket belongs to a stuck or dead zygote, or too many descriptors are on their way:
        # the watchdog or the reader sees to it.
        with contextlib.suppress(OSError):
            socket.send_fds(self._control, [msgspec.msgpack.encode(request)], door)

    def _readable(self) -> None:
        try:
            message = self._control.recv(MESSAGE_BYTES_MAX) if self._control is not None else b""
        except BlockingIOError:
            return
        except ConnectionResetError:
            message = b""
        if not message:
            self._lost("it ended")
            return
        try:
            answer = _decode(message)
        except msgspec.MsgspecError as error:
            self._lost(f"it says what it can't: {error}")
            return
        if not isinstance(answer, Exited) and answer.worker not in self._owed:
            return
        match answer:
            case Forked(worker, pid) if not self._is_child(pid):
                self._settle(worker)
                self._on_failed(worker, "its zygote says that it is a process which it didn't fork")
            case Forked(worker, pid):
                self._settle(worker)
                self._failures = 0
                self._on_forked(worker, pid)
            case ForkFailed(worker, reason):
                self._settle(worker)
                self._on_failed(worker, reason)
            case Exited(pid, status):
                self._on_exited(pid, status)

    def _is_child(self, pid: int) -> bool:
        """Of the zygote, or ended since: then nobody else can have its number before it is reaped."""
        if self._trusted or self._process is None:
            return True
        for _ in range(2):  # or of one that it forked to stand up the worker's walls
            stat = process_stat(pid)
            if stat is None or stat.parent == self._process.pid:
                return stat is not None
            pid = stat.parent
        return False

    def _settle(self, worker: str) -> None:
        self._owed.pop(worker, None)
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = self._loop.call_later(FORK_TIMEOUT_S, self._overdue) if self._owed else None

    def _overdue(self) -> None:
        self._watchdog = None
        if self._owed:
            self._lost("it doesn't answer")

    def _lost(self, why: str) -> None:
        self._hang_up()
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._process is not None:
            _end(self._process, 0)
            self._clear(0)
        if self._closed:
            return
        delay_ms = min(self._tuning.backoff_ms * 2**self._failures, self._tuning.backoff_ms_max)
        self._log.warning("zygote.restarted", reason=why, delay_ms=delay_ms if self._failures else 0)
        self._loop.call_later(delay_ms / 1000 if self._failures else 0, self._restart)
        self._failures += 1
        if self._failures == BROKEN_AFTER and self._on_broken is not None:
            self._on_broken()

    def _restart(self) -> None:
        if not self._closed:
            self.start()

    def _hang_up(self) -> None:
        if self._control is not None:
            self._loop.remove_reader(self._control)
            self._control.close()
            self._control = None


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Wait for a zygote that was hung up on; kill it if it takes longer."""
    if timeout_s > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
            return
    process.kill()
    process.wait()
