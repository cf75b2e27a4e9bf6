"""Virtual time: what is due, in order; the machines' own clocks; and processes, which live by those."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

Act = Callable[[], None]
EPOCH_S = 1_700_000_000.0  # the time of day when a run begins


class Clock:
    """`now` in s, from 0. What is due at the same time is done in the order in which it was asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.acts = 0
        self._due: list[tuple[float, int, Process | None, Act]] = []
        self._order = itertools.count()

    def at(self, when_s: float, act: Act, process: Process | None = None) -> None:
        """`process` does it, if it can by then."""
        heapq.heappush(self._due, (max(when_s, self.now), next(self._order), process, act))

    def run(self, until_s: float) -> None:
        due, pop = self._due, heapq.heappop
        while due and due[0][0] <= until_s:
            self.now, _, process, act = pop(due)
            self.acts += 1
            if process is None:
                act()
            else:
                process.post(act)
        self.now = until_s


class SimHost:
    """A machine as its processes see it: clocks that agree with nobody else's."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock = clock
        self.name = name
        self.rate = 1.0  # seconds that pass here while one passes
        self.wall_error_s = 0.0
        self.frozen = False  # its kernel answers nobody
        self._booted_s = 0.0  # where the monotonic clock has its zero

    @property
    def now(self) -> float:
        """Monotonic, in s since it booted."""
        return (self.clock.now - self._booted_s) * self.rate

    @property
    def wall_ms(self) -> int:
        return round((EPOCH_S + self.clock.now * self.rate + self.wall_error_s) * 1000)

    def boot(self, ago_s: float = 0.0) -> None:
        self._booted_s = self.clock.now - ago_s


class Process:
    """What runs on a host: gets nothing once it is dead, and everything late while it is paused."""

    def __init__(self, host: SimHost) -> None:
        self.host = host
        self.alive = True
        self.paused = False
        self._clock = host.clock
        self._pauses = 0
        self._held: list[Act] = []
        self._last_words: list[Callable[[bool], None]] = []

    @property
    def now(self) -> float:
        return self.host.now

    def post(self, act: Act) -> None:
        """Do it now, unless it can't."""
        if self.alive:
            if self.paused:
                self._held.append(act)
            else:
                act()

    def after(self, delay_s: float, act: Act) -> None:
        clock = self._clock
        clock.at(clock.now + delay_s / self.host.rate, act, self)

    def every(self, interval_s: Callable[[], float], act: Callable[[float], None]) -> None:
        """`act` is told how late it is, in s."""
        due_s = self.now + interval_s()

        def again() -> None:
            nonlocal due_s
            now = self.now
            act(now - due_s)
            pause_s = interval_s()
            due_s = now + pause_s
            self.after(pause_s, again)

        self.after(due_s - self.now, again)

    def at_death(self, act: Callable[[bool], None]) -> None:
        """What its kernel does when it ends, unless that has gone, too: then `act` is told so (True)."""
        self._last_words.append(act)

    def kill(self, *, power_lost: bool = False) -> None:
        if self.alive:
            self.alive = False
            self._held.clear()
            for act in self._last_words:
                act(power_lost)

    def pause(self) -> None:
        self._pauses += 1
        self.paused = True

    def resume(self) -> None:
        """As often as it was paused."""
        self._pauses = max(self._pauses - 1, 0)
        if self._pauses:
            return
        self.paused = False
        held, self._held = self._held, []
        for act in held:
            self.post(act)

    def heal(self) -> None:
        self._pauses = 0
        self.resume()
