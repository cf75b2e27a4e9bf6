"""A circuit breaker per replica: after failures it gets nothing, then exactly one probe request.

Defaults follow Envoy's outlier detection (5 s times the number of ejections in a row), but trip earlier.
`BUSY` never comes here: a busy replica is not a failing one. The probe is known by its stream, so that
what was sent before the breaker opened can neither end a probe nor pass for one.
"""

from __future__ import annotations

from understudy.core.gateway.lifecycles import BreakerState
from understudy.settings.gateway import BreakerSettings

PROBE_TOLERANCE = 1.25  # each slow probe raises the limit by this: a lasting change becomes the new normal


class Breaker:
    """closed -> open -> half-open -> closed or open again. All times in seconds, monotonic."""

    __slots__ = (
        "_alike",
        "_calls",
        "_consecutive",
        "_failures",
        "_limit_s",
        "_previous_alike",
        "_previous_calls",
        "_previous_failures",
        "_rotate_at",
        "_settings",
        "_silent",
        "closed",
        "closed_at",
        "ejections",
        "open_until",
        "probe",
    )

    def __init__(self, settings: BreakerSettings, now: float) -> None:
        self._settings = settings
        self.closed = True
        self.closed_at: float | None = None  # when it was last re-admitted
        self.open_until = 0.0
        self.ejections = 0
        self.probe = 0  # stream of the probe that is under way; 0: none
        self._silent = False  # it last failed by not answering, which a broken network looks like, too
        self._limit_s = 0.0  # ejected for being slow: what a probe must keep to; 0: any answer will do
        self._consecutive = 0
        self._forget(now)

    @property
    def state(self) -> BreakerState:
        if self.closed:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self.probe else BreakerState.OPEN

    @property
    def slow(self) -> bool:
        """It was ejected for being slow, not for failing."""
        return not self.closed and self._limit_s > 0

    @property
    def calls(self) -> int:
        """Judged in the last half to whole window."""
        return self._calls + self._previous_calls

    @property
    def failures(self) -> int:
        """By which nobody else was found to fail."""
        return self._failures + self._previous_failures

    @property
    def failures_alike(self) -> int:
        """By which others failed too, or nobody else was asked."""
        return self._alike + self._previous_alike

    def permits(self, now: float) -> bool:
        """May a request be sent? In half-open state: only while no probe is under way."""
        return self.closed or (now >= self.open_until and not self.probe)

    def sent(self, stream: int) -> None:
        """A request is on its way; if the breaker isn't closed and none is yet, it is the one probe."""
        if not self.closed and not self.probe:
            self.probe = stream

    def succeeded(self, now: float, stream: int, latency_s: float) -> None:
        self._consecutive = 0
        if self.closed:
            if now >= self._rotate_at:
                self._rotate(now)
            self._calls += 1
        elif stream == self.probe:
            if self._limit_s and latency_s > self._limit_s:
                self._open(now + self._next_open_s())
            else:
                self._close(now)

    def failed(self, now: float, jitter: float, stream: int, *, silent: bool = False) -> bool:
        """Note a failure; True if this opened the breaker. `jitter` is a random number in [0, 1).

        `silent`: it didn't answer, rather than answer wrongly.
        """
        settings = self._settings
        self._silent = silent
        self._consecutive += 1
        if not self.closed:
            self._limit_s = 0.0  # from now on it is out for failing, not for being slow
            if stream != self.probe:
                return False
            if now < self.open_until:
                self.probe = 0  # sent in panic: what it was ejected for goes on, that's no relapse
                return False
            self._open(now + self._next_open_s(jitter))
            return True
        if now >= self._rotate_at:
            self._rotate(now)
        self._calls += 1
        self._failures += 1
        too_many = self.calls >= settings.calls_min and (
            self.failures >= settings.failure_fraction * self.calls
        )
        if self._consecutive < settings.consecutive_failures and not too_many:
            return False
        self._open(now + self._next_open_s(jitter))
        return True

    def failed_alike(self, now: float, stream: int) -> bool:
        """Note a failure that may be the request's own: it counts in comparisons only. True: a probe ended.

        It doesn't show that the replica is well either, so the next probe waits, no longer than at first.
        """
        if self.closed:
            if now >= self._rotate_at:
                self._rotate(now)
            self._calls += 1
            self._alike += 1
            return False
        if stream != self.probe:
            return False
        self.probe = 0
        self.open_until = max(self.open_until, now + self._settings.open_s)
        return True

    def eject(self, now: float, jitter: float, limit_s: float = 0.0) -> None:
        """Open although it didn't fail by itself: an outlier. `limit_s`: it is too slow (see `succeeded`)."""
        self._limit_s = limit_s
        self._open(now + self._next_open_s(jitter))

    def heard(self, now: float) -> None:
        """It lives after all. If its silence was all that spoke against it, it may be probed at once."""
        if self._silent:
            self.open_until = min(self.open_until, now)

    def abandoned(self, stream: int) -> None:
        """This one ended without a verdict (cancelled, or the replica was busy): permit another probe."""
        if stream == self.probe:
            self.probe = 0

    def outrun(self, stream: int) -> None:
        """Another replica answered sooner. For one that was ejected as too slow that is the verdict."""
        if self.closed or stream != self.probe:
            return
        if self._limit_s:
            # No clock here: the probe was sent when the last interval was over, or a little later.
            self._open(self.open_until + self._next_open_s())
        else:
            self.probe = 0

    def _next_open_s(self, jitter: float = 0.5) -> float:
        settings = self._settings
        duration_s = min(settings.open_s * (self.ejections + 1), settings.open_s_max)
        return duration_s * (1 + settings.jitter_fraction * (2 * jitter - 1))

    def _open(self, until: float) -> None:
        if not self.closed:
            self._limit_s *= PROBE_TOLERANCE
        self.closed = False
        self.ejections += 1
        self.probe = 0
        self.open_until = until

    def _close(self, now: float) -> None:
        self.closed = True
        self.closed_at = now
        self.probe = 0
        self._limit_s = 0.0
        self._forget(now)

    def _forget(self, now: float) -> None:
        self._calls = self._failures = self._alike = 0
        self._previous_calls = self._previous_failures = self._previous_alike = 0
        self._rotate_at = now + self._settings.window_s / 2

    def _rotate(self, now: float) -> None:
        self._previous_calls, self._calls = self._calls, 0
        self._previous_failures, self._failures = self._failures, 0
        self._previous_alike, self._alike = self._alike, 0
        self._rotate_at = now + self._settings.window_s / 2
        if not self._previous_failures:
            self.ejections = max(0, self.ejections - 1)
