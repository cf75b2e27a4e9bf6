"""What the kernel says of a process that doesn't speak for itself. Linux only: proc(5), cgroups(7)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STOPPED = "Tt"  # by a signal, by a debugger
_GONE = "ZX"


class ProcessStat(NamedTuple):
    state: str  # R, S, D, T, Z, …
    cpu_s: float  # processor time of all its threads; in steps of 10 ms
    start_ticks: int  # tells it from a later process of the same number
    parent: int

    @property
    def gone(self) -> bool:
        return self.state in _GONE

    @property
    def stopped(self) -> bool:
        return self.state in _STOPPED


def process_stat(pid: int) -> ProcessStat | None:
    """None for a process that isn't there."""
    try:
        # The name in parentheses may hold anything, so count from behind it (field 3 follows).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    cpu_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return ProcessStat(fields[0], cpu_s, int(fields[19]), int(fields[1]))


def is_frozen(pid: int) -> bool:
    """Whether its cgroup is frozen: such a process looks as if it slept."""
    try:
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                return "frozen 1" in Path(f"/sys/fs/cgroup{path}/cgroup.events").read_text()
            if controllers == "freezer":
                return "FROZEN" in Path(f"/sys/fs/cgroup/freezer{path}/freezer.state").read_text()
    except OSError:
        pass
    return False
