"""Blank workers by the environment that they run in and what they may use: one pool for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from understudy.core.agent.blanks import Blank, BlankPool
from understudy.core.agent.events import CheckBlank, ForkWorker
from understudy.settings.agent import AgentTuning
from understudy.wire.records import Variant

OWN = ""  # key of Understudy's own installation
_NETWORK = "+network"


def pool_of(variant: Variant) -> str:
    """Key of the blank workers that can take it: of the environment, and whether they have the network."""
    return variant.environment_key + (_NETWORK if variant.network else "")


def environment_of(pool: str) -> tuple[str, bool]:
    """(key of the environment, whether its workers have the network)."""
    return pool.removesuffix(_NETWORK), pool.endswith(_NETWORK)


class Pools:
    """That of our own installation is always full; another has one worker, where something may be urgent."""

    def __init__(self, tuning: AgentTuning, delay_s: Callable[[int, float], float]) -> None:
        self._tuning = tuning
        self._delay_s = delay_s
        self._own = BlankPool(tuning, delay_s)
        self._by_key = {OWN: self._own}

    def __len__(self) -> int:
        return sum(map(len, self._by_key.values()))

    @property
    def empty(self) -> bool:
        """Nothing here and nothing on its way."""
        return all(pool.empty for pool in self._by_key.values())

    @property
    def failures(self) -> int:
        """In a row, of workers in no environment but ours."""
        return self._own.failures

    def due_s(self, now: float) -> float:
        return min((pool.due_s(now) for pool in self._by_key.values()), default=math.inf)

    def add(self, worker: str, pid: int, address: str, now: float, environment: str = OWN) -> None:
        """A worker that isn't being forked is one of `environment`."""
        key = next((key for key, pool in self._by_key.items() if pool.forks(worker)), environment)
        self._pool(key).add(worker, pid, address, now)

    def take(self, environment: str) -> Blank | None:
        return self._pool(environment).take()

    def remove(self, worker: str) -> bool:
        """Whether it was a blank one."""
        return any(pool.remove(worker) for pool in self._by_key.values())

    def exited(self, worker: str, now: float, jitter: float) -> bool:
        """A process ended. Whether it was one of a pool."""
        return any(pool.exited(worker, now, jitter) for pool in self._by_key.values())

    def passed(self, worker: str) -> None:
        for pool in self._by_key.values():
            pool.passed(worker)

    def check_again(self, worker: str, now: float) -> None:
        for pool in self._by_key.values():
            pool.check_again(worker, now)

    def checks(self, now: float) -> list[CheckBlank]:
        return [check for pool in self._by_key.values() for check in pool.checks(now)]

    def refill(
        self,
        waiting: Mapping[str, int],
        urgent: frozenset[str],
        now: float,
        new_id: Callable[[], str],
        *,
        spare: bool,
    ) -> list[ForkWorker]:
        """Forks missing for `waiting` replicas by environment and, if `spare`, for full pools beyond them."""
        forks = []
        for key in dict.fromkeys([OWN, *sorted(waiting), *sorted(urgent), *self._by_key]):
            pool = self._pool(key)
            if key != OWN:
                pool.size = int(key in urgent)
            forks += pool.refill(waiting.get(key, 0), now, new_id, spare=spare)
        return forks

    def end_idle(self, needed: frozenset[str]) -> list[str]:
        """Forget the pools of environments that nothing here needs; their workers, to be killed."""
        workers = []
        for key in self._by_key.keys() - needed - {OWN}:
            workers += self._by_key[key].clear()
            if self._by_key[key].empty:
                del self._by_key[key]
        return sorted(workers)

    def clear(self) -> list[str]:
        """Forget every blank worker; their names, to be killed."""
        return [worker for pool in self._by_key.values() for worker in pool.clear()]

    def _pool(self, key: str) -> BlankPool:
        if key not in self._by_key:
            self._by_key[key] = BlankPool(self._tuning, self._delay_s, key)
        return self._by_key[key]
