"""One zygote per pool of an environment: started when a worker is first asked of it, ended with the need.

That of our own installation serves the pool with the network too, for it runs nobody else's code.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from functools import partial

from understudy.adapters.sandbox.walls import Tier
from understudy.agent.entering import command_behind
from understudy.agent.environments import Environments
from understudy.agent.limits import Groups, Paths
from understudy.agent.rooms import Rooms, place_of
from understudy.agent.spawner import Spawner
from understudy.agent.trial import packages_of, zygote_command
from understudy.agent.zygote import Fork
from understudy.core.agent.pools import OWN, environment_of
from understudy.settings.agent import AgentTuning

Parent = tuple[str, int]  # key and generation of a zygote


class Spawners:
    def __init__(
        self,
        tuning: AgentTuning,
        environments: Environments,
        rooms: Rooms,
        groups: Groups,
        on_forked: Callable[[str, int], None],
        on_failed: Callable[[str, str], None],
        on_exited: Callable[[int, int], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._tuning = tuning
        self._environments = environments
        self._rooms = rooms
        self._groups = groups
        self._callbacks = on_forked, on_failed, on_exited
        self._by_key: dict[str, Spawner] = {}
        self._spawn = spawn

    def start(self) -> None:
        self._spawner(OWN)

    def fork(self, pool: str, request: Fork, door: list[int]) -> None:
        """`door`: descriptors that go with it; they are to be kept until it is answered."""
        self._spawner(_zygote_of(pool)).fork(request, door)

    def keep(self, pools: frozenset[str]) -> None:
        """End the zygotes of all others but our own."""
        self._environments.kept.use(frozenset(environment_of(pool)[0] for pool in pools) - {OWN})
        for key in self._by_key.keys() - pools - {OWN}:
            self._spawn(self._by_key.pop(key).close())

    def parent(self, pool: str) -> Parent:
        """Of what is forked now."""
        key = _zygote_of(pool)
        spawner = self._by_key.get(key)
        return key, spawner.generation if spawner is not None else 0

    def knows(self, parent: Parent) -> bool:
        """Whether that zygote is there, to say how its children end."""
        return parent[1] > 0 and self.parent(parent[0]) == parent

    async def close(self) -> None:
        """End all zygotes; workers that are still there live on."""
        await asyncio.gather(*(spawner.close() for spawner in self._by_key.values()))

    def _spawner(self, key: str) -> Spawner:
        if key not in self._by_key:
            broken = (lambda: self._environments.doubt(environment_of(key)[0])) if key else None
            self._by_key[key] = Spawner(
                self._command(key),
                self._tuning,
                *self._callbacks,
                broken,
                trusted=key == OWN,
                clear=partial(self._groups.end, self._group_of(key)),
            )
            self._by_key[key].start()
        return self._by_key[key]

    def _command(self, key: str) -> Callable[[str], list[str]]:
        if not key:
            return lambda socket: [sys.executable, "-P", "-m", "understudy.agent.zygote", socket]
        python, folder = self._environments.kept.command(environment_of(key)[0])
        walls = self._rooms.zygote_walls(key, packages_of(python, folder))
        group = self._group_of(key)

        def command(socket: str) -> list[str]:
            made = self._groups.make(group, self._tuning.sandbox.packages_memory_mb)
            return command_behind(walls, made, zygote_command(socket, python, folder))

        return command

    def _group_of(self, key: str) -> Paths:
        """None for our own, which runs nobody else's code; nor where it would hold processes 1 of workers."""
        if key == OWN or self._rooms.environment_tier is Tier.NAMESPACES:
            return ()
        return self._groups.of(f"zygote-{place_of(key)}")


def _zygote_of(pool: str) -> str:
    return OWN if environment_of(pool)[0] == OWN else pool
