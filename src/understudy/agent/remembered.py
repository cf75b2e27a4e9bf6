"""What an agent remembers across its own death: on disk, written whenever it changed, and until it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from understudy.adapters.state_file import StateFile
from understudy.core.agent import events as ev

SAVE_RETRY_S = 2.0


class Stored(msgspec.Struct, frozen=True):
    """Its newest target and the activations in progress."""

    incarnation: int = 0
    saved: ev.Saved = ev.Saved()


class Remembered:
    """`problem`: why what a former life remembered had to be discarded; empty if it hadn't."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path, Stored)
        loaded, problem = self._file.load()
        stored = loaded or Stored()
        self.problem = problem
        # Grows with each start, also when the file was lost or the clock was set back.
        self.incarnation = max(stored.incarnation + 1, time.time_ns() // 1_000_000)
        self.saved = stored.saved
        self._asked = asyncio.Event()
        self._asked.set()

    def take(self, saved: ev.Saved) -> None:
        self.saved = saved
        self._asked.set()

    def write(self) -> None:
        """Raises `OSError`."""
        self._file.save(Stored(self.incarnation, self.saved))

    async def keep(self, tell: Callable[[str, str], None]) -> None:
        """Ends when cancelled. A disk that doesn't take it is told about once: serve on."""
        unsaved = False
        while True:
            await self._asked.wait()
            self._asked.clear()
            stored = Stored(self.incarnation, self.saved)
            try:
                await asyncio.to_thread(self._file.save, stored)
            except OSError as error:
                if not unsaved:
                    tell("state.unsaved", str(error))
                unsaved = True
                self._asked.set()
                await asyncio.sleep(SAVE_RETRY_S)
            else:
                unsaved = False
