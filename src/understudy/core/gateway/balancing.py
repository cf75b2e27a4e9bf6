"""Which of an app's best replicas a request goes to: the least loaded one, those that start slowly aside.

Slow start: a replica that is new or was re-admitted gets a growing share, not all at once. Which ones and
how much is worked out in `rotation.App.refresh`; here a request's turn is decided, by counting: a replica
with a share of 0.1 gets every tenth request.
"""

from __future__ import annotations

from understudy.core.gateway.rotation import OUTSTANDING_MAX, App, Replica, Request, load_of

QUEUE_MAX = 8  # longer at the others than here: then it helps, new or not


def pick(app: App, now: float) -> Replica | None:
    """The least loaded of the best replicas; None if there is none or none has room."""
    best = app.best
    if app.ramping and (ramped := _ramped(app, now)) is not None:
        return ramped
    if len(best) == 1:
        replica = best[0]
    elif best:
        replica = min(best, key=load_of)
        best.remove(replica)  # equally loaded ones take turns,
        best.append(replica)  # or all but one would do nothing, and nobody would know how fast they are
    else:
        return None
    if replica.has_room(now):
        return replica
    # One that says BUSY has little outstanding, and must not hide those that have room.
    return min((r for r in best if r.has_room(now)), key=load_of, default=None)


def another(request: Request, now: float) -> Replica | None:
    """The best routable replica that has not had this request."""
    busy = {flight.replica.id for flight in request.flights}
    for replica in request.app.ranked:
        if replica.id not in request.tried and replica.id not in busy and replica.has_room(now):
            return replica
    return None


def _ramped(app: App, now: float) -> Replica | None:
    """The ramping replica that this request goes to; None: to one of `app.best`."""
    ramping, best = app.ramping, app.best
    queued = min((len(r.outstanding) for r in best if r.has_room(now)), default=OUTSTANDING_MAX)
    late = all(r.owes_since(now) + app.patience.hedge_delay_s < now for r in best)
    chosen = None
    for replica in ramping:
        replica.ramp.credit = min(replica.ramp.credit + replica.ramp.share, 1.0)
        relief = late or queued >= min(len(replica.outstanding) + QUEUE_MAX, OUTSTANDING_MAX)
        if chosen is None and replica.has_room(now) and (relief or replica.ramp.credit >= 1.0 - 1e-9):
            replica.ramp.credit = 0.0
            chosen = replica
    return chosen
