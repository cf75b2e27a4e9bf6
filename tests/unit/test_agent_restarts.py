"""Back-off and crash loops as plain arithmetic."""

from __future__ import annotations

import pytest

from understudy.core.agent.restarts import Blame, CrashHistory, blame
from understudy.settings.agent import AgentTuning
from understudy.wire.errors import Code

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
    assert history.looping == history.paused(1.0) == (KEY,)


def test_only_what_the_controller_has_seen_and_dropped_is_lifted() -> None:
    history = CrashHistory(AgentTuning(crash_loop_count=1))
    history.note(KEY, 1.0, 0.0)
    assert history.acknowledge(frozenset()) == []
    assert history.acknowledge(frozenset({KEY})) == []
    assert history.acknowledge(frozenset()) == [KEY]
    assert history.looping == ()


def test_pauses_double_up_to_their_maximum_and_each_ends_in_one_trial() -> None:
    tuning = AgentTuning(crash_loop_count=3, crash_loop_pause_s=60.0, crash_loop_pause_s_max=200.0)
    history = CrashHistory(tuning)
    now, pauses = 0.0, []
    assert [history.note(KEY, now, 0.0) for _ in range(2)] == [0.0, 0.05]
    for _ in range(4):
        assert history.note(KEY, now, 0.0) is None
        pauses.append(history.due_s(now) - now)
        assert history.paused(now) == (KEY,)
        now = history.due_s(now)
        assert history.paused(now) == (), "it is tried again"
        assert history.looping == (KEY,), "and still under suspicion"
    assert pauses == [60.0, 120.0, 200.0, 200.0]


def test_what_runs_again_is_no_loop_any_more_unless_it_crashes_soon() -> None:
    tuning = AgentTuning(crash_loop_count=1, crash_loop_pause_s=60.0)
    history = CrashHistory(tuning)
    history.note(KEY, 0.0, 0.0)
    assert history.loaded(KEY, 60.0)
    assert not history.loaded(KEY, 61.0), "told once"
    assert history.looping == ()
    assert history.note(KEY, 90.0, 0.0) is None
    assert history.pause_left_s(KEY, 90.0) == 120.0, "it was well for less than a pause"
    assert history.loaded(KEY, 210.0)
    history.note(KEY, 400.0, 0.0)
    assert history.pause_left_s(KEY, 400.0) == 60.0, "it was well for longer: another story"


@pytest.mark.parametrize("whose", [Blame.PLACE, Blame.NOBODY])
def test_what_is_not_the_variants_own_never_adds_up_to_a_loop(whose: Blame) -> None:
    tuning = AgentTuning(crash_loop_count=3)
    history = CrashHistory(tuning)
    for n in range(20):
        delay_s = history.note(KEY, n * 0.1, 0.0, whose)
        assert delay_s is not None
    assert history.note(KEY, 2.0, 0.0) == 10.0, "its own first crash is its first, however long it backs off"
    assert history.looping == ()


def test_each_kind_of_failure_to_load_is_somebodys() -> None:
    assert {code: blame(code) for code in Code if blame(code) is not Blame.VARIANT} == {
        Code.ARTIFACT_MISSING: Blame.PLACE,
        Code.ARTIFACT_CORRUPT: Blame.PLACE,
        Code.TOO_LARGE: Blame.PLACE,
        Code.UNAVAILABLE: Blame.PLACE,
        Code.LINK_LOST: Blame.NOBODY,
        Code.DRAINING: Blame.NOBODY,
        Code.CANCELLED: Blame.NOBODY,
    }
