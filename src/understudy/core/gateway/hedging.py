"""When a second copy of a slow request is worth sending."""

from __future__ import annotations

from understudy.core.gateway.rotation import UNPROVEN_FACTOR, Replica, Request
from understudy.settings.gateway import HedgeSettings

HEDGE_DEGRADED_FACTOR = 1.5  # patience before a smaller variant may answer in place of a slow full-size one


def may_hedge(request: Request, settings: HedgeSettings) -> bool:
    """Whether a copy of `request`, which is late, may be sent at all."""
    app = request.app
    if not settings.enabled or not app.spec.idempotent or request.isolated or len(request.flights) != 1:
        return False
    # In an overload all are late because there is too much to do: a copy would be more of it.
    return request.flights[0].replica.suspect or not app.allowance.concurrency.overloaded


def hedge_due(request: Request, other: Replica, settings: HedgeSettings, now: float) -> bool:
    """Whether to send it to `other` now. Withdraws from the budget, unless the first replica is suspect."""
    app, flight = request.app, request.flights[0]
    patience_s = app.patience.hedge_delay_s
    if flight.replica.unproven_s(request.arrived) > settings.unproven_s:
        patience_s *= UNPROVEN_FACTOR
    if other.rank > flight.replica.rank:
        patience_s *= HEDGE_DEGRADED_FACTOR
    if now - flight.sent_at < patience_s:
        return False
    return flight.replica.suspect or app.patience.hedge_budget.withdraw(now)
