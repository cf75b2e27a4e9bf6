"""The five faults: what is done to a server, and how it is undone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.faults.accelerator import slow_mark
from benchmarks.faults.servers import Server


class Fault(StrEnum):
    KILL = "worker killed"
    FREEZE = "worker frozen"
    NODE = "node killed"
    OVERLOAD = "3x overload"
    SLOW = "replica 10x slower"


class Strike:
    """Call it once, while the block runs; the end of the block undoes what doesn't undo itself."""

    def __init__(self, server: Server, fault: Fault, pid: int, work: Path) -> None:
        self._server = server
        self._fault = fault
        self._pid = pid
        self._slow = slow_mark(work, pid)
        self._machine = server.machine_of(pid) if fault is Fault.NODE else ""

    def __enter__(self) -> Self:
        return self

    def __call__(self) -> float:
        """The moment just before, in seconds of the monotonic clock."""
        struck_s = time.monotonic()
        match self._fault:
            case Fault.KILL:
                os.kill(self._pid, signal.SIGKILL)
            case Fault.FREEZE:
                os.kill(self._pid, signal.SIGSTOP)
            case Fault.NODE:
                self._server.kill_machine(self._machine)
            case Fault.SLOW:
                self._slow.touch()
        return struck_s

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        match self._fault:
            case Fault.FREEZE:
                with contextlib.suppress(ProcessLookupError):  # who watches over it has killed it
                    os.kill(self._pid, signal.SIGCONT)
            case Fault.NODE:
                self._server.restore_machine(self._machine)
            case Fault.SLOW:
                self._slow.unlink(missing_ok=True)
