"""A circuit breaker per replica: after failures it gets nothing, then exactly one probe request.

Defaults follow Envoy's outlier detection (5 s times the number of ejections in a row), but trip earlier.
`BUSY` never comes here: a busy replica is not a failing one.
"""

from __future__ import annotations

from understudy.config import BreakerSettings


class Breaker:
    """closed -> open -> half-open -> closed or open again. All times in seconds, monotonic."""

    __slots__ = (
        "_calls",
        "_consecutive",
        "_failures",
        "_previous_calls",
        "_previous_failures",
        "_probe_sent",
        "_rotate_at",
        "_settings",
        "closed",
        "ejections",
        "open_until",
    )

    def __init__(self, settings: BreakerSettings, now: float) -> None:
        self._settings = settings
        self.closed = True
        self.open_until = 0.0
        self.ejections = 0
        self._consecutive = 0
        self._probe_sent = False
        self._calls = self._failures = 0
        self._previous_calls = self._previous_failures = 0
        self._rotate_at = now + settings.window_s / 2

    @property
    def state(self) -> str:
        if self.closed:
            return "closed"
        return "half-open" if self._probe_sent else "open"

    def permits(self, now: float) -> bool:
        """May a request be sent? In half-open state: only while no probe is under way."""
        return self.closed or (now >= self.open_until and not self._probe_sent)

    def sent(self) -> None:
        """A request is on its way; if the breaker isn't closed, it is the one probe."""
        if not self.closed:
            self._probe_sent = True

    def succeeded(self, now: float) -> None:
        self._consecutive = 0
        if self.closed:
            if now >= self._rotate_at:
                self._rotate(now)
            self._calls += 1
        elif self._probe_sent:
            self._close(now)

    def failed(self, now: float, jitter: float) -> bool:
        """Note a failure; True if this opened the breaker. `jitter` is a random number in [0, 1)."""
        settings = self._settings
        self._consecutive += 1
        if not self.closed:
            if self._probe_sent:
                self._open(now, jitter)
                return True
            return False
        if now >= self._rotate_at:
            self._rotate(now)
        self._calls += 1
        self._failures += 1
        calls = self._calls + self._previous_calls
        failures = self._failures + self._previous_failures
        too_many = calls >= settings.calls_min and failures >= settings.failure_fraction * calls
        if self._consecutive < settings.consecutive_failures and not too_many:
            return False
        self._open(now, jitter)
        return True

    def abandoned(self) -> None:
        """The probe ended without a verdict (cancelled, or the replica was busy): permit another one."""
        self._probe_sent = False

    def _open(self, now: float, jitter: float) -> None:
        settings = self._settings
        self.closed = False
        self.ejections += 1
        self._probe_sent = False
        duration_s = min(settings.open_s * self.ejections, settings.open_s_max)
        spread = 1 + settings.jitter_fraction * (2 * jitter - 1)
        self.open_until = now + duration_s * spread

    def _close(self, now: float) -> None:
        self.closed = True
        self._probe_sent = False
        self._calls = self._failures = 0
        self._previous_calls = self._previous_failures = 0
        self._rotate_at = now + self._settings.window_s / 2

    def _rotate(self, now: float) -> None:
        self._previous_calls, self._calls = self._calls, 0
        self._previous_failures, self._failures = self._failures, 0
        self._rotate_at = now + self._settings.window_s / 2
        if not self._previous_failures:
            self.ejections = max(0, self.ejections - 1)
