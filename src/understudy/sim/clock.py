"""Virtual time: what is due, in order."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

Act = Callable[[], None]


class Clock:
    """`now` in s, from 0. What is due at the same time is done in the order in which it was asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.acts = 0
        self._due: list[tuple[float, int, Act]] = []
        self._order = itertools.count()

    def at(self, when_s: float, act: Act) -> None:
        heapq.heappush(self._due, (max(when_s, self.now), next(self._order), act))

    def run(self, until_s: float) -> None:
        due = self._due
        while due and due[0][0] <= until_s:
            self.now, _, act = heapq.heappop(due)
            self.acts += 1
            act()
        self.now = until_s


class Process:
    """What runs somewhere: gets nothing once it is dead, and everything late while it is paused."""

    def __init__(self, clock: Clock, host: str) -> None:
        self.clock = clock
        self.host = host
        self.alive = True
        self.paused = False
        self._held: list[Act] = []
        self._last_words: list[Act] = []

    def post(self, act: Act) -> None:
        """Do it now, unless it can't."""
        if self.alive and self.paused:
            self._held.append(act)
        elif self.alive:
            act()

    def after(self, delay_s: float, act: Act) -> None:
        self.clock.at(self.clock.now + delay_s, lambda: self.post(act))

    def every(self, interval_s: Callable[[], float], act: Callable[[float], None]) -> None:
        """`act` is told how late it is, in s."""
        due_s = self.clock.now + interval_s()

        def again() -> None:
            act(self.clock.now - due_s)
            self.every(interval_s, act)

        self.after(due_s - self.clock.now, again)

    def at_death(self, act: Act) -> None:
        """What its kernel does when it ends: close connections, tell who waits for it."""
        self._last_words.append(act)

    def kill(self) -> None:
        if self.alive:
            self.alive = False
            self._held.clear()
            for act in self._last_words:
                act()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        held, self._held = self._held, []
        for act in held:
            self.post(act)
