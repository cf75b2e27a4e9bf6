"""Having workers forked: each gets its doorway, its walls and its zygote."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import NamedTuple

from understudy.adapters.doors import Doorway
from understudy.agent.clearing import Clearing
from understudy.agent.environments import Environments
from understudy.agent.limits import Groups
from understudy.agent.rooms import Rooms
from understudy.agent.spawners import Spawners
from understudy.agent.zygote import Fork
from understudy.settings.cluster import ClusterConfig, NodeConfig
from understudy.wire.errors import ConfigError

OnForked = Callable[[str, int, str, Doorway], None]


class _Owed(NamedTuple):
    pool: str
    door: Doorway


class Forking:
    """`on_forked` is told (worker, pid, key of its pool, doorway), `on_failed` (worker, reason)."""

    def __init__(
        self,
        config: ClusterConfig,
        node: NodeConfig,
        rooms: Rooms,
        groups: Groups,
        clearing: Clearing,
        environments: Environments,
        on_forked: OnForked,
        on_failed: Callable[[str, str], None],
        on_exited: Callable[[int, int], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._config = config
        self._node = node
        self._rooms = rooms
        self._clearing = clearing
        self._on_forked = on_forked
        self._on_failed = on_failed
        self._owed: dict[str, _Owed] = {}
        self.zygotes = Spawners(
            config.agent, environments, rooms, groups, self._forked, self._refused, on_exited, spawn
        )

    def fork(self, worker: str, pool: str) -> None:
        path = Path(self._config.run_dir) / f"w-{worker}.sock"
        try:
            walls = self._rooms.walls(worker, pool)
            door = Doorway.open(str(path), self._node.worker_host)
        except (OSError, ConfigError) as error:
            reason = f"no place for it can be made: {error}"
            asyncio.get_running_loop().call_soon(self._on_failed, worker, reason)
            return
        self._owed[worker] = _Owed(pool, door)
        request = Fork(worker, self._config.worker, walls)
        self.zygotes.fork(pool, request, door.descriptors)

    def _forked(self, worker: str, pid: int) -> None:
        pool, door = self._owed.pop(worker)
        door.handed_over()
        self._on_forked(worker, pid, pool, door)

    def _refused(self, worker: str, reason: str) -> None:
        self._owed.pop(worker).door.close()
        self._clearing.do(partial(self._rooms.clear, worker))
        self._on_failed(worker, reason)
