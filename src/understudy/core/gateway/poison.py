"""Requests that kill workers: who is accused, who is guilty, and who was guilty before.

A body that was found guilty is refused at once when it comes again, for as long as it is remembered. It is
known by its digest together with app and version: a new version may well survive it. Nothing is hashed
while nothing is remembered, and nothing that is so large that others would wait for it: that is tried anew.
"""

from __future__ import annotations

from collections.abc import Callable

from understudy.core.gateway.rotation import Replica, Request
from understudy.settings.gateway import PoisonSettings


class Poison:
    def __init__(
        self, settings: PoisonSettings, kills: int, verdict_s: float, died_of_it: Callable[[Replica], bool]
    ) -> None:
        """`kills`: workers that a request may take down; a verdict waits `verdict_s`.

        `died_of_it`: nothing else is known to have ended this worker, such as the loss of its node.
        """
        self._settings = settings
        self._kills = kills
        self._verdict_s = verdict_s
        self._died_of_it = died_of_it
        self._accused: list[tuple[float, Request]] = []
        self.remembered: dict[bytes, float] = {}  # digest -> when to forget it; the oldest first

    def accuse(self, request: Request, now: float) -> None:
        """It was on as many dying workers as one may be. Were it the workers, or their nodes?"""
        self._accused.append((now + self._verdict_s, request))

    def judge(self, now: float) -> tuple[list[Request], list[Request]]:
        """(guilty, acquitted) among those whose verdict is due. The guilty are remembered."""
        if not self._accused and not self.remembered:
            return [], []
        guilty: list[Request] = []
        acquitted: list[Request] = []
        pending: list[tuple[float, Request]] = []
        for due, request in self._accused:
            if request.done:
                continue
            if now < due:
                pending.append((due, request))
                continue
            request.kills = tuple(filter(self._died_of_it, request.kills))
            if len(request.kills) < self._kills:
                acquitted.append(request)
            else:
                guilty.append(request)
                self._remember(request, now)
        self._accused = pending
        self._forget(now)
        return guilty, acquitted

    def holds(self, request: Request) -> bool:
        """Was it found guilty lately? To be asked only while anything is `remembered`: this hashes."""
        return request.digest() in self.remembered

    def _remember(self, request: Request, now: float) -> None:
        digest = request.digest()
        if not digest:
            return
        self.remembered.pop(digest, None)  # the newest is last
        self.remembered[digest] = now + self._settings.memory_s
        while len(self.remembered) > self._settings.entries_max:
            del self.remembered[next(iter(self.remembered))]

    def _forget(self, now: float) -> None:
        while self.remembered:
            oldest = next(iter(self.remembered))
            if self.remembered[oldest] > now:
                return
            del self.remembered[oldest]
