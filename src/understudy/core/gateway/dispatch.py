"""Requests in flight: which replica gets one, and what happens when its answer doesn't come.

The gateway calls this directly, once to submit and once per frame that comes back; `tick` does everything
that depends on time (hedges, deadlines, silence, verdicts). No I/O: a replica's link is anything with
`write`, and the request itself is told its end through `answered` or `failed`.

What is promised here: each request ends exactly once; it is sent to a replica at most `attempts_max`
times; nothing is retried that isn't idempotent and was sent; queues are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from understudy.core.gateway.balancing import pick
from understudy.core.gateway.blame import FAILURES, settle
from understudy.core.gateway.fallback import Fallback
from understudy.core.gateway.hedging import hedge_due, may_hedge
from understudy.core.gateway.last_good import LastGood
from understudy.core.gateway.pace import SAMPLE_MASK
from understudy.core.gateway.poison import Poison
from understudy.core.gateway.pressure import Gate
from understudy.core.gateway.rotation import App, Fault, Flight, Replica, Request, load_of
from understudy.settings.gateway import GatewayTuning
from understudy.wire.errors import TRAITS, Code, UnderstudyError
from understudy.wire.frames import Buffer, Frame
from understudy.wire.messages import Cancel, Result, decode_answer, encode_infer, encode_message

LONE_PATIENCE_FACTOR = 3.0  # silence borne from a replica that has no stand-in: suspecting it costs a load


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
        self._random = random
        self._died_of_it = died_of_it
        self._poisoned = poisoned
        self._changed = changed
        verdict_s = settings.retry.poison_verdict_ms / 1000
        self.poison = Poison(settings.poison, settings.retry.poison_kills, verdict_s, died_of_it)
        self.last_good = LastGood(settings.last_good)
        self.fallback = Fallback(self, apps, self.last_good, settings.tick_ms / 1000)
        self.gate = Gate(settings.admission)
        self._ticked_at: float | None = None
        self.inflight = 0

    # A request comes in

    def submit(self, request: Request, now: float) -> None:
        app = request.app
        app.traffic.stats.requests += 1
        app.conducts.clients.heard(request.client, now)
        if app.clients is not None:
            error = self.gate.over_rate(app.clients, request.client, now)
            if error is not None:
                app.traffic.stats.limited += 1
                self._turn_away(request, error)
                return
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
                    self._refuse(request, refusal)
                    return
        app.inflight += 1
        self.inflight += 1
        if self.poison.remembered and self.poison.holds(request):
            return self._fail(request, UnderstudyError(Code.POISON, "this request took down its workers"))
        replica = replica or pick(app, now)
        if replica is None:
            self._park(request, now)
        else:
            self._send(request, replica, now)

    def _park(self, request: Request, now: float) -> None:
        app = request.app
        if app.way_back.hopeless and not app.ranked:
            self._bet(request, now)
        elif len(app.queues.waiting) >= self._settings.admission.waiting_max:
            self._shed(request, "too many requests are waiting", limit=self._settings.admission.waiting_max)
        else:
            app.queues.waiting.append(request)

    def _send(self, request: Request, replica: Replica, now: float) -> None:
        stream = replica.next_stream
        replica.next_stream = stream + 1 if stream < 0x7FFFFFFF else 1
        flight = Flight(request, replica, stream, now)
        replica.outstanding[stream] = flight
        request.flights.append(flight)
        request.attempts += 1
        parts = encode_infer(request.deadline - now, stream, request.body, request.json_bytes, request.flags)
        replica.link.write(*parts)  # type: ignore[union-attr]
        if not replica.breaker.closed:
            replica.breaker.sent(stream)
            self._changed(replica.app, now)
        if request.attempts == 1:
            request.app.queues.watch.append(request)  # and from there into `slow`, until it ends

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
            replica.answered_at = now
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
            self._failed(flight, answer.error(), now)
        app = replica.app
        if app.queues.waiting or app.queues.suspects:
            self.release(app, now)

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
            self._settle(request, replica, now)
        if request.done:
            return
        self.end(request, keep=flight)
        app.traffic.answered.add(result, now - request.arrived, now)
        app.traffic.stats.serving = replica.variant
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
            request.faults += (Fault(replica, flight.stream, now),)  # whose it is shows at the end of it
        else:
            replica.breaker.abandoned(flight.stream)
        if code is Code.BUSY:
            replica.said_busy(now)
        if code in (Code.DRAINING, Code.UNAVAILABLE) and replica.state == "ready":
            replica.state = "draining"  # its agent will say the same in a moment
            self._changed(replica.app, now)
        if request.done:
            return
        request.flights.remove(flight)
        request.last_error = error
        if code is not Code.BUSY:
            request.tried += (replica.id,)
        if request.flights and code is not Code.INVALID_ARGUMENT:
            return  # another copy is on its way
        if code is Code.TIMEOUT or not TRAITS[code][0]:
            self._fail(request, error)
        else:
            self._again(request, now, error, free=probing)  # a probe is no storm

    def _again(self, request: Request, now: float, error: UnderstudyError, free: bool) -> None:
        """Try another replica, wait for one, or give up. `free`: a healthy one, whatever the budget says."""
        app = request.app
        other = self._other(request, now)
        if error.code in (Code.BUSY, Code.DRAINING, Code.UNAVAILABLE):
            # It was refused before anything ran, so this costs nothing and is not bounded by the budget.
            if other is not None:
                self._send(request, other, now)
            else:
                self._park(request, now)
            return
        if other is not None and request.faults:
            failed = request.faults[-1].replica
            if other.version != failed.version and failed.conduct.well:
                other = None  # one client is answered by one version, while that answers others
        spent = not app.spec.idempotent or request.attempts >= self._settings.retry.attempts_max
        free = free and other is not None and other.breaker.closed
        if other is None or spent or not (free or app.patience.retry_budget.withdraw(now)):
            self._fail(request, error)
            return
        app.traffic.stats.retried += 1
        self._send(request, other, now)

    def _other(self, request: Request, now: float) -> Replica | None:
        """The best routable replica that has not had this request."""
        busy = {flight.replica.id for flight in request.flights}
        for replica in request.app.ranked:
            if replica.id not in request.tried and replica.id not in busy and replica.has_room(now):
                return replica
        return None

    # A replica is lost

    def link_lost(self, replica: Replica, now: float) -> None:
        """Its connection broke. Every request in flight on it moves, inside its own deadline.

        Any of them may be what killed the worker, so they are retried one at a time: the next worker to
        die then has one culprit, whichever suspect it has had the longest. The caller has taken the replica
        out of the rotation already.
        """
        flights = list(replica.outstanding.values())
        replica.outstanding.clear()
        culprit = next((f.request for f in flights if f.request.isolated and not f.request.done), None)
        blamed = replica.state != "draining" and self._died_of_it(replica)
        replica.breaker.abandoned(replica.breaker.probe)
        for flight in flights:
            request = flight.request
            if request.done:
                continue
            request.flights.remove(flight)
            request.tried += (replica.id,)
            if blamed and (request is culprit or not request.kills):
                # Not when a hedge of it was merely beside a suspect that was being tried alone.
                request.kills += (replica,)
            self._leave_isolation(request)
            if request.flights:
                continue
            if not request.app.spec.idempotent:
                what = "the replica died after the request was sent"
                self._fail(request, UnderstudyError(Code.LINK_LOST, what))
            elif len(request.kills) >= self._settings.retry.poison_kills:
                self.poison.accuse(request, now)
            else:
                request.app.traffic.stats.retried += 1
                (request.app.queues.suspects if request.kills else request.app.queues.waiting).append(request)
        self.release(replica.app, now)

    def release(self, app: App, now: float) -> None:
        """Send what waits, as far as there is room: first one suspect, then the others in order."""
        trial_s = self._settings.retry.trial_ms / 1000
        while app.queues.suspects and (
            app.queues.isolated is None or app.queues.isolated.in_flight_s(now) > trial_s
        ):
            request = app.queues.suspects[0]
            other = self._other(request, now)
            if other is None:
                break
            app.queues.suspects.popleft()
            if not request.done:
                request.isolated = True
                app.queues.isolated = request
                self._send(request, other, now)
        while app.queues.waiting:
            replica = pick(app, now)
            if replica is None:
                return
            request = app.queues.waiting.popleft()
            if not request.done:
                self._send(request, replica, now)

    def panic(self, app: App, now: float) -> None:
        """Nothing healthy is left and nobody can load anything: try whatever still has a connection."""
        while app.queues.waiting:
            request = app.queues.waiting.popleft()
            if not request.done:
                self._bet(request, now)

    def _bet(self, request: Request, now: float) -> None:
        replica = min(
            (r for r in request.app.last_resorts(now) if r.has_room(now)), key=load_of, default=None
        )
        if replica is not None:
            self._send(request, replica, now)
        else:
            self._give_up(request, "no replica, and no node can load one")

    def give_up_waiting(self, app: App) -> None:
        for queue in (app.queues.waiting, app.queues.suspects):
            while queue:
                request = queue.popleft()
                if not request.done:
                    self._give_up(request, "no replica, and no node can load one")

    def cancel(self, request: Request) -> None:
        """The client is gone."""
        if not request.done:
            self.end(request)

    # Time passes

    def tick(self, apps: list[App], now: float, doubt: float, punctual: bool = True) -> None:
        """Hedge, time out, suspect. `doubt` >= 1 stretches patience (see suspicion.SelfDoubt).

        Not `punctual`: this tick came late, so answers may lie unread in the sockets. Accuse nobody.
        """
        elapsed_s = 0.0 if self._ticked_at is None else now - self._ticked_at
        self._ticked_at = now
        self.gate.watch(apps, self.inflight)
        for app in apps:
            if app.inflight:
                app.observe(elapsed_s)
            if app.busy or app.queues.slow or app.queues.watch:
                self._tick_watch(app, now)
                self._tick_slow(app, now)
                self._tick_waiting(app, now)
                if punctual:
                    self._tick_silence(app, now, doubt)
                if app.chain:
                    self.fallback.consider(app, now)
        self.fallback.tick(now)
        self._judge(now)

    def _tick_watch(self, app: App, now: float) -> None:
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

    def _tick_slow(self, app: App, now: float) -> None:
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
        other = self._other(request, now)
        if other is not None and hedge_due(request, other, self._settings.hedge, now):
            request.hedged = True
            request.app.traffic.stats.hedged += 1
            self._send(request, other, now)

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
        self._fail(request, error)

    def _tick_waiting(self, app: App, now: float) -> None:
        for queue in (app.queues.waiting, app.queues.suspects):
            if not queue:
                continue
            kept = [r for r in queue if not self._expired(r, now)]
            if len(kept) != len(queue):
                queue.clear()
                queue.extend(kept)
        if app.queues.waiting or app.queues.suspects:
            self.release(app, now)

    def _expired(self, request: Request, now: float) -> bool:
        if request.done:
            return True
        if request.app.chain and not request.app.ranked:
            # Half of the patience went by without a replica: an answer now beats none later.
            if now >= (request.arrived + request.deadline) / 2:
                self._give_up(request, "no replica in time")
                return True
            return False
        if request.deadline <= now:
            self._time_out(request, now)
            return True
        return False

    def _tick_silence(self, app: App, now: float, doubt: float) -> None:
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
            other = self._other(request, now)
            if other is not None:
                request.hedged = True
                request.app.traffic.stats.hedged += 1
                self._send(request, other, now)
            elif request not in request.app.queues.waiting and not request.app.ranked:
                request.app.queues.waiting.append(request)

    def _judge(self, now: float) -> None:
        """Requests that were on two dying workers: guilty, unless a node died rather than a worker."""
        guilty, acquitted = self.poison.judge(now)
        for request in acquitted:
            request.app.queues.suspects.append(request)
            self.release(request.app, now)
        for request in guilty:
            self._poisoned(request)
            why = "this request took down its workers; not tried again"
            self._fail(request, UnderstudyError(Code.POISON, why))

    # Ends

    def end(self, request: Request, keep: Flight | None = None) -> None:
        """Exactly once per admitted request. Copies that are still on their way are called back."""
        if request.faults:
            self._settle(request, None, request.faults[-1].at)
        request.done = True
        request.app.inflight -= 1
        self.inflight -= 1
        for flight in request.flights:
            replica, stream = flight.replica, flight.stream
            if flight is keep or replica.suspect or stream not in replica.outstanding:
                continue  # a suspect keeps its debt: only an answer clears it
            if keep is None:
                replica.breaker.abandoned(stream)
            else:
                replica.outrun(flight)
                if replica.breaker.closed and not stream & SAMPLE_MASK:
                    continue  # heard out, for its pace: those in whose place others answer aren't fast
            del replica.outstanding[stream]
            if replica.link is not None:
                replica.link.write(encode_message(Cancel(), stream))
        request.flights.clear()
        if request.isolated:
            self._leave_isolation(request)

    def _leave_isolation(self, request: Request) -> None:
        request.isolated = False
        if request.app.queues.isolated is request:
            request.app.queues.isolated = None

    def _settle(self, request: Request, by: Replica | None, now: float) -> None:
        if settle(request, by, self._random):
            self._changed(request.app, now)

    def _fail(self, request: Request, error: UnderstudyError) -> None:
        if request.faults:  # now, and not when the rest of the chain is through
            self._settle(request, None, request.faults[-1].at)
        if not request.app.chain or not self.fallback.claim(request, error):
            self.fail(request, error)

    def fail(self, request: Request, error: UnderstudyError) -> None:
        self.end(request)
        request.app.health.note(request, error, self._ticked_at or request.arrived)
        request.failed(error)

    def _shed(self, request: Request, why: str, **context: Any) -> None:
        self.end(request)
        self._refuse(request, why, **context)

    def _refuse(self, request: Request, why: str, **context: Any) -> None:
        request.app.traffic.stats.shed += 1
        self._turn_away(request, UnderstudyError(Code.SHED, f"overloaded: {why}", **context))

    def _turn_away(self, request: Request, error: UnderstudyError) -> None:
        request.done = True
        request.failed(error)

    def _give_up(self, request: Request, why: str) -> None:
        """No replica will answer this: what the app's fallback chain has left, else an honest 503."""
        self._fail(request, UnderstudyError(Code.UNAVAILABLE, why))
