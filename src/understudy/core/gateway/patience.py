"""How long an app's answers may take before something is done about it, by how long they took of late."""

from __future__ import annotations

from understudy.core.gateway.budget import Budget
from understudy.core.gateway.latency import LatencyDigest
from understudy.settings.gateway import GatewayTuning
from understudy.wire.records import AppVersion

HEDGE_SAMPLES_MIN = 20  # answers seen before the live quantile is believed
SILENT_DEADLINE_FRACTION = 0.25  # after so much of an app's deadline a replica that owes an answer is silent
SLOW_FACTOR = 2.0  # times the live p99: later than any answer of a replica that is well


class Patience:
    """Of one app. Durations in seconds, brought up to date some times a second."""

    def __init__(self, spec: AppVersion, settings: GatewayTuning, now: float) -> None:
        self._settings = settings
        self.digest = LatencyDigest(now)
        # Until enough answers were seen, a variant's measured profile says how long they may take.
        known_s = max((v.profile.latency_ms for v in spec.variants if v.profile), default=0.0) / 1000
        self.hedge_delay_s = max(settings.hedge.delay_ms_min * 4 / 1000, 2 * known_s)
        self.silence_s = settings.suspicion.silence_ms_min * 4 / 1000
        self.silence_s = max(self.silence_s, settings.suspicion.silence_factor * known_s)
        self.late_s = max(self.silence_s, spec.deadline_ms / 1000 * SILENT_DEADLINE_FRACTION)
        self.retry_budget = Budget(settings.retry.budget_fraction, settings.retry.budget_min, now)
        self.hedge_budget = Budget(settings.hedge.budget_fraction, settings.retry.budget_min, now)
        self.asked_lately = False  # since the last retune
        self._deposited = 0

    def retune(self, requests: int, deadline_s: float, now: float) -> None:
        """Bring delays, bounds and budgets up to date. `requests`: since ever. `deadline_s`: the app's."""
        self.digest.rotate(now)
        self.retry_budget.deposit(requests - self._deposited, now)
        self.hedge_budget.deposit(requests - self._deposited, now)
        self.asked_lately = requests != self._deposited
        self._deposited = requests
        if self.digest.samples < HEDGE_SAMPLES_MIN:
            return
        hedge, suspicion = self._settings.hedge, self._settings.suspicion
        high_s = self.digest.quantile(hedge.quantile) or 0.0
        delay_s = max(high_s * hedge.factor, hedge.delay_ms_min / 1000)
        self.hedge_delay_s = min(delay_s, hedge.delay_ms_max / 1000)
        p99_s = self.digest.quantile(0.99) or 0.0
        # With a copy elsewhere before much of the deadline is spent; but no sooner than slow answers come.
        in_time_s = max(p99_s * SLOW_FACTOR, deadline_s * SILENT_DEADLINE_FRACTION)
        silence_s = min(p99_s * suspicion.silence_factor, in_time_s)
        self.silence_s = max(silence_s, suspicion.silence_ms_min / 1000)
        self.late_s = max(in_time_s, self.silence_s)
