"""Clients that go on calling in the background, while a test breaks something."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

PAUSE_S = 0.02  # between the calls of one client while a node dies: a fault on an idle machine, not overload


class Calls:
    """A client in a thread of its own, calling until told to stop. The first failure is kept, and ends it."""

    def __init__(self, run: Callable[[Calls], None]) -> None:
        self.answered: list[float] = []
        self.failure: BaseException | None = None
        self._run = run
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._guarded, name=run.__name__)

    def _guarded(self) -> None:
        try:
            self._run(self)
        except Exception as error:
            self.failure = error

    def repeat(self, call: Callable[[], None]) -> None:
        while not self.stopped.wait(PAUSE_S):
            call()
            self.answered.append(time.monotonic())

    async def repeat_async(self, call: Callable[[], Awaitable[None]]) -> None:
        while not self.stopped.wait(PAUSE_S):  # nothing else runs on this thread's loop
            await call()
            self.answered.append(time.monotonic())

    def since(self, moment: float) -> int:
        return sum(at > moment for at in self.answered)


@contextmanager
def calling(*runs: Callable[[Calls], None]) -> Iterator[list[Calls]]:
    calls = [Calls(run) for run in runs]
    for call in calls:
        call.thread.start()
    try:
        yield calls
    finally:
        for call in calls:
            call.stopped.set()
        for call in calls:
            call.thread.join()
