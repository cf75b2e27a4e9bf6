"""The node's disk: watched, made room on, and told of before it is full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from understudy.adapters.disks import DiskWatch
from understudy.agent.staging import Staging
from understudy.core.agent.events import Event, PlaceChanged
from understudy.settings.places import DiskSettings


class NodeDisk:
    """`tell` takes (kind, message) of an event for the log."""

    def __init__(
        self,
        path: Path,
        settings: DiskSettings,
        staging: Staging,
        step: Callable[[Event], None],
        tell: Callable[[str, str], None],
    ) -> None:
        self._watch = DiskWatch(path, settings)
        self._interval_s = settings.check_interval_s
        self._staging = staging
        self._step = step
        self._tell = tell
        self._told = PlaceChanged("", "")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._staging.make_room()
            change = await asyncio.to_thread(self._watch.look)
            if change is not None:
                self._tell(*change)
            found = PlaceChanged(self._watch.trouble, self._watch.problem)
            if found != self._told:
                self._told = found
                self._step(found)
            await asyncio.sleep(self._interval_s)
