"""Every copy of a request between its sending and its end, and how requests end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from understudy.core.gateway import blame
from understudy.core.gateway.pace import SAMPLE_MASK
from understudy.core.gateway.rotation import App, Flight, Replica, Request
from understudy.invariants import check
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Cancel, encode_infer, encode_message


class Flights:
    """Owns what is at replicas, and counts what is admitted."""

    claim: Callable[[Request, UnderstudyError], bool]  # whether the rest of its app's chain takes it over

    def __init__(self, random: Callable[[], float], changed: Callable[[App, float], None]) -> None:
        self._random = random
        self._changed = changed
        self.inflight = 0  # admitted requests that haven't ended
        self.ticked_at: float | None = None

    def send(self, request: Request, replica: Replica, now: float) -> None:
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

    def end(self, request: Request, keep: Flight | None = None) -> None:
        """Exactly once per admitted request. Copies that are still on their way are called back."""
        if request.faults:
            self.settle(request, None, request.faults[-1].at)
        check(not request.done, "a request ends once")
        request.done = True
        request.app.inflight -= 1
        self.inflight -= 1
        check(request.app.inflight >= 0, "as many requests of an app end as began")
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
            self.leave_isolation(request)

    def leave_isolation(self, request: Request) -> None:
        request.isolated = False
        queues = request.app.queues
        if queues.isolated is request:
            queues.isolated = None
            queues.let_go()

    def settle(self, request: Request, by: Replica | None, now: float) -> None:
        if blame.settle(request, by, self._random):
            self._changed(request.app, now)

    def give_up(self, request: Request, error: UnderstudyError) -> None:
        if request.faults:  # now, and not when the rest of the chain is through
            self.settle(request, None, request.faults[-1].at)
        if not request.app.chain or not self.claim(request, error):
            self.fail(request, error)

    def fail(self, request: Request, error: UnderstudyError) -> None:
        self.end(request)
        request.app.health.note(request, error, self.ticked_at or request.arrived)
        request.failed(error)

    def shed(self, request: Request, why: str, **context: Any) -> None:
        self.end(request)
        self.refuse(request, why, **context)

    def refuse(self, request: Request, why: str, **context: Any) -> None:
        request.app.traffic.stats.shed += 1
        self.turn_away(request, UnderstudyError(Code.SHED, f"overloaded: {why}", **context))

    def turn_away(self, request: Request, error: UnderstudyError) -> None:
        request.done = True
        request.failed(error)
