"""What answers a request when no replica of its app does: the links of the app's fallback chain.

The first two links, smaller variants and the previous version, are replicas of the app itself and come by
rank (`rotation`). Here are the others, in the order that the manifest gives: another app, the last good
answer to the same input, the static answer. Links are not followed through: the other app answers by its
own replicas, or not at all.

Bounded by the request's deadline: another app is asked when half of the time is gone without an answer (at
once when it is clear that none will come) and gets its part of the rest; what needs no time is given in the
last tenth. Whoever answers first, wins: a copy that is still under way at a replica is not called off.

Everything happens on the tick, so a chain costs a request nothing until it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from understudy.core.gateway.flights import Flights
from understudy.core.gateway.last_good import LastGood
from understudy.core.gateway.rotation import App, Request, Source
from understudy.core.gateway.statics import Statics
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.frames import Buffer
from understudy.wire.messages import Result
from understudy.wire.records import OTHER_APP
from understudy.wire.statics import Static

RESERVE_FRACTION = 0.1  # of a request's time: for the links that need none
RESERVE_TICKS = 3  # at least
# Failures that another link may make good. Not: the caller's own, overload, and what may have been executed.
COVERED = frozenset(
    {
        Code.TIMEOUT, Code.BUSY, Code.DRAINING, Code.UNAVAILABLE, Code.MODEL_FAILED, Code.OUTPUT_INVALID,
        Code.OUT_OF_MEMORY, Code.INTERNAL,
    }
)  # fmt: skip


class Floor(Protocol):
    """What this needs of the dispatcher."""

    def submit(self, request: Request, now: float) -> None: ...

    def cancel(self, request: Request) -> None: ...

    @property
    def flights(self) -> Flights: ...


class Step:
    """Where in its chain a request is. `error`: its own replicas have failed it for good."""

    __slots__ = ("error", "handover", "link")

    def __init__(self) -> None:
        self.link = 0
        self.handover: Handover | None = None
        self.error: UnderstudyError | None = None


class Handover(Request):
    """A copy of a request in the hands of another app."""

    __slots__ = ("flags", "floor", "original", "step")

    def __init__(
        self, app: App, original: Request, step: Step, floor: Floor, now: float, deadline: float
    ) -> None:
        super().__init__(app, original.body, now, deadline, original.json_bytes, original.client)
        self.flags = original.flags
        self.original = original
        self.step = step
        self.floor = floor

    def answered(self, source: Source, result: Result, body: Buffer) -> None:
        original = self.original
        if original.done:
            return
        self.floor.flights.end(original)
        original.app.traffic.stats.degraded += 1
        original.answered(Source(source.variant, source.version, "other-app", self.app.name), result, body)

    def failed(self, error: UnderstudyError) -> None:
        self.step.handover = None
        self.step.link += 1

    def answered_static(self, static: Static) -> None:
        raise NotImplementedError  # a handover has no chain of its own


class Fallback:
    """Every request of a gateway that goes through its app's chain."""

    def __init__(self, floor: Floor, apps: Mapping[str, App], last_good: LastGood, tick_s: float) -> None:
        self._floor = floor
        self._apps = apps
        self._last_good = last_good
        self._reserve_s = RESERVE_TICKS * tick_s
        self._steps: dict[Request, Step] = {}
        self._statics = Statics()

    def claim(self, request: Request, error: UnderstudyError) -> bool:
        """Its replicas failed it. True: the chain goes on with it at the next tick."""
        if error.code not in COVERED or isinstance(request, Handover):
            return False
        self._steps.setdefault(request, Step()).error = error
        return True

    def consider(self, app: App, now: float) -> None:
        """Begin with what has waited long enough for replicas of its own app."""
        for request in app.queues.slow:
            if request.done or request in self._steps or isinstance(request, Handover):
                continue
            if now >= self._due(request, app.chain[0]):
                self._steps[request] = Step()

    def tick(self, now: float) -> None:
        if not self._steps:
            return
        for request, step in list(self._steps.items()):
            if request.done:
                del self._steps[request]
            else:
                self._advance(request, step, now)
            if request.done and step.handover is not None:
                self._floor.cancel(step.handover)

    def _advance(self, request: Request, step: Step, now: float) -> None:
        chain = request.app.chain
        if step.handover is not None:
            if now < self._due(request, ""):
                return
            self._floor.cancel(step.handover)
            step.handover = None
            step.link += 1
        while step.link < len(chain):
            link = chain[step.link]
            if step.error is None and now < self._due(request, link):
                return
            if link.startswith(OTHER_APP):
                self._hand_over(request, step, link.removeprefix(OTHER_APP), now)
                if request.done or step.handover is not None:
                    return
            elif self._answer(request, link, now):
                return
            else:
                step.link += 1
        if step.error is not None:
            del self._steps[request]
            self._floor.flights.fail(request, step.error)

    def _due(self, request: Request, link: str) -> float:
        """When to turn to `link` although a replica may still answer."""
        time_s = request.deadline - request.arrived
        if link.startswith(OTHER_APP):
            return request.arrived + time_s / 2
        return request.deadline - max(time_s * RESERVE_FRACTION, self._reserve_s)

    def _hand_over(self, request: Request, step: Step, name: str, now: float) -> None:
        """Ask app `name`; `step` is at the next link if that isn't possible."""
        app = self._apps.get(name)
        still_to_ask = sum(link.startswith(OTHER_APP) for link in request.app.chain[step.link :])
        time_s = (self._due(request, "") - now) / still_to_ask
        possible = app is not None and app.ready and time_s > 0 and request.app.spec.idempotent
        if app is None or not possible or not request.may_ask(app):
            step.link += 1
            return
        step.handover = Handover(app, request, step, self._floor, now, now + time_s)
        self._floor.submit(step.handover, now)

    def _answer(self, request: Request, link: str, now: float) -> bool:
        """Give the answer that `link` has at hand. False: it has none."""
        if link == "static":
            static = self._statics.get(request.app.spec)
            if static is None:
                return False
            self._floor.flights.end(request)
            request.answered_static(static)
        else:
            found = self._last_good.find(request, now)
            if found is None:
                return False
            self._floor.flights.end(request)
            request.answered(found.source, found.result, found.body)
        request.app.traffic.stats.degraded += 1
        return True
