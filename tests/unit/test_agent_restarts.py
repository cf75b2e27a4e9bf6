"""Back-off and crash loops as plain arithmetic."""

from __future__ import annotations

import pytest

from understudy.core.agent.restarts import CrashHistory
from understudy.settings.agent import AgentTuning

KEY = ("digits", 1, "full")
TUNING = AgentTuning(crash_loop_count=100, backoff_ms=50.0, backoff_ms_max=1000.0)


def test_delays_double_up_to_their_maximum() -> None:
    history = CrashHistory(TUNING)
    delays = [history.note(KEY, 10.0 + n, 0.0) for n in range(8)]
    assert delays == [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


@pytest.mark.parametrize("jitter", [-1.0, 0.0, 0.5, 1.0])
def test_jitter_spreads_the_delay_by_the_configured_fraction(jitter: float) -> None:
    delay_s = CrashHistory(TUNING).delay_s(2, jitter)
    assert delay_s == pytest.approx(0.05 * (1 + jitter * TUNING.backoff_jitter_fraction))


def test_variants_are_counted_apart() -> None:
    history = CrashHistory(AgentTuning(crash_loop_count=2))
    assert history.note(KEY, 1.0, 0.0) == 0.0
    assert history.note(("digits", 2, "full"), 1.0, 0.0) == 0.0
    assert history.note(KEY, 1.0, 0.0) is None
    assert history.quarantined == (KEY,)


def test_only_what_the_controller_has_seen_and_dropped_is_lifted() -> None:
    history = CrashHistory(AgentTuning(crash_loop_count=1))
    history.note(KEY, 1.0, 0.0)
    assert history.acknowledge(frozenset()) == []
    assert history.acknowledge(frozenset({KEY})) == []
    assert history.acknowledge(frozenset()) == [KEY]
    assert history.quarantined == ()


def test_ends_that_are_not_the_variants_own_count_towards_no_quarantine() -> None:
    history = CrashHistory(AgentTuning(crash_loop_count=3))
    for n in range(5):
        assert history.note(KEY, 1.0 + n, 0.0, blames_variant=False) is not None
    assert history.note(KEY, 7.0, 0.0) is not None
    assert history.note(KEY, 8.0, 0.0) is not None
    assert history.note(KEY, 9.0, 0.0) is None
