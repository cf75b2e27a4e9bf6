"""Failure detection by heartbeats: on time, late, jittery, back again."""

from understudy.core.gateway.suspicion import HeartbeatDetector, SelfDoubt
from understudy.settings.gateway import SuspicionSettings

INTERVAL = 0.05


def steady(jitter: float = 0.0) -> tuple[HeartbeatDetector, float]:
    detector = HeartbeatDetector(SuspicionSettings(), INTERVAL, now=0.0)
    now = 0.0
    for i in range(20):
        now += INTERVAL + (jitter if i % 2 else -jitter)
        detector.heartbeat(INTERVAL, now)
    return detector, now


def test_three_missed_heartbeats_are_suspicious():
    detector, now = steady()
    assert not detector.expired(now + 0.149, doubt=1.0)
    assert detector.expired(now + 0.151, doubt=1.0)
    assert detector.suspect


def test_expiry_is_reported_once():
    detector, now = steady()
    assert detector.expired(now + 1, doubt=1.0)
    assert not detector.expired(now + 2, doubt=1.0)


def test_observed_jitter_buys_patience():
    calm, now = steady()
    jittery, later = steady(jitter=0.03)
    assert calm.expired(now + 0.17, doubt=1.0)
    assert not jittery.expired(later + 0.17, doubt=1.0)


def test_a_long_silence_is_not_learned_as_jitter():
    detector, now = steady()
    detector.expired(now + 10, doubt=1.0)
    detector.heartbeat(INTERVAL, now + 10)
    assert detector.patience_s() < 0.3


def test_self_doubt_doubles_patience():
    detector, now = steady()
    assert not detector.expired(now + 0.25, doubt=2.0)
    assert detector.expired(now + 0.31, doubt=2.0)


def test_a_suspect_is_readmitted_after_six_timely_heartbeats():
    detector, now = steady()
    detector.expired(now + 1, doubt=1.0)
    now += 1
    results = []
    for _ in range(8):
        now += INTERVAL
        results.append(detector.heartbeat(INTERVAL, now))
    assert results.index(True) == 6  # the first one ends the long gap and doesn't count
    assert not detector.suspect


def test_a_late_heartbeat_starts_the_count_anew():
    detector, now = steady()
    detector.expired(now + 1, doubt=1.0)
    for gap in [1.0, INTERVAL, INTERVAL, INTERVAL * 3, INTERVAL, INTERVAL, INTERVAL, INTERVAL, INTERVAL]:
        now += gap
        assert not detector.heartbeat(INTERVAL, now)
    assert detector.heartbeat(INTERVAL, now + INTERVAL)


def test_doubt_lasts_a_second():
    doubt = SelfDoubt(lag_ms=50)
    doubt.ticked(0.01, now=0.0)
    assert doubt.factor(0.0) == 1.0
    doubt.ticked(0.2, now=1.0)
    assert doubt.factor(1.9) == 2.0
    assert doubt.factor(2.1) == 1.0
