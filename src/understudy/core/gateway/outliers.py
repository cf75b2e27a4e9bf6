"""Replicas that answer, but worse than their equals: told by comparison, ejected like failing ones.

Equals are replicas of the same app, version and variant. In the manner of Envoy's outlier detection
(success-rate and failure-percentage): a minimum volume, and at most half of an app's replicas ejected. Its
mean minus 1.9 standard deviations needs five hosts or more, so other tests stand in for it here.

Latency: the replica's median is above `latency_factor` times the median of its equals' medians (and above
`latency_ms_min`, since nobody is harmed below). Medians are tracked by frugal streaming (Ma, Muthukrishnan
and Sandler, "Frugal streaming for estimating quantiles", 2013, Frugal-1U, here in steps of a factor): one
comparison and one product for each sample, and a single stall doesn't move them.

Alone, a replica is compared with its own history, and by inference time inside the worker, because waiting
is load and no fault of its own. Both the time of a batch and that of a row must be above the factor: one
grows with the load, the other as it shrinks.

Failures: the failed fraction exceeds that of the equals by `failure_margin_fraction`, and significantly
(`core.evidence`, for it is looked at ten times a second).
"""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from understudy.core.evidence import Tally, fails_more
from understudy.core.gateway.breaker import Breaker
from understudy.core.gateway.pace import SAMPLES_MIN
from understudy.core.gateway.rotation import App, Replica
from understudy.settings.gateway import BreakerSettings

ALPHA = 1e-4  # within one window
HISTORY_WEIGHT = 0.01  # of the present, per evaluation (0.1 s) with answers: a memory of about 10 s
EJECTED_MAX_FRACTION = 0.5
PROBE_SPEEDUP = 2.0  # a probe must be this much faster than what it was ejected for


class Outlier(NamedTuple):
    """`limit_s`: how fast a probe must be answered for it to come back; 0 if it isn't about time."""

    replica: Replica
    reason: str
    limit_s: float = 0.0


def find(app: App, settings: BreakerSettings) -> Outlier | None:
    """The replica of `app` to eject now; the next one, if any, is found at the next evaluation.

    To be called at a steady rate of some times a second: it also learns what is usual.
    """
    sound = [r for r in app.replicas.values() if r.sound]
    admitted = [r for r in sound if r.breaker.closed]
    found = None
    for replica in admitted:
        _learn(replica)
        found = found or _judge(replica, [r for r in admitted if r.equals(replica)], settings)
    if found is None or len(sound) - len(admitted) + 1 > EJECTED_MAX_FRACTION * len(sound):
        return None
    return found


def _judge(replica: Replica, equals: list[Replica], settings: BreakerSettings) -> Outlier | None:
    pace, latency_min_s = replica.pace, settings.latency_ms_min / 1000
    slow = pace.samples >= SAMPLES_MIN and pace.latency_s > latency_min_s
    others = [r.pace.latency_s for r in equals if r.pace.samples >= SAMPLES_MIN]
    if slow and others:
        usual_s = median(others)
        if pace.latency_s > settings.latency_factor * usual_s:
            return _too_slow(replica, pace.latency_s, usual_s, f"{len(others)} equals")
    elif slow and not others and pace.usual_batch_us and pace.batch_us > latency_min_s * 1e6:
        much = settings.latency_factor
        if pace.batch_us > much * pace.usual_batch_us and pace.row_us > much * pace.usual_row_us:
            return _too_slow(replica, pace.batch_us / 1e6, pace.usual_batch_us / 1e6, "its own history")
    return _failing(replica, equals, settings)


def _too_slow(replica: Replica, latency_s: float, usual_s: float, whose: str) -> Outlier:
    reason = f"median of {latency_s * 1000:.1f} ms against {usual_s * 1000:.1f} ms of {whose}"
    return Outlier(replica, reason, replica.pace.latency_s / PROBE_SPEEDUP)


def _failing(replica: Replica, equals: list[Replica], settings: BreakerSettings) -> Outlier | None:
    mine = _tally(replica.breaker)
    if not mine.failed or mine.asked < settings.calls_min:
        return None
    theirs = [_tally(r.breaker) for r in equals if r.breaker.calls >= settings.calls_min]
    equal = sum(theirs, Tally(0, 0))
    if not equal.asked or mine.share - equal.share < settings.failure_margin_fraction:
        return None
    if not fails_more(mine, equal, ALPHA):
        return None
    of_equals = f"{equal.failed} of {equal.asked} at its equals"
    return Outlier(replica, f"{mine.failed} of {mine.asked} failed, {of_equals}")


def _tally(breaker: Breaker) -> Tally:
    return Tally(breaker.failures + breaker.failures_alike, breaker.calls)


def _learn(replica: Replica) -> None:
    pace = replica.pace
    readmitted = replica.breaker.closed_at
    if readmitted is not None and readmitted != pace.readmitted_at:
        pace.begin_anew(readmitted)
    if pace.samples < pace.learnt_at:
        return
    if not pace.usual_batch_us:
        pace.usual_batch_us, pace.usual_row_us = pace.batch_us, pace.row_us
    pace.usual_batch_us += _lesson(pace.usual_batch_us, pace.batch_us)
    pace.usual_row_us += _lesson(pace.usual_row_us, pace.row_us)
    pace.learnt_at = pace.samples + 1


def _lesson(usual: float, present: float) -> float:
    """What to add to `usual`: a small part of the difference, and never more than that part of itself.

    Otherwise a replica that slows down a hundredfold would make that its usual pace within a second, before
    its median has caught up with it.
    """
    return HISTORY_WEIGHT * (present - usual) * min(1.0, usual / present if present else 1.0)
