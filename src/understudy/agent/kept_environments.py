"""Environments that are ready on this node's disk: where each lies, and which may go.

An environment of wheels is a directory, `<root>/<digest>`, which appears under its name only when everything
is in it. Of a named interpreter only a mark is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from understudy.adapters.own_files import remove_tree
from understudy.core.agent.events import EnvironmentChanged, Event

PYTHON = "python"  # names the interpreter, in the mark of one
_PARTIAL = ".partial-"


class KeptEnvironments:
    def __init__(self, root: Path, step: Callable[[Event], None]) -> None:
        self._root = root
        self._step = step
        self._ready: set[str] = set()
        self._wanted: frozenset[str] | None = None  # until that is told nothing goes
        self._in_use: frozenset[str] = frozenset()
        self._aside: list[Path] = []  # to be removed

    def __contains__(self, key: str) -> bool:
        return key in self._ready

    def __len__(self) -> int:
        return len(self._ready)

    def find(self) -> list[str]:
        """Keys of those that survived from a former life; what was being built is cleared away."""
        self._root.mkdir(parents=True, exist_ok=True)
        for path in self._root.glob(f"{_PARTIAL}*"):
            remove_tree(path)
        for path in self._root.iterdir():
            if path.is_dir():
                mark = path / PYTHON
                self._ready.add(mark.read_text() if mark.is_file() else path.name)
        return sorted(self._ready)

    def command(self, key: str) -> tuple[str, str]:
        """(interpreter, directory of packages) that a zygote starts with; each empty for our own."""
        if key.startswith("/"):
            return key, ""
        return "", str(self._path(key)) if key else ""

    def want(self, keys: Collection[str]) -> None:
        """What variants of the target need may not go."""
        self._wanted = frozenset(keys)

    def use(self, keys: frozenset[str]) -> None:
        """What workers run in may not go."""
        for key in self._in_use ^ keys:
            self.used(key)
        self._in_use = keys

    def used(self, key: str) -> None:
        """Now: noted on the disk, for the next agent."""
        now_ns = time.time_ns()
        with contextlib.suppress(OSError):
            os.utime(self._path(key), ns=(now_ns, now_ns))

    def partial(self, key: str) -> Path:
        """Where it is built."""
        path = self._path(key)
        return path.with_name(_PARTIAL + path.name)

    async def place(self, key: str) -> None:
        """It is built: give it its name. `add` is to follow. Raises OSError."""
        if self._path(key).exists():  # it couldn't be set aside before
            self._aside.append(self._moved_aside(key))
        await asyncio.to_thread(self.partial(key).rename, self._path(key))

    def add(self, key: str) -> None:
        """It is ready."""
        self._ready.add(key)

    async def drop_oldest(self, *, marks: bool = False) -> bool:
        """Let the one go that was unused longest. False if none may. A mark takes no room on the disk."""
        spare = [key for key in self._spare() if marks or not key.startswith("/")]
        if spare:
            self._ready.discard(spare[0])
            self._step(EnvironmentChanged(spare[0], None))
            await asyncio.to_thread(remove_tree, self._moved_aside(spare[0]))
        return bool(spare)

    def set_aside(self, key: str) -> None:
        """It is of no use any more. `remove_aside` is to follow."""
        self._ready.discard(key)
        self._aside.append(self._moved_aside(key))

    async def remove_aside(self) -> None:
        while self._aside:
            await asyncio.to_thread(remove_tree, self._aside.pop())

    def _spare(self) -> list[str]:
        """What no variant needs, of this node's target or running; what was used longest ago comes first."""
        unwanted = self._ready - self._wanted - self._in_use if self._wanted is not None else set()
        return sorted(unwanted, key=self._last_use_ns)

    def _last_use_ns(self, key: str) -> int:
        try:
            return self._path(key).stat().st_mtime_ns
        except OSError:
            return 0

    def _moved_aside(self, key: str) -> Path:
        """Out of the way of the next that is built, at once; removing thousands of files takes its time."""
        aside = self._root / f"{_PARTIAL}{time.monotonic_ns()}"
        with contextlib.suppress(OSError):
            self._path(key).rename(aside)
        return aside

    def _path(self, key: str) -> Path:
        return self._root / (hashlib.sha256(key.encode()).hexdigest() if key.startswith("/") else key)
