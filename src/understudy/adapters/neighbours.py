"""How much of this machine others use: whether a measurement here says anything about what was measured.

Others are all processes that aren't this one or a descendant of it, and what a hypervisor takes away. Only
the processors that this process may use count. A child that lives for less than one look at it is counted
with the others, and so is what it used since its parent was looked at last: looks should be frequent.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from understudy.adapters.processes import TICKS_PER_S, process_stat

LOOK_S = 0.5
# With half of the processors gone for others, whoever serves and whoever asks wait for each other's turns.
BUSY_SHARE = 0.5


class _Look(NamedTuple):
    at_s: float  # of the monotonic clock
    busy_s: float  # of all processors together, since the machine started
    ours_s: float  # since the first look


class Neighbours:
    """Looks twice a second, in a thread of its own, from `start` until `stop`."""

    def __init__(self) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._used_s: dict[tuple[int, int], float] = {}  # (pid, start) of what is or was a descendant
        self._gone_s = 0.0  # used by those that have ended
        self._looks: list[_Look] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="neighbours", daemon=True)

    def start(self) -> None:
        self._look()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def share(self, start_s: float, end_s: float) -> float:
        """What others used of the processors between two times of the monotonic clock, in [0, 1].

        Of the looks around them; 0 where there are none yet.
        """
        self._look()
        before = [look for look in self._looks if look.at_s <= start_s][-1:] or self._looks[:1]
        after = [look for look in self._looks if look.at_s >= end_s][:1] or self._looks[-1:]
        (first,), (last,) = before, after
        elapsed_s = (last.at_s - first.at_s) * len(self._cores)
        others_s = (last.busy_s - first.busy_s) - (last.ours_s - first.ours_s)
        return min(1.0, max(0.0, others_s / elapsed_s)) if elapsed_s > 0 else 0.0

    def ours_s(self) -> float:
        """Processor seconds used by this process and its descendants since the first look."""
        self._look()
        return self._looks[-1].ours_s - self._looks[0].ours_s

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_S):
            with suppress(OSError):  # out of descriptors: the next look sees what this one missed
                self._look()

    def _look(self) -> None:
        busy_s = self._busy_s()  # fails first, before anybody is taken for gone
        self._looks.append(_Look(time.monotonic(), busy_s, self._count_ours()))

    def _count_ours(self) -> float:
        """Processor seconds of this process and every descendant; those that lost their parent stay known."""
        parents: dict[int, tuple[int, tuple[int, int], float]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (found := _stat(int(entry))) is not None:
                parents[int(entry)] = found
        alive: dict[tuple[int, int], float] = {}
        for pid, (_, key, used_s) in parents.items():
            if key in self._used_s or self._descends(pid, parents):
                alive[key] = used_s
        self._gone_s += sum(used_s for key, used_s in self._used_s.items() if key not in alive)
        self._used_s = alive
        return self._gone_s + sum(alive.values())

    def _descends(self, pid: int, parents: dict[int, tuple[int, tuple[int, int], float]]) -> bool:
        own, seen = os.getpid(), 0
        while pid in parents and seen <= len(parents):
            if pid == own or parents[pid][1] in self._used_s:
                return True
            pid, seen = parents[pid][0], seen + 1
        return False

    def _busy_s(self) -> float:
        """Of the processors that this process may use: everything but idle and waiting for disks."""
        ticks = 0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") and name != "cpu" and int(name[3:]) in self._cores:
                user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
                ticks += user + nice + system + irq + softirq + steal
        return ticks / TICKS_PER_S


def _stat(pid: int) -> tuple[int, tuple[int, int], float] | None:
    """(parent, (pid, start), processor seconds used); None of a process that is gone."""
    try:
        found = process_stat(pid)
    except OSError:  # also of one that hides, or when descriptors are out
        return None
    return None if found is None else (found.parent, (pid, found.start_ticks), found.cpu_s)


def too_busy(share: float) -> str:
    """The sentence for a measurement that `share` of the machine's processors was missing from."""
    return (
        f"this machine is too busy to tell: others used {share:.0%} of its processors meanwhile; "
        "try again when it is quieter"
    )
