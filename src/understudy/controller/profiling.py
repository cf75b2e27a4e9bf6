"""Measuring variants in real workers: one at a time per node, spread over the nodes that are there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from understudy.settings.controller import ControllerTuning
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Measure, Measured
from understudy.wire.records import AppVersion

OnNode = Callable[[str, Measure], Awaitable[Measured]]
# The node's trouble, not the variant's: another node may do.
ELSEWHERE = frozenset(
    {Code.LINK_LOST, Code.UNAVAILABLE, Code.BUSY, Code.DRAINING, Code.ARTIFACT_CORRUPT, Code.INTERNAL}
)


class Profiler:
    """`nodes` tells which nodes can measure now; `on_node` asks one."""

    def __init__(self, nodes: Callable[[], list[str]], on_node: OnNode, tuning: ControllerTuning) -> None:
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
        tried: list[str] = []
        while True:
            node = await self._free_node(tried)
            tried.append(node)
            self._busy.add(node)
            try:
                return await self._on_node(node, Measure(app, variant))
            except UnderstudyError as error:
                if error.code not in ELSEWHERE or len(tried) >= self._tuning.profile_attempts_max:
                    raise
            finally:
                self._busy.remove(node)
                self._changed.set()

    async def _free_node(self, tried: list[str]) -> str:
        """Busy ones come free by themselves; how long is waited when there is none at all has a limit."""
        while True:
            there = self._nodes()
            free = [node for node in there if node not in self._busy]
            if free:
                return min(free, key=lambda node: (tried.count(node), node))
            self._changed.clear()
            limit_s = None if there else self._tuning.profile_timeout_s
            try:
                async with asyncio.timeout(limit_s):
                    await self._changed.wait()
            except TimeoutError:
                what = "no node is there to measure it on"
                raise UnderstudyError(Code.UNAVAILABLE, what, waited_s=limit_s) from None
