"""Requests that no replica has: until one has room, as long as there is hope."""

from __future__ import annotations

from understudy.core.gateway.balancing import another, pick
from understudy.core.gateway.flights import Flights
from understudy.core.gateway.rotation import App, Request, load_of
from understudy.settings.gateway import GatewayTuning
from understudy.wire.errors import Code, UnderstudyError

NOBODY = "no replica, and no node can load one"


class WaitingRoom:
    """Of all apps; the queues are those of each app, and bounded."""

    def __init__(self, settings: GatewayTuning, flights: Flights) -> None:
        self._settings = settings
        self._flights = flights

    def park(self, request: Request, now: float) -> None:
        app = request.app
        if app.way_back.hopeless and not app.ranked:
            self._bet(request, now)
        elif len(app.queues.waiting) >= self._settings.admission.waiting_max:
            self._flights.shed(
                request, "too many requests are waiting", limit=self._settings.admission.waiting_max
            )
        else:
            app.queues.waiting.append(request)

    def release(self, app: App, now: float) -> None:
        """Send what waits, as far as there is room: first one suspect, then the others in order."""
        trial_s = self._settings.retry.trial_ms / 1000
        while app.queues.suspects and (
            app.queues.isolated is None or app.queues.isolated.in_flight_s(now) > trial_s
        ):
            request = app.queues.suspects[0]
            other = another(request, now)
            if other is None:
                break
            app.queues.suspects.popleft()
            if not request.done:
                request.isolated = True
                app.queues.isolated = request
                self._flights.send(request, other, now)
        while app.queues.waiting:
            replica = pick(app, now)
            if replica is None:
                return
            request = app.queues.waiting.popleft()
            if not request.done:
                self._flights.send(request, replica, now)

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
            self._flights.send(request, replica, now)
        else:
            self._flights.give_up(request, UnderstudyError(Code.UNAVAILABLE, NOBODY))

    def give_up_waiting(self, app: App) -> None:
        for queue in (app.queues.waiting, app.queues.suspects):
            while queue:
                request = queue.popleft()
                if not request.done:
                    self._flights.give_up(request, UnderstudyError(Code.UNAVAILABLE, NOBODY))
