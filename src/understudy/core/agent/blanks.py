"""Blank workers kept ready, so that a replica never waits for a process to start."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from understudy.core.agent.events import CheckBlank, ForkWorker
from understudy.settings.agent import AgentTuning


@dataclass(slots=True)
class Blank:
    worker: str
    pid: int
    address: str
    check_at_s: float
    checking: bool = False


class BlankPool:
    """Workers without a model: connected ones, and those being forked.

    They are checked as often as replicas are probed: a frozen one must not be found out when it is needed.
    """

    def __init__(
        self, tuning: AgentTuning, delay_s: Callable[[int, float], float], environment: str = ""
    ) -> None:
        self._environment = environment
        self.size = tuning.blank_workers
        self._interval_s = tuning.probe_interval_ms / 1000
        self._delay_s = delay_s  # (failures in a row, jitter) -> back-off in seconds
        self._blanks: dict[str, Blank] = {}
        self._forking: set[str] = set()
        self._failures = 0
        self._fork_at_s = 0.0

    def __len__(self) -> int:
        return len(self._blanks)

    @property
    def empty(self) -> bool:
        """Nothing here and nothing on its way."""
        return not self._blanks and not self._forking

    @property
    def failures(self) -> int:
        """In a row."""
        return self._failures

    def forks(self, worker: str) -> bool:
        return worker in self._forking

    def due_s(self, now: float) -> float:
        due_s = [blank.check_at_s for blank in self._blanks.values() if not blank.checking]
        if self._fork_at_s > now:
            due_s.append(self._fork_at_s)
        return min(due_s, default=math.inf)

    def add(self, worker: str, pid: int, address: str, now: float) -> None:
        self._forking.discard(worker)
        self._failures = 0
        self._blanks[worker] = Blank(worker, pid, address, now + self._interval_s)

    def take(self) -> Blank | None:
        """The one that has proved itself longest."""
        worker = next(iter(self._blanks), None)
        return self._blanks.pop(worker) if worker is not None else None

    def remove(self, worker: str) -> bool:
        """Whether it was a blank one."""
        return self._blanks.pop(worker, None) is not None

    def exited(self, worker: str, now: float, jitter: float) -> bool:
        """A process ended. Whether it was one of the pool; the next fork then backs off."""
        if not self.remove(worker) and worker not in self._forking:
            return False
        self._forking.discard(worker)
        self._failures += 1
        self._fork_at_s = now + self._delay_s(self._failures, jitter)
        return True

    def passed(self, worker: str) -> None:
        blank = self._blanks.get(worker)
        if blank is not None:
            blank.checking = False

    def check_again(self, worker: str, now: float) -> None:
        blank = self._blanks.get(worker)
        if blank is not None:
            blank.checking, blank.check_at_s = False, now

    def checks(self, now: float) -> list[CheckBlank]:
        due = [b for b in self._blanks.values() if not b.checking and b.check_at_s <= now]
        for blank in due:
            blank.checking, blank.check_at_s = True, now + self._interval_s
        return [CheckBlank(blank.worker) for blank in due]

    def refill(self, waiting: int, now: float, new_id: Callable[[], str], *, spare: bool) -> list[ForkWorker]:
        """Forks that are missing for the `waiting` replicas and, if `spare`, for a full pool beyond them."""
        if self._fork_at_s > now:
            return []
        missing = (self.size if spare else 0) + waiting - len(self._blanks) - len(self._forking)
        workers = [new_id() for _ in range(missing)]
        self._forking.update(workers)
        return [ForkWorker(worker, self._environment) for worker in workers]

    def clear(self) -> list[str]:
        """Forget every blank worker; their names, to be killed."""
        workers = list(self._blanks)
        self._blanks.clear()
        return workers
