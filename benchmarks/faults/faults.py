"""The five faults: what is done to a server, and how it is undone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.faults.accelerator import slow_mark
from benchmarks.faults.servers import Server

KILL = "worker killed"
FREEZE = "worker frozen"
NODE = "node killed"
OVERLOAD = "3x overload"
SLOW = "replica 10x slower"
FAULTS = (KILL, FREEZE, NODE, OVERLOAD, SLOW)


class Strike:
    """Call it once, while the block runs; the end of the block undoes what doesn't undo itself."""

    def __init__(self, server: Server, fault: str, pid: int, work: Path) -> None:
        self._server = server
        self._fault = fault
        self._pid = pid
        self._slow = slow_mark(work, pid)
        self._machine = server.machine_of(pid) if fault == NODE else ""

    def __enter__(self) -> Self:
        return self

    def __call__(self) -> float:
        """The moment just before, in seconds of the monotonic clock."""
        struck_s = time.monotonic()
        match self._fault:
            case "worker killed":
                os.kill(self._pid, signal.SIGKILL)
            case "worker frozen":
                os.kill(self._pid, signal.SIGSTOP)
            case "node killed":
                self._server.kill_machine(self._machine)
            case "replica 10x slower":
                self._slow.touch()
        return struck_s

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        match self._fault:
            case "worker frozen":
                with contextlib.suppress(ProcessLookupError):  # who watches over it has killed it
                    os.kill(self._pid, signal.SIGCONT)
            case "node killed":
                self._server.restore_machine(self._machine)
            case "replica 10x slower":
                self._slow.unlink(missing_ok=True)
