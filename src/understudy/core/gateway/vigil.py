"""What time does to requests: hedges, deadlines, and replicas that owe an answer and fall silent."""

from __future__ import annotations

from collections.abc import Callable

from understudy.core.gateway.balancing import another
from understudy.core.gateway.flights import Flights
from understudy.core.gateway.hedging import hedge_due, may_hedge
from understudy.core.gateway.rotation import App, Replica, Request
from understudy.core.gateway.waiting_room import WaitingRoom
from understudy.settings.gateway import GatewayTuning
from understudy.wire.errors import Code, UnderstudyError

LONE_PATIENCE_FACTOR = 3.0  # silence borne from a replica that has no stand-in: suspecting it costs a load


class Vigil:
    """Looks at what is in flight, on each tick."""

    def __init__(
        self,
        settings: GatewayTuning,
        flights: Flights,
        waiting_room: WaitingRoom,
        random: Callable[[], float],
        changed: Callable[[App, float], None],
    ) -> None:
        self._settings = settings
        self._flights = flights
        self._waiting_room = waiting_room
        self._random = random
        self._changed = changed

    def look(self, app: App, now: float, doubt: float, punctual: bool) -> None:
        """At one app. `doubt` >= 1 stretches patience (see suspicion.SelfDoubt).

        Not `punctual`: this tick came late, so answers may lie unread in the sockets. Accuse nobody.
        """
        self._watch(app, now)
        self._slow(app, now)
        self._waiting(app, now)
        if punctual:
            self._silence(app, now, doubt)

    def _watch(self, app: App, now: float) -> None:
        watch = app.queues.watch
        while watch:
            request = watch[0]
            if not request.done and request.deadline > now:
                started = request.flights[0].sent_at if request.flights else request.arrived
                if started + app.watch_s(request) > now:
                    return
            watch.popleft()
            if not request.done:
                app.queues.slow.append(request)

    def _slow(self, app: App, now: float) -> None:
        if not app.queues.slow:
            return
        still: list[Request] = []
        for request in app.queues.slow:
            if request.done:
                continue
            if request.deadline <= now:
                self._time_out(request, now)
                continue
            still.append(request)
            if not request.hedged:
                self._hedge(request, now)
        app.queues.slow = [r for r in still if not r.done]

    def _hedge(self, request: Request, now: float) -> None:
        if not may_hedge(request, self._settings.hedge):
            return
        other = another(request, now)
        if other is not None and hedge_due(request, other, self._settings.hedge, now):
            request.hedged = True
            request.app.traffic.stats.hedged += 1
            self._flights.send(request, other, now)

    def _time_out(self, request: Request, now: float) -> None:
        for flight in request.flights:
            # A deadline far shorter than the app's usual latency says nothing about the replica, and while it
            # answers others it is not failing but has too much to do.
            link = flight.replica.link
            silent = link is None or link.last_heard_s <= flight.sent_at
            if silent and now - flight.sent_at >= request.app.patience.silence_s:
                if flight.replica.breaker.failed(now, self._random(), flight.stream, silent=True):
                    self._changed(flight.replica.app, now)
            else:
                flight.replica.breaker.abandoned(flight.stream)
        if request.done:  # given up with all that waited, when the last replica was ejected just now
            return
        waited_ms = round((now - request.arrived) * 1000, 1)
        error = UnderstudyError(Code.TIMEOUT, "no answer within the deadline", waited_ms=waited_ms)
        self._flights.give_up(request, error)

    def _waiting(self, app: App, now: float) -> None:
        for queue in (app.queues.waiting, app.queues.suspects):
            if not queue:
                continue
            kept = [r for r in queue if not self._expired(r, now)]
            if len(kept) != len(queue):
                queue.clear()
                queue.extend(kept)
        if app.queues.waiting or app.queues.suspects:
            self._waiting_room.release(app, now)

    def _expired(self, request: Request, now: float) -> bool:
        if request.done:
            return True
        if request.app.chain and not request.app.ranked:
            # Half of the patience went by without a replica: an answer now beats none later.
            if now >= (request.arrived + request.deadline) / 2:
                self._flights.give_up(request, UnderstudyError(Code.UNAVAILABLE, "no replica in time"))
                return True
            return False
        if request.deadline <= now:
            self._time_out(request, now)
            return True
        return False

    def _silence(self, app: App, now: float, doubt: float) -> None:
        for replica in app.replicas.values():
            if replica.suspect or replica.link is None:
                continue
            if app.ranked == [replica]:
                doubt *= LONE_PATIENCE_FACTOR
            silent = replica.falls_silent(now, app.patience.silence_s * doubt)
            if silent or replica.owes_too_long(now, app.patience.late_s * doubt):
                self.suspect(replica, now)

    def suspect(self, replica: Replica, now: float) -> None:
        """It owes an answer and says nothing: route around it, and copy what it holds elsewhere."""
        replica.suspect = True
        self._changed(replica.app, now)
        self.copy_elsewhere(replica, now)

    def copy_elsewhere(self, replica: Replica, now: float) -> None:
        """Give every request that a suspect holds a second chance; the first answer wins."""
        for flight in list(replica.outstanding.values()):
            request = flight.request
            if request.done or len(request.flights) > 1 or not request.app.spec.idempotent:
                continue
            other = another(request, now)
            if other is not None:
                request.hedged = True
                request.app.traffic.stats.hedged += 1
                self._flights.send(request, other, now)
            elif request not in request.app.queues.waiting and not request.app.ranked:
                request.app.queues.waiting.append(request)
