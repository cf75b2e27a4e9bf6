"""Disks: what is written is there once it is synced; until then a death loses it. Full ones take nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from understudy.sim.clock import Process

WRITE_S = 0.005  # until a write is synced


class Disk:
    """Survives processes. `files` holds what is synced."""

    def __init__(self) -> None:
        self.files: dict[str, Any] = {}
        self.fails = False  # full, or away
        self.slow = 1.0

    def write(self, process: Process, puts: Mapping[str, Any], done: Callable[[bool], None]) -> None:
        """All or nothing; None deletes. `done` is told whether it was written, unless `process` ended."""

        def synced() -> None:
            if not self.fails:
                self.files.update(puts)
                for key in [key for key, value in puts.items() if value is None]:
                    del self.files[key]
            done(not self.fails)

        process.after(WRITE_S * self.slow, synced)

    def be_well(self) -> None:
        self.fails, self.slow = False, 1.0


class SimStateFile:
    """One file of a process, as `adapters.state_file` and its callers write it: the newest, one at a time."""

    def __init__(self, disk: Disk, process: Process, key: str) -> None:
        self._disk, self._process, self._key = disk, process, key
        self._newest: Any = None
        self._writing = False

    def load(self) -> Any:
        return self._disk.files.get(self._key)

    def save(self, value: Any) -> None:
        self._newest = value
        if not self._writing:
            self._writing = True
            self._disk.write(self._process, {self._key: value}, lambda _: self._written(value))

    def _written(self, value: Any) -> None:
        """Or not: then the next change tries again."""
        self._writing = False
        if self._newest is not value:
            self.save(self._newest)
