"""Measuring variants in real workers: one at a time per node, spread over the nodes that are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from understudy.settings.controller import ControllerTuning
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Measure, Measured
from understudy.wire.records import AppVersion

OnNode = Callable[[str, Measure], Awaitable[Measured]]
PAUSE_S = 2.0  # before a node that had trouble of its own is asked again
# The node's trouble, not the variant's: another node may do.
ELSEWHERE = frozenset(
    {Code.LINK_LOST, Code.UNAVAILABLE, Code.BUSY, Code.DRAINING, Code.ARTIFACT_CORRUPT, Code.INTERNAL}
)


class Profiler:
    """`nodes` tells which nodes can measure now, in an environment; `on_node` asks one."""

    def __init__(self, nodes: Callable[[str], list[str]], on_node: OnNode, tuning: ControllerTuning) -> None:
        self._nodes = nodes
        self._on_node = on_node
        self._tuning = tuning
        self._busy: set[str] = set()
        self._changed = asyncio.Event()

    def notice(self) -> None:
        """A node may have come."""
        self._changed.set()

    async def measure(self, app: AppVersion, variant: str) -> Measured:
        """Raises what the variant's worker says; UNAVAILABLE or TIMEOUT where no node could measure it."""
        asked = app.variant(variant)
        environment = asked.environment_key if asked is not None else ""
        tried: list[str] = []
        while True:
            async with self._free_node(environment, tried) as node:
                if node in tried:  # it had trouble of its own, which may end: old copies go from its disk
                    await asyncio.sleep(PAUSE_S)
                tried.append(node)
                try:
                    return await self._on_node(node, Measure(app, variant))
                except UnderstudyError as error:
                    if error.code not in ELSEWHERE or len(tried) >= self._tuning.profile_attempts_max:
                        raise

    @asynccontextmanager
    async def _free_node(self, environment: str, tried: list[str]) -> AsyncIterator[str]:
        """One that is nobody else's until the block ends."""
        node = await self._taken(environment, tried)
        try:
            yield node
        finally:
            self._busy.remove(node)
            self._changed.set()

    async def _taken(self, environment: str, tried: list[str]) -> str:
        """A node, busy from now on.

        Waits its turn for as long as there is a node; without one, profile_timeout_s.
        """
        while True:
            free = [node for node in self._nodes(environment) if node not in self._busy]
            if free:
                node = min(free, key=lambda node: (tried.count(node), node))
                self._busy.add(node)  # in the step that chose it
                return node
            self._changed.clear()
            try:
                async with asyncio.timeout(self._tuning.profile_timeout_s):
                    await self._changed.wait()
            except TimeoutError:
                if not self._nodes(environment):
                    raise UnderstudyError(
                        Code.UNAVAILABLE,
                        "no node is there to measure it on",
                        waited_s=self._tuning.profile_timeout_s,
                    ) from None
