"""Who lives, works, stands still or hangs, by what is seen of it; and what asking may cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.core.agent.vitality import ASKING_S, Signs, Verdict, Vitality
from understudy.settings.agent import AgentTuning

TUNING = AgentTuning()


def known(latency_s: float = 0.001, deadline_s: float = 1.0) -> Vitality:
    life = Vitality()
    life.begin(100.0, latency_s, deadline_s, TUNING.probe_interval_ms / 1000)
    return life


@given(
    running_s=st.floats(0.0, 20.0),
    heard=st.booleans(),
    cpu_s=st.floats(0.0, 1.0),
    moved=st.booleans(),
    rows=st.integers(1, 32),
)
def test_within_its_apps_deadline_work_is_work(
    running_s: float, heard: bool, cpu_s: float, moved: bool, rows: int
) -> None:
    """Also if it sleeps with the interpreter's lock: neither its loop nor the processor says a word then."""
    signs = Signs(running_s, heard, cpu_s=cpu_s, moved=moved, running_s=running_s, rows=rows)
    assert known(deadline_s=20.0).judge(signs, TUNING)[0] is Verdict.BUSY


@pytest.mark.parametrize(
    ("latency_s", "deadline_s", "budget_s", "rows", "permitted_s"),
    [
        (0.001, 20.0, 0.0, 1, 20.0),  # its app's deadline
        (0.001, 1.0, 60.0, 1, 60.0),  # what the client has time for
        (1.0, 1.0, 1.0, 1, 8.0),  # a variant that always takes longer than its app's deadline
        (0.3, 1.0, 1.0, 32, 76.8),  # a large batch of it
        (0.001, 0.05, 0.05, 1, 1.0),  # at least
    ],
)
def test_what_a_batch_may_take_follows_from_deadlines_and_measured_times(
    latency_s: float, deadline_s: float, budget_s: float, rows: int, permitted_s: float
) -> None:
    life = known(latency_s, deadline_s)

    def verdict(running_s: float) -> Verdict:
        signs = Signs(running_s, heard=True, running_s=running_s, rows=rows, budget_s=budget_s)
        return life.judge(signs, TUNING)[0]

    assert verdict(0.99 * permitted_s) is Verdict.BUSY
    assert verdict(1.01 * permitted_s) is Verdict.OVERDUE
    assert verdict(1.01 * TUNING.hang_factor * permitted_s) is Verdict.HUNG


def test_a_stopped_process_stands_still_whatever_it_was_doing() -> None:
    signs = Signs(0.4, stopped=True, cpu_s=0.1, moved=True, running_s=0.1)
    assert known(deadline_s=60.0).judge(signs, TUNING)[0] is Verdict.STILL


def test_a_process_that_is_silent_without_work_stands_still() -> None:
    assert known().judge(Signs(0.4), TUNING)[0] is Verdict.STILL


def test_a_loop_that_lives_over_a_queue_that_does_not_move_is_no_life() -> None:
    assert known().judge(Signs(0.4, heard=True), TUNING)[0] is Verdict.STILL
    assert known().judge(Signs(0.4, heard=True, moved=True), TUNING)[0] is Verdict.BUSY


def test_a_silent_process_that_computes_beside_its_queue_has_its_apps_time_for_it() -> None:
    assert known(deadline_s=5.0).judge(Signs(4.0, cpu_s=0.4), TUNING)[0] is Verdict.BUSY
    assert known(deadline_s=5.0).judge(Signs(6.0, cpu_s=0.4), TUNING)[0] is Verdict.STILL


@pytest.mark.parametrize("latencies_s", [[0.3], [0.002] * 40, [5.0] + [0.001] * 9, [0.0001] * 30])
def test_probes_of_idle_replicas_cost_a_bounded_share_of_a_core(latencies_s: list[float]) -> None:
    lives = [known(latency_s) for latency_s in latencies_s]
    spent_s = 0.0
    while (now := min(life.ask_at_s for life in lives)) < 100.0 + 6000.0:
        life = next(life for life in lives if life.ask_at_s == now)
        inference = life.asks_for_proof(now, len(lives), TUNING)
        spent_s += ASKING_S + life.latency_s * inference
        life.passed(now, 0.0 if inference else now - life.proven_s)
    assert spent_s <= 1.1 * TUNING.probe_core_fraction * 6000.0
    assert all(now - life.proven_s < 6000.0 for life in lives), "each was proven"


def test_small_nodes_prove_each_replica_at_each_interval() -> None:
    life, now = known(), 100.0
    for _ in range(20):
        now = life.ask_at_s
        assert life.asks_for_proof(now, 3, TUNING)
        life.passed(now + 0.001, 0.0)
    assert now == pytest.approx(100.0 + 20 * TUNING.probe_interval_ms / 1000)


def test_an_answered_request_is_as_good_as_a_proof() -> None:
    life = known(latency_s=0.3)
    assert not life.asks_for_proof(life.ask_at_s, 1, TUNING)
    life.passed(140.0, proven_ago_s=1.0)
    assert not life.asks_for_proof(140.5, 1, TUNING), "a request was answered meanwhile"
    life.passed(141.0, proven_ago_s=30.0)
    assert life.asks_for_proof(175.0, 1, TUNING)
