"""Brown-out: what an overloaded app can't take, its ready smaller variants may answer, instead of nobody.

After Klein and others, "Brownout: building more robust cloud applications" (ICSE 2014): quality is given up
before availability. Here the full-size replicas keep as much as they can take in time, and only the rest
overflows, up to a limit of its own. Nothing is loaded for it: that memory is reserved for failures.
"""

from __future__ import annotations

from understudy.core.gateway.admission import Concurrency
from understudy.settings.gateway import AdmissionSettings

GAP_S = 0.5  # refusals less far apart than this are one overload


class Brownout:
    """Whether one app is in it. Begins when overload lasts, ends when nothing has overflowed for a while."""

    __slots__ = ("_after_s", "_calm_s", "_overloaded_at", "_overloaded_since", "answers", "concurrency", "on")

    def __init__(self, settings: AdmissionSettings, now: float) -> None:
        self._after_s = settings.brownout_after_ms / 1000
        self._calm_s = settings.brownout_calm_ms / 1000
        self._overloaded_at = float("-inf")
        self._overloaded_since = now
        self.on = False
        self.answers = 0  # by the smaller variants because of this
        self.concurrency = Concurrency(settings, now)  # of the smaller variants

    def retune(self, overflowed: bool, possible: bool, now: float) -> bool:
        """True if it began or ended. `overflowed`: refused by the full-size replicas since the last call."""
        if overflowed:
            self._overloaded_at = now
        elif now - self._overloaded_at >= GAP_S:
            self._overloaded_since = now
        was_on = self.on
        if not possible or (was_on and now - self._overloaded_at >= self._calm_s):
            self.on = False
        elif now - self._overloaded_since >= self._after_s:
            self.on = True
        if self.on and not was_on:
            self.concurrency.skip(self.answers, now)
        return self.on is not was_on
