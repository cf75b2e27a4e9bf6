"""Measurements that others ask of this node: one at a time, because two would measure each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from understudy.core.agent import events as ev
from understudy.core.agent.environments import Environments
from understudy.core.agent.outbox import Outbox
from understudy.core.agent.replicas import Replica, Wanted
from understudy.core.agent.roster import Roster
from understudy.wire.errors import Code
from understudy.wire.messages import Loaded, Measured
from understudy.wire.records import Profile, Role


class Measures:
    def __init__(
        self, node: str, waiting_max: int, roster: Roster, environments: Environments, out: Outbox
    ) -> None:
        self._node = node
        self._waiting_max = waiting_max
        self._roster = roster
        self._environments = environments
        self._out = out
        self._waiting: deque[ev.MeasureAsked] = deque()

    def ask(self, event: ev.MeasureAsked, *, stopping: bool) -> None:
        variant = event.measure.app.variant(event.measure.variant)
        if variant is None:
            message = f"{event.measure.app.app} has no variant {event.measure.variant}"
            self._out.add(ev.RefuseMeasure(event.token, Code.NOT_FOUND, message))
        elif stopping or len(self._waiting) >= self._waiting_max:
            self._out.add(ev.RefuseMeasure(event.token, Code.BUSY, "too many measurements are waiting"))
        elif problem := self._environments.problem(variant):
            self._out.add(ev.RefuseMeasure(event.token, Code.UNAVAILABLE, problem))
        else:
            self._waiting.append(event)

    def begin(self, new_id: Callable[[], str]) -> None:
        """The next one, unless one is running."""
        while self._waiting and not any(r.asker is not None for r in self._roster):
            asked = self._waiting.popleft()
            app = asked.measure.app
            variant = app.variant(asked.measure.variant)
            if variant is not None:
                wish = Wanted(app, variant, Role.PRIMARY)
                self._roster.add(Replica(new_id(), wish.key, wish, asker=asked.token))

    def answer(self, replica: Replica, loaded: Loaded, now: float) -> None:
        """If `replica` was loaded for nothing else than this."""
        if replica.asker is None:
            return
        profile = Profile(
            loaded.base_mb,
            loaded.memory_mb,
            loaded.load_ms,
            loaded.latency_ms,
            self._node,
            loaded.memory_per_byte,
            loaded.output_per_byte,
        )
        measured = Measured(profile, loaded.inputs, loaded.outputs, loaded.notes, verdict=loaded.verdict)
        self._out.add(ev.AnswerMeasure(replica.asker, measured))
        self._roster.release(replica, now)

    def refuse_all(self, reason: str) -> None:
        for asked in self._waiting:
            self._out.add(ev.RefuseMeasure(asked.token, Code.DRAINING, reason))
        self._waiting.clear()
