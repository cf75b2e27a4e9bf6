"""The breaker's table: when it opens, what half-open lets through, how long it stays open."""

import pytest

from understudy.config import BreakerSettings
from understudy.core.gateway.breaker import Breaker

DEFAULTS = BreakerSettings()
MIDDLE = 0.5  # jitter that changes nothing


def opened(settings: BreakerSettings = DEFAULTS) -> Breaker:
    breaker = Breaker(settings, now=0.0)
    for _ in range(settings.consecutive_failures):
        breaker.failed(0.0, MIDDLE)
    return breaker


def test_opens_after_consecutive_failures_and_not_before():
    breaker = Breaker(BreakerSettings(consecutive_failures=3), now=0.0)
    assert not breaker.failed(0.0, MIDDLE)
    assert not breaker.failed(0.0, MIDDLE)
    breaker.succeeded(0.0)
    assert not breaker.failed(0.0, MIDDLE)
    assert not breaker.failed(0.0, MIDDLE)
    assert breaker.failed(0.0, MIDDLE)
    assert not breaker.permits(0.0)


def test_opens_on_half_of_twenty_calls_although_never_three_in_a_row():
    breaker = Breaker(BreakerSettings(), now=0.0)
    results = [breaker.failed(0.1, MIDDLE) if i % 2 else breaker.succeeded(0.1) for i in range(20)]
    assert results[-1] is True
    assert results.count(True) == 1


def test_old_failures_are_forgotten():
    breaker = Breaker(BreakerSettings(window_s=10), now=0.0)
    for i in range(18):
        breaker.failed(0.1, MIDDLE) if i % 2 else breaker.succeeded(0.1)
    for i in range(18):
        assert not (breaker.failed(20.0, MIDDLE) if i % 4 == 0 else breaker.succeeded(20.0))


def test_half_open_permits_exactly_one_probe():
    breaker = opened()
    assert not breaker.permits(4.9)
    assert breaker.permits(5.0)
    breaker.sent()
    assert breaker.state == "half-open"
    assert not breaker.permits(5.0)
    breaker.succeeded(5.1)
    assert breaker.state == "closed"
    assert breaker.permits(5.1)


def test_a_failed_probe_opens_for_longer_up_to_the_cap():
    breaker = opened(BreakerSettings(open_s=5, open_s_max=12))
    lengths, now = [], 0.0
    for _ in range(3):
        lengths.append(breaker.open_until - now)
        now = breaker.open_until
        breaker.sent()
        assert breaker.failed(now, MIDDLE)
    assert lengths == pytest.approx([5, 10, 12])


def test_a_probe_without_verdict_may_be_repeated():
    breaker = opened()
    breaker.sent()
    breaker.abandoned()
    assert breaker.permits(5.0)


@pytest.mark.parametrize(("jitter", "length_s"), [(0.0, 4.0), (0.5, 5.0), (1.0, 6.0)])
def test_jitter_spreads_the_return(jitter: float, length_s: float):
    breaker = Breaker(BreakerSettings(consecutive_failures=1), now=0.0)
    breaker.failed(0.0, jitter)
    assert breaker.open_until == pytest.approx(length_s)
