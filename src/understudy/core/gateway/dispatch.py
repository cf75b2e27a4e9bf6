"""Requests in flight: which replica gets one, and what happens when its answer doesn't come.

The gateway calls this directly, once to submit and once per frame that comes back, and has it `tick`. No I/O:
a replica's link is anything with `write`, and the request itself is told its end through `answered` or
`failed`. How requests are sent and end is in `flights`, what time does to them in `vigil`, and who has no
replica yet in `waiting_room`.

What is promised here: each request ends exactly once; it is sent to a replica at most `attempts_max`
times; nothing is retried that isn't idempotent and was sent; queues are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from understudy.core.gateway.balancing import another, pick
from understudy.core.gateway.blame import FAILURES
from understudy.core.gateway.fallback import Fallback
from understudy.core.gateway.flights import Flights
from understudy.core.gateway.hearsay import heard
from understudy.core.gateway.last_good import LastGood
from understudy.core.gateway.lifecycles import Seen, seen
from understudy.core.gateway.pace import SAMPLE_MASK
from understudy.core.gateway.poison import Poison
from understudy.core.gateway.pressure import Gate
from understudy.core.gateway.rotation import App, Flight, Replica, ReplicaFault, Request
from understudy.core.gateway.vigil import Vigil
from understudy.core.gateway.waiting_room import WaitingRoom
from understudy.settings.gateway import GatewayTuning
from understudy.wire.errors import TRAITS, Code, UnderstudyError
from understudy.wire.frames import Buffer, Frame
from understudy.wire.messages import Result, decode_answer


class Dispatcher:
    """Owns every request of a gateway between `submit` and its end."""

    def __init__(
        self,
        settings: GatewayTuning,
        apps: Mapping[str, App],
        *,
        died_of_it: Callable[[Replica], bool],
        random: Callable[[], float],
        poisoned: Callable[[Request], None],
        changed: Callable[[App, float], None],
    ) -> None:
        """`changed` is called when an app's rotation must be worked out anew; `random` gives [0, 1)."""
        self._settings = settings
        self._died_of_it = died_of_it
        self._poisoned = poisoned
        self._changed = changed
        verdict_s = settings.retry.poison_verdict_ms / 1000
        self.poison = Poison(settings.poison, settings.retry.poison_kills, verdict_s, died_of_it)
        self.last_good = LastGood(settings.last_good)
        self.flights = Flights(random, changed)
        self.waiting_room = WaitingRoom(settings, self.flights)
        self.vigil = Vigil(settings, self.flights, self.waiting_room, random, changed)
        self.fallback = Fallback(self, apps, self.last_good, settings.tick_ms / 1000)
        self.flights.claim = self.fallback.claim
        self.gate = Gate(settings.admission)

    @property
    def inflight(self) -> int:
        return self.flights.inflight

    # A request comes in

    def submit(self, request: Request, now: float) -> None:
        error = self.gate.over_rate(request, now)
        if error is None:
            self.admit(request, now)
        else:
            self.flights.turn_away(request, error)

    def admit(self, request: Request, now: float) -> None:
        """Whose rate has been looked at."""
        app = request.app
        replica = None
        allowance = app.allowance
        if (
            app.inflight >= allowance.limit
            or (app.inflight + 1) * allowance.spacing_s > request.deadline - now
        ):
            refusal = self.gate.refusal(request, now)
            if refusal:
                replica = self.gate.stand_in(app, now)
                if replica is None:
                    self.flights.refuse(request, refusal)
                    return
        app.inflight += 1
        self.flights.inflight += 1
        if self.poison.remembered and self.poison.holds(request):
            error = UnderstudyError(Code.POISON, "this request took down its workers")
            return self.flights.give_up(request, error)
        replica = replica or pick(app, now)
        if replica is None:
            self.waiting_room.park(request, now)
        else:
            self.flights.send(request, replica, now)

    # A frame comes back

    def frame_received(self, replica: Replica, frame: Frame, now: float) -> None:
        """An answer, or anything else that shows that the replica lives.

        Raises `ProtocolError` for an answer that can't be read; the link must be closed then.
        """
        flight = replica.outstanding.get(frame.stream)
        if flight is not None:
            answer = decode_answer(frame)  # may raise: then the link goes, and what it holds moves
            del replica.outstanding[frame.stream]
        if frame.stream:  # a pong has none; an answer that comes too late is progress all the same
            replica.signs.answered_at = now
        if replica.suspect and (
            flight is not None or not replica.owes_too_long(now, replica.app.patience.late_s)
        ):
            # A mere pong doesn't clear one that owes an answer for too long: its model may hang.
            replica.suspect = False
            if flight is not None or not replica.outstanding:
                replica.breaker.heard(now)
            self._changed(replica.app, now)
        if flight is None:
            return  # somebody else was faster, or nobody waits any more
        if isinstance(answer, Result):
            self._succeeded(flight, answer, frame.payload, now)
        else:
            self._failed(flight, heard(answer), now)
        app = replica.app
        if app.queues.waiting or app.queues.suspects:
            self.waiting_room.release(app, now)

    def _succeeded(self, flight: Flight, result: Result, body: Buffer, now: float) -> None:
        request, replica, app = flight.request, flight.replica, flight.replica.app
        latency_s = now - flight.sent_at
        ejected = not replica.breaker.closed  # until now, perhaps
        replica.breaker.succeeded(now, flight.stream, latency_s)
        replica.conduct.answered += 1
        if ejected or replica not in app.ranked:
            self._changed(app, now)
        if not flight.stream & SAMPLE_MASK:
            replica.pace.sampled(latency_s, result.infer_us, result.rows)
            replica.conduct.answered_sample(request.body)
        app.patience.digest.record(latency_s)
        if request.faults:
            self.flights.settle(request, replica, now)
        if request.done:
            return
        self.flights.end(request, keep=flight)
        app.traffic.answered.add(result, now - request.arrived, now)
        if replica.degraded:
            app.traffic.stats.degraded += 1
            if replica.degraded == "overload":
                app.allowance.brownout.answers += 1
        elif app.keeps_last_good:
            self.last_good.keep(request, replica, result, body, now)
        request.answered(replica, result, body)

    def _failed(self, flight: Flight, error: UnderstudyError, now: float) -> None:
        request, replica = flight.request, flight.replica
        code, probing = error.code, flight.stream == replica.breaker.probe
        if code in FAILURES and not request.done:
            # Whose it is shows at the end of it.
            request.faults += (ReplicaFault(replica, flight.stream, now),)
        else:
            replica.breaker.abandoned(flight.stream)
        if code is Code.BUSY:
            replica.said_busy(now)
        if code in (Code.DRAINING, Code.UNAVAILABLE) and replica.state is Seen.READY:
            replica.state = seen(replica.state, "turned_away")  # its agent will say the same in a moment
            self._changed(replica.app, now)
        if request.done:
            return
        request.flights.remove(flight)
        if code is not Code.BUSY:
            request.tried += (replica.id,)
        if request.flights and code is not Code.INVALID_ARGUMENT:
            return  # another copy is on its way
        if code is Code.TIMEOUT or not TRAITS[code][0]:
            self.flights.give_up(request, error)
        else:
            self._again(request, now, error, free=probing)  # a probe is no storm

    def _again(self, request: Request, now: float, error: UnderstudyError, free: bool) -> None:
        """Try another replica, wait for one, or give up. `free`: a healthy one, whatever the budget says."""
        app = request.app
        other = another(request, now)
        if error.code in (Code.BUSY, Code.DRAINING, Code.UNAVAILABLE):
            # It was refused before anything ran, so this costs nothing and is not bounded by the budget.
            if other is not None:
                self.flights.send(request, other, now)
            else:
                self.waiting_room.park(request, now)
            return
        if other is not None and request.faults:
            failed = request.faults[-1].replica
            if other.version != failed.version and failed.conduct.well:
                other = None  # one client is answered by one version, while that answers others
        spent = not app.spec.idempotent or request.attempts >= self._settings.retry.attempts_max
        free = free and other is not None and other.breaker.closed
        if other is None or spent or not (free or app.patience.retry_budget.withdraw(now)):
            self.flights.give_up(request, error)
            return
        app.traffic.stats.retried += 1
        self.flights.send(request, other, now)

    # A replica is lost

    def link_lost(self, replica: Replica, now: float) -> None:
        """Its connection broke. Every request in flight on it moves, inside its own deadline.

        Any of them may be what killed the worker, so they are retried one at a time, and alone as far as that
        holds up nobody for long. Guilty is only what was alone, more than once. The caller has taken the
        replica out of the rotation already.
        """
        flights = list(replica.outstanding.values())
        replica.outstanding.clear()
        blamed = replica.state is not Seen.DRAINING and self._died_of_it(replica)
        replica.breaker.abandoned(replica.breaker.probe)
        for flight in flights:
            request = flight.request
            if request.done:
                continue
            request.flights.remove(flight)
            request.tried += (replica.id,)
            if blamed and len(flights) == 1:
                request.kills += (replica,)
            elif blamed:
                request.beside += (replica,)
            self.flights.leave_isolation(request)
            if request.flights:
                continue
            if not request.app.spec.idempotent:
                what = "the replica died after the request was sent"
                self.flights.give_up(request, UnderstudyError(Code.LINK_LOST, what))
            elif len(request.kills) >= self._settings.retry.poison_kills:
                self.poison.accuse(request, now)
            elif len(request.kills) + len(request.beside) >= self._settings.retry.deaths_max:
                what = "every worker that had this request died, with others: it isn't tried again"
                self.flights.give_up(request, UnderstudyError(Code.POISON, what))
            else:
                request.app.traffic.stats.retried += 1
                suspected = request.kills or request.beside
                (request.app.queues.suspects if suspected else request.app.queues.waiting).append(request)
        self.waiting_room.release(replica.app, now)

    def cancel(self, request: Request) -> None:
        """The client is gone."""
        if not request.done:
            self.flights.end(request)

    # Time passes

    def tick(self, apps: list[App], now: float, doubt: float, punctual: bool = True) -> None:
        """Hedge, time out, suspect. `doubt` >= 1 stretches patience (see suspicion.SelfDoubt).

        Not `punctual`: this tick came late, so answers may lie unread in the sockets. Accuse nobody.
        """
        elapsed_s = 0.0 if self.flights.ticked_at is None else now - self.flights.ticked_at
        self.flights.ticked_at = now
        self.gate.watch(apps, self.flights.inflight)
        for app in apps:
            if app.inflight:
                app.observe(elapsed_s)
            if app.busy or app.queues.slow or app.queues.watch:
                self.vigil.look(app, now, doubt, punctual)
                if app.chain:
                    self.fallback.consider(app, now)
        self.fallback.tick(now)
        self._judge(apps, now)

    def _judge(self, apps: list[App], now: float) -> None:
        """Requests that were on two dying workers: guilty, unless a node died rather than a worker."""
        guilty, acquitted = self.poison.judge(now)
        for request in acquitted:
            request.app.queues.suspects.append(request)
            self.waiting_room.release(request.app, now)
            if request.app not in apps:  # removed meanwhile: nobody looks again
                self.waiting_room.give_up_waiting(request.app)
        for request in guilty:
            self._poisoned(request)
            error = UnderstudyError(Code.POISON, "this request took down its workers; not tried again")
            self.flights.give_up(request, error)
