"""Slow start: a replica that is new or was re-admitted gets a growing share, not all at once.

Which ones and how much is worked out in `rotation.App.refresh`; here a request's turn is decided, by
counting: a replica with a share of 0.1 gets every tenth request.
"""

from __future__ import annotations

from understudy.core.gateway.rotation import App, Replica

QUEUE_MAX = 8  # longer at the others than here: then it helps, new or not


def turn(app: App, now: float, outstanding_max: int) -> Replica | None:
    """The ramping replica that this request goes to; None: to one of `app.best`."""
    ramping, best = app.ramping, app.best
    queued = min((len(r.outstanding) for r in best if r.busy_until <= now), default=outstanding_max)
    chosen = None
    for replica in ramping:
        replica.credit = min(replica.credit + replica.share, 1.0)
        has_room = len(replica.outstanding) < outstanding_max and replica.busy_until <= now
        relief = queued >= min(len(replica.outstanding) + QUEUE_MAX, outstanding_max)
        if chosen is None and has_room and (relief or replica.credit >= 1.0 - 1e-9):
            replica.credit = 0.0
            chosen = replica
    return chosen
