"""One zygote per environment: started when a worker is first asked of it, ended when nobody needs it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine

from understudy.agent.environments import Environments
from understudy.agent.spawner import Spawner
from understudy.agent.trial import zygote_command
from understudy.agent.zygote import Fork
from understudy.core.agent.pools import OWN
from understudy.settings.agent import AgentTuning

Parent = tuple[str, int]  # environment and generation of a zygote


class Spawners:
    def __init__(
        self,
        tuning: AgentTuning,
        environments: Environments,
        on_forked: Callable[[str, int], None],
        on_failed: Callable[[str, str], None],
        on_exited: Callable[[int, int], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._tuning = tuning
        self._environments = environments
        self._callbacks = on_forked, on_failed, on_exited
        self._by_key: dict[str, Spawner] = {}
        self._spawn = spawn

    def start(self) -> None:
        self._spawner(OWN)

    def fork(self, environment: str, request: Fork) -> None:
        self._spawner(environment).fork(request)

    def keep(self, environments: frozenset[str]) -> None:
        """End the zygotes of all others but our own."""
        self._environments.kept.use(environments)
        for key in self._by_key.keys() - environments - {OWN}:
            self._spawn(self._by_key.pop(key).close())

    def parent(self, environment: str) -> Parent:
        """Of what is forked now."""
        spawner = self._by_key.get(environment)
        return environment, spawner.generation if spawner is not None else 0

    def knows(self, parent: Parent) -> bool:
        """Whether that zygote is there, to say how its children end."""
        return parent[1] > 0 and self.parent(parent[0]) == parent

    async def close(self) -> None:
        """End all zygotes; workers that are still there live on."""
        await asyncio.gather(*(spawner.close() for spawner in self._by_key.values()))

    def _spawner(self, key: str) -> Spawner:
        if key not in self._by_key:
            broken = (lambda: self._environments.doubt(key)) if key else None
            self._by_key[key] = Spawner(self._command(key), self._tuning, *self._callbacks, broken)
            self._by_key[key].start()
        return self._by_key[key]

    def _command(self, key: str) -> Callable[[str], list[str]]:
        if not key:
            return lambda socket: [sys.executable, "-P", "-m", "understudy.agent.zygote", socket]
        python, folder = self._environments.kept.command(key)
        return lambda socket: zygote_command(socket, python, folder)
