"""What `understudy up` could not do: told at once, shown by `status`, and part of its exit status."""

from __future__ import annotations

import asyncio
import time

from understudy.cli.output import Output
from understudy.local.supervisor import Cluster
from understudy.wire.errors import UnderstudyError, presentable

LOOK_INTERVAL_S = 0.3
STORE = "store"  # the controller tells of it by itself
STORE_INTERVAL_S = 1.0
REPEAT_S = 5.0  # for a controller that was started again
SENTENCE_LENGTH_MAX = 2000
SENTENCES_MAX = 100


class KnownProblems:
    """By what has them: a manifest or a role, as people read it. One that is mended goes."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.by_source: dict[str, str] = {}
        self._reported: tuple[str, ...] = ()

    def add(self, source: str, sentence: str) -> None:
        source, sentence = presentable(source), presentable(sentence)
        if self.by_source.get(source) != sentence:
            self.by_source[source] = sentence
            self._output.note(f"problem: {sentence}")

    def mended(self, source: str) -> None:
        self.by_source.pop(presentable(source), None)

    def _look_at_store(self, trouble: str | None) -> None:
        if trouble:
            self.add(STORE, trouble)
        elif trouble == "":
            self.mended(STORE)

    async def watch(self, cluster: Cluster) -> None:
        """Follow the roles, and tell the controller what there is. Ends when cancelled."""
        due_s = look_s = 0.0
        while True:
            for role, sentence in cluster.troubles().items():
                if sentence is None:
                    self.mended(role)
                elif sentence:
                    self.add(role, sentence)
            if time.monotonic() > look_s:
                look_s = time.monotonic() + STORE_INTERVAL_S
                self._look_at_store(await _store(cluster))
            sentences = [s[:SENTENCE_LENGTH_MAX] for of, s in self.by_source.items() if of != STORE]
            now = tuple(sentences[:SENTENCES_MAX])
            if now != self._reported or (now and time.monotonic() > due_s):
                due_s = time.monotonic() + REPEAT_S
                if await _report(cluster, now):
                    self._reported = now
            await asyncio.sleep(LOOK_INTERVAL_S)


async def _store(cluster: Cluster) -> str | None:
    """What is wrong with the controller's store; None while nobody can say."""
    try:
        health = await asyncio.to_thread(cluster.polled_control.get, "/v1/health")
        return "" if health["store"]["ok"] else str(health["store"]["error"])
    except (UnderstudyError, KeyError, TypeError):
        return None


async def _report(cluster: Cluster, problems: tuple[str, ...]) -> bool:
    body = {"problems": problems}
    try:
        if not await cluster.has_own_controller():
            return False
        reply = await asyncio.to_thread(cluster.polled_control.call, "PUT", "/v1/problems", body=body)
        return reply.status < 400
    except UnderstudyError:
        return False  # nobody to tell; it is tried again
