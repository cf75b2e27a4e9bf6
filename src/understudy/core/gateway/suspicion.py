"""Failure detection by missing heartbeats, adaptive to observed jitter, doubting itself first.

A peer is suspect when its next heartbeat is later than `heartbeats_missed` intervals plus some deviations
of the jitter seen so far (after Chen and others, "On the quality of service of failure detectors", 2002).
Suspicion is local and reversible. Like Lifeguard (arXiv 1707.00788), a process that was itself late
blames itself and doubles its patience.
"""

from __future__ import annotations

from understudy.settings.gateway import SuspicionSettings

JITTER_WEIGHT = 0.1  # of the newest arrival in the moving averages
SELF_DOUBT_S = 1.0  # how long one late tick doubles all patience


class SelfDoubt:
    """How far this process trusts its own clock: it stretches timeouts after its loop was late."""

    __slots__ = ("_lag_s", "_until")

    def __init__(self, lag_ms: float) -> None:
        self._lag_s = lag_ms / 1000
        self._until = 0.0

    def ticked(self, late_s: float, now: float) -> None:
        if late_s > self._lag_s:
            self._until = now + SELF_DOUBT_S

    def factor(self, now: float) -> float:
        """1, or 2 while in doubt."""
        return 2.0 if now < self._until else 1.0

    def just_late(self, late_s: float) -> bool:
        return late_s > self._lag_s


class HeartbeatDetector:
    """Watches one peer. `suspect` says what to do now; `heartbeat` and `expired` change it."""

    __slots__ = ("_deviation_s", "_good", "_interval_s", "_last", "_settings", "suspect")

    def __init__(self, settings: SuspicionSettings, interval_s: float, now: float) -> None:
        self._settings = settings
        self._interval_s = interval_s
        self._deviation_s = 0.0
        self._last = now
        self._good = 0
        self.suspect = False

    def heartbeat(self, interval_s: float, now: float) -> bool:
        """Note one; True if this ended a suspicion.

        After a suspicion, `readmit_heartbeats` must arrive on time first.
        """
        gap_s = now - self._last
        self._last = now
        self._interval_s = interval_s
        # A gap that led to suspicion is not jitter: learning from it would make the next loss slower to see.
        late_s = min(max(gap_s - interval_s, 0.0), interval_s)
        self._deviation_s += JITTER_WEIGHT * (late_s - self._deviation_s)
        if not self.suspect:
            return False
        self._good = self._good + 1 if gap_s <= 2 * interval_s else 0
        if self._good < self._settings.readmit_heartbeats:
            return False
        self.suspect = False
        return True

    def patience_s(self) -> float:
        settings = self._settings
        return settings.heartbeats_missed * self._interval_s + settings.deviations * self._deviation_s

    def expired(self, now: float, doubt: float) -> bool:
        """True if the peer becomes suspect at `now`. `doubt` stretches the patience (see `SelfDoubt`)."""
        if self.suspect or now - self._last <= self.patience_s() * doubt:
            return False
        self.accuse()
        return True

    def reconnected(self, now: float) -> None:
        """Its connection is new: the silence before it says nothing."""
        self._last = now

    def accuse(self) -> None:
        """Suspect the peer at once: its connection broke."""
        self.suspect = True
        self._good = 0

    def silent_for_s(self, now: float) -> float:
        return now - self._last
