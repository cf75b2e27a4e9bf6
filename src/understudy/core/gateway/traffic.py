"""What is counted of an app's requests."""

from __future__ import annotations

from understudy.wire.messages import AppStats, Result

COUNTERS = ("requests", "failed", "rejected", "degraded", "shed", "limited", "retried", "hedged")


class AnswerSums:
    """Sums over every answer that a replica gave for an app."""

    __slots__ = ("infer_us", "last_at", "queue_us", "requests", "total_s")

    def __init__(self) -> None:
        self.requests = 0
        self.total_s = 0.0  # from the arrival at the gateway
        self.queue_us = 0  # in the worker
        self.infer_us = 0
        self.last_at = 0.0

    def add(self, result: Result, duration_s: float, now: float) -> None:
        self.requests += 1
        self.total_s += duration_s
        self.queue_us += result.queue_us
        self.infer_us += result.infer_us
        self.last_at = now


class TrafficCounts:
    """Of one app at one gateway. `stats` are since the last report, `total` all before it."""

    __slots__ = ("answered", "stats", "total")

    def __init__(self) -> None:
        self.stats = AppStats()
        self.total = AppStats()
        self.answered = AnswerSums()

    @property
    def requests(self) -> int:
        return self.total.requests + self.stats.requests

    def report(self) -> AppStats:
        """What was counted since the last call."""
        stats, self.stats = self.stats, AppStats()
        for name in COUNTERS:
            setattr(self.total, name, getattr(self.total, name) + getattr(stats, name))
        return stats
