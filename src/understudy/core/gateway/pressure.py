"""What a gateway refuses when it has too much of everything: by criticality, then by fair share.

Two signals say that the gateway as a whole, or the machine that it shares with workers, is overloaded: its
own loop runs late, and the requests in flight over all apps near their bound. Then

- a dial turns: first best-effort apps are cut from everything to nothing, then standard ones, critical ones
  last and never wholly. It turns up fast and down slowly (the levels of DAGOR, "Overload control for scaling
  WeChat microservices", SoCC 2018, driven by lateness as there by queuing time).
- while half of the bound is in flight, no app may have more than its share of the other half by `weight`
  (all apps with requests share). So a flood is held, and the others always find room.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from understudy.settings.gateway import AdmissionSettings
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import Criticality

if TYPE_CHECKING:
    from understudy.core.gateway.rotation import App, Replica, Request

CROWDED_FRACTION = 0.5  # of `inflight_total_max`
DIAL_UP = 0.2  # per retune while the signals are high: a class is cut off in half a second
DIAL_DOWN = 0.05  # per retune while they are low
CALM_FRACTION = 0.5  # of the bounds: between this and the whole the dial stands still
CRITICAL_ADMITTED_MIN = 0.1
ORDER = (Criticality.BEST_EFFORT, Criticality.STANDARD, Criticality.CRITICAL)
DIAL_MAX = float(len(ORDER))


class Gate:
    """The gateway-wide part of admission, and the question whether a request is refused."""

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        self._late_s = 0.0
        self._ticks = 0
        self.dial = 0.0  # 0: all are let in; 1: no best-effort; 2: no standard
        self.crowded = False

    def observe(self, late_s: float) -> None:
        """A tick came `late_s` late."""
        self._late_s += late_s
        self._ticks += 1

    def watch(self, apps: Iterable[App], inflight: int) -> None:
        """On each tick: hold apps to their shares as soon as there is a crowd."""
        crowded = inflight > CROWDED_FRACTION * self._settings.inflight_total_max
        if crowded != self.crowded:
            self.crowded = crowded
            self.set_limits(apps)

    def retune(self, apps: Iterable[App], inflight: int) -> None:
        """Turn the dial. Some times a second."""
        late_ms = self._late_s / max(self._ticks, 1) * 1000
        fullness = inflight / self._settings.inflight_total_max
        self._late_s, self._ticks = 0.0, 0
        load = fullness
        if inflight >= self._settings.lag_inflight_min:
            # Otherwise others keep the machine busy, and shedding what little there is wouldn't help.
            load = max(load, late_ms / self._settings.lag_ms_max)
        if load > 1.0 or fullness > (1 + CROWDED_FRACTION) / 2:
            self.dial = min(self.dial + DIAL_UP, DIAL_MAX)
        elif load < CALM_FRACTION:
            self.dial = max(self.dial - DIAL_DOWN, 0.0)
        self.set_limits(apps)

    def admitted_fraction(self, criticality: Criticality) -> float:
        fraction = min(max(1 + ORDER.index(criticality) - self.dial, 0.0), 1.0)
        return max(fraction, CRITICAL_ADMITTED_MIN) if criticality is Criticality.CRITICAL else fraction

    def set_limits(self, apps: Iterable[App]) -> None:
        """Bring `Allowance.limit` up to date: the one number that the path of a request looks at."""
        apps = list(apps)
        for_shares = CROWDED_FRACTION * self._settings.inflight_total_max if self.crowded else float("inf")
        weights = sum((app.spec.weight for app in apps if app.inflight), 0.0) or 1.0
        for app in apps:
            allowance = app.allowance
            allowance.share = max(for_shares * app.spec.weight / weights, 1.0)
            allowance.admitted_fraction = self.admitted_fraction(app.spec.criticality)
            allowance.spacing_s = allowance.concurrency.wait_s(0)
            cut = allowance.admitted_fraction < 1.0 or not app.ranked
            allowance.limit = 0 if cut else min(float(allowance.concurrency.limit), allowance.share)

    def refusal(self, request: Request, now: float) -> str:
        """Why `request` can't be let in; empty if it can. Asked only at its `limit` or a near deadline."""
        app = request.app
        if not app.ranked:
            # Nothing is overloaded, something is lost: what waits for it has a bound of its own.
            return "too many requests in flight" if app.inflight >= self._settings.inflight_max else ""
        allowance = app.allowance
        if allowance.admitted_fraction < 1.0:
            allowance.admitted_credit += allowance.admitted_fraction
            if allowance.admitted_credit < 1.0:
                return f"the gateway is overloaded, and {app.spec.criticality} apps are shed before others"
            allowance.admitted_credit -= 1.0
        if app.inflight >= allowance.share:
            return f"the gateway is overloaded, and the app has its share of {allowance.share:.0f} in flight"
        concurrency = allowance.concurrency
        inflight = app.inflight - app.stand_ins_inflight()
        if inflight >= concurrency.limit:
            concurrency.refused += 1
            return f"{inflight} in flight are as many as can be answered in time"
        wait_s, left_s = concurrency.wait_s(inflight), request.deadline - now
        if inflight >= self._settings.inflight_min * len(app.best) and wait_s > left_s:
            # A client in too much of a hurry is no sign that the app is overloaded.
            concurrency.refused += left_s >= app.spec.objective_s
            return f"the wait would be {wait_s * 1000:.0f} ms, longer than the deadline"
        return ""

    def stand_in(self, app: App, now: float) -> Replica | None:
        """In a brown-out, a smaller variant that has room for what the best replicas can't take."""
        if not app.allowance.brownout.on or self.dial or app.inflight >= app.allowance.share:
            return None
        if app.stand_ins_inflight() >= app.allowance.brownout.concurrency.limit:
            app.allowance.brownout.concurrency.refused += 1
            return None
        free = [replica for replica in app.stand_ins() if replica.has_room(now)]
        return min(free, key=lambda replica: len(replica.outstanding), default=None)

    def over_rate(self, request: Request, now: float) -> UnderstudyError | None:
        """Count it; what to tell a client that asks too often."""
        app, client = request.app, request.client
        app.traffic.stats.requests += 1
        app.conducts.clients.heard(client, now)
        if app.clients is None:
            return None
        wait_s = app.clients.take(client, now)
        if not wait_s:
            return None
        app.traffic.stats.limited += 1
        who, rate = client or "this client", app.clients.rate
        why = f"{who} asks for more than {rate.requests_per_s:g} requests/s (burst {rate.burst})"
        return UnderstudyError(Code.RATE_LIMITED, f"{why}; come back later", wait_s=round(wait_s, 3))
