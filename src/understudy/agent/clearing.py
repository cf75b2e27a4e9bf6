"""What workers leave is cleared away in a thread, one after another: it may be a million files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from understudy.adapters.doors import remove as remove_door
from understudy.agent.limits import Groups
from understudy.agent.records import Record, Records
from understudy.agent.staging import Staging


class Clearing:
    """What waits is bounded by how fast workers end, and crash loops are paused."""

    def __init__(self, groups: Groups, staging: Staging, records: Records) -> None:
        self._groups = groups
        self._staging = staging
        self._records = records
        self._thread = ThreadPoolExecutor(1, "clearing")
        self._finished = False
        self._loop = asyncio.get_running_loop()

    def clear(self, record: Record) -> None:
        """Leave nothing of a worker that is gone, and no process that its model started."""
        self._groups.kill(record.groups)
        remove_door(record.socket)
        self.do(partial(self._remove, record))

    def _remove(self, record: Record) -> None:
        self._groups.end(record.groups)
        self._staging.clear(record.worker)
        self._records.remove(record)  # last: by it the next agent would find the rest

    def do(self, remove: Callable[[], object]) -> None:
        """What it raises is raised in the loop. What comes after the end is the next agent's."""

        def ended(future: Future[object]) -> None:
            if future.exception() is not None:
                self._loop.call_soon_threadsafe(future.result)

        if not self._finished:
            self._thread.submit(remove).add_done_callback(ended)

    async def finish(self) -> None:
        self._finished = True
        await asyncio.to_thread(self._thread.shutdown)
