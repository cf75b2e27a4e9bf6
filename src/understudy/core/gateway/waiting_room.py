"""Requests that no replica has: until one has room, as long as there is hope."""

from __future__ import annotations

from understudy.core.gateway.balancing import pick
from understudy.core.gateway.flights import Flights
from understudy.core.gateway.rotation import App, Replica, Request, load_of
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
        if app.queues.suspects:
            self._try_suspects(app, now)
        while app.queues.waiting:
            replica = pick(app, now)
            if replica is None:
                return
            request = app.queues.waiting.popleft()
            if not request.done:
                self._flights.send(request, replica, now)

    def _try_suspects(self, app: App, now: float) -> None:
        """One at a time, alone on its replica: an idle one, or one that gets nothing else until it is idle.

        What waits meanwhile is not to be shed for it: with half of the waiting room full, after the time of a
        trial, or while the former one goes on, a suspect is tried beside others.
        """
        queues = app.queues
        trial_s = self._settings.retry.trial_ms / 1000
        while queues.suspects and (queues.isolated is None or queues.isolated.in_flight_s(now) > trial_s):
            request = queues.suspects[0]
            if request.done:
                queues.suspects.popleft()
                continue
            replica = self._for_trial(request, now)
            if replica is None:
                return
            crowded = len(queues.waiting) >= self._settings.admission.waiting_max // 2
            if replica.outstanding and queues.isolated is None and not crowded:
                if queues.held is not replica:
                    queues.hold(replica, now, now + trial_s)
                if now < queues.held_at + trial_s:
                    return
            queues.suspects.popleft()
            if replica.outstanding:
                queues.let_go()
            else:
                queues.hold(replica, now, now + trial_s)
            request.isolated = True
            queues.isolated = request
            self._flights.send(request, replica, now)

    def _for_trial(self, request: Request, now: float) -> Replica | None:
        """The one that is kept for it; else an idle one; else the best, to be emptied."""
        fit = [r for r in request.app.ranked if r.id not in request.tried]
        held = request.app.queues.held
        if held is not None and held in fit:
            return held
        fit = [r for r in fit if r.has_room(now)]
        return next((r for r in fit if not r.outstanding), fit[0] if fit else None)

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
