"""The breaker's table: when it opens, what half-open lets through, how long it stays open."""

import pytest

from understudy.core.gateway.breaker import Breaker
from understudy.settings.gateway import BreakerSettings

DEFAULTS = BreakerSettings()
MIDDLE = 0.5  # jitter that changes nothing


def opened(settings: BreakerSettings = DEFAULTS) -> Breaker:
    breaker = Breaker(settings, now=0.0)
    for _ in range(settings.consecutive_failures):
        breaker.failed(0.0, MIDDLE, 1)
    return breaker


def test_opens_after_consecutive_failures_and_not_before():
    breaker = Breaker(BreakerSettings(consecutive_failures=3), now=0.0)
    assert not breaker.failed(0.0, MIDDLE, 1)
    assert not breaker.failed(0.0, MIDDLE, 1)
    breaker.succeeded(0.0, 1, 0.001)
    assert not breaker.failed(0.0, MIDDLE, 1)
    assert not breaker.failed(0.0, MIDDLE, 1)
    assert breaker.failed(0.0, MIDDLE, 1)
    assert not breaker.permits(0.0)


def test_opens_on_half_of_twenty_calls_although_never_three_in_a_row():
    breaker = Breaker(BreakerSettings(), now=0.0)
    results = [
        breaker.failed(0.1, MIDDLE, 1) if i % 2 else breaker.succeeded(0.1, 1, 0.001) for i in range(20)
    ]
    assert results[-1] is True
    assert results.count(True) == 1


def test_old_failures_are_forgotten():
    breaker = Breaker(BreakerSettings(window_s=10), now=0.0)
    for i in range(18):
        breaker.failed(0.1, MIDDLE, 1) if i % 2 else breaker.succeeded(0.1, 1, 0.001)
    for i in range(18):
        assert not (breaker.failed(20.0, MIDDLE, 1) if i % 4 == 0 else breaker.succeeded(20.0, 1, 0.001))


def test_half_open_permits_exactly_one_probe():
    breaker = opened()
    assert not breaker.permits(4.9)
    assert breaker.permits(5.0)
    breaker.sent(1)
    assert breaker.state == "half-open"
    assert not breaker.permits(5.0)
    breaker.succeeded(5.1, 1, 0.001)
    assert breaker.state == "closed"
    assert breaker.permits(5.1)


def test_failures_of_one_that_is_used_in_panic_do_not_eject_it_for_longer():
    breaker = opened()
    for stream in range(2, 12):
        breaker.sent(stream)
        assert not breaker.failed(1.0, MIDDLE, stream)
    assert breaker.permits(5.0), "as after a single ejection"


def test_who_was_silent_and_is_heard_again_is_probed_at_once():
    silent, wrong = Breaker(DEFAULTS, now=0.0), opened()
    for _ in range(DEFAULTS.consecutive_failures):
        silent.failed(0.0, MIDDLE, 1, silent=True)
    for breaker in (silent, wrong):
        breaker.heard(1.0)
    assert silent.permits(1.0), "its network broke, perhaps"
    assert not wrong.permits(1.0), "that it lives was never in doubt"


def test_a_failed_probe_opens_for_longer_up_to_the_cap():
    breaker = opened(BreakerSettings(open_s=5, open_s_max=12))
    lengths, now = [], 0.0
    for _ in range(3):
        lengths.append(breaker.open_until - now)
        now = breaker.open_until
        breaker.sent(1)
        assert breaker.failed(now, MIDDLE, 1)
    assert lengths == pytest.approx([5, 10, 12])


def test_a_probe_without_verdict_may_be_repeated():
    breaker = opened()
    breaker.sent(1)
    breaker.abandoned(1)
    assert breaker.permits(5.0)


@pytest.mark.parametrize(("jitter", "length_s"), [(0.0, 4.0), (0.5, 5.0), (1.0, 6.0)])
def test_jitter_spreads_the_return(jitter: float, length_s: float):
    breaker = Breaker(BreakerSettings(consecutive_failures=1), now=0.0)
    breaker.failed(0.0, jitter, 1)
    assert breaker.open_until == pytest.approx(length_s)


def test_only_the_probe_itself_can_end_a_probe():
    breaker = opened()
    breaker.sent(7)
    assert not breaker.failed(5.1, MIDDLE, 3), "it was sent before the breaker opened"
    breaker.succeeded(5.1, 4, 0.001)
    breaker.abandoned(5)
    breaker.outrun(6)
    breaker.sent(8)
    assert (breaker.state, breaker.probe) == ("half-open", 7)
    assert not breaker.permits(5.1)


def test_one_that_was_too_slow_comes_back_when_it_is_faster_or_after_some_patience():
    breaker = Breaker(DEFAULTS, now=0.0)
    breaker.eject(0.0, MIDDLE, limit_s=0.010)
    assert breaker.open_until == pytest.approx(5.0)
    breaker.sent(1)
    breaker.outrun(1)
    assert breaker.open_until == pytest.approx(15.0)
    now, probes = breaker.open_until, 1
    while not breaker.closed:
        breaker.sent(1)
        breaker.succeeded(now, 1, 0.020)
        now, probes = breaker.open_until, probes + 1
    assert probes == 5
    breaker.eject(0.0, MIDDLE, limit_s=0.010)
    breaker.sent(1)
    breaker.succeeded(now, 1, 0.009)
    assert breaker.closed
