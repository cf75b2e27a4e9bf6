"""What the comparison under faults makes of samples."""

from __future__ import annotations

import pytest
from benchmarks.faults.windows import (
    ADDED,
    ADMITTED,
    FAILED,
    GOODPUT,
    LAST_BAD,
    P99,
    SHED,
    SHED_P99,
    fault_figures,
    overload_figures,
)

from understudy.demo.load import Sample


def answered(due_s: float, latency_s: float = 0.01, *, correct: bool = True) -> Sample:
    return Sample(0, due_s, 0.0, latency_s, "ok", 200, correct=correct)


def unanswered(due_s: float) -> Sample:
    return Sample(0, due_s, 0.0, 5.0, "timeout")


def refused(due_s: float) -> Sample:
    return Sample(0, due_s, 0.0, 0.002, "status", 503)


def every(period_s: float, begin_s: float, end_s: float) -> list[float]:
    return [begin_s + i * period_s for i in range(round((end_s - begin_s) / period_s))]


def figures_of(*during: Sample, before: tuple[Sample, ...] = ()) -> dict[str, float]:
    steady = [answered(due_s) for due_s in every(0.01, 98.5, 99.9)]
    return fault_figures([*steady, *before, *during], struck_s=100.0, steady_s=1.5, fault_s=3.0)


def test_nothing_happens():
    figures = figures_of(*map(answered, every(0.01, 100, 103)))
    assert figures == pytest.approx({FAILED: 0, LAST_BAD: 0, P99: 10, ADDED: 0})


def test_an_unanswered_request_is_bad_from_the_objective_on_and_as_slow_as_its_client_is_patient():
    good = [answered(due_s) for due_s in every(0.03, 100, 103)]
    figures = figures_of(*good[:-2], unanswered(100.5), unanswered(101.0))
    assert figures == pytest.approx({FAILED: 200, LAST_BAD: 1.25, P99: 5000, ADDED: 4990})


@pytest.mark.parametrize(
    ("bad", "known_s"),
    [(refused(101.0), 1.002), (answered(101.0, 0.3), 1.25), (answered(101.0, correct=False), 1.01)],
)
def test_what_is_not_right_in_time_has_failed(bad: Sample, known_s: float):
    figures = figures_of(bad, *map(answered, every(0.01, 101.5, 102)))
    assert figures[LAST_BAD] == pytest.approx(known_s)
    assert figures[FAILED] == pytest.approx(10_000 / 51)


def test_who_was_in_flight_when_the_fault_struck_is_a_victim_and_who_failed_before_is_not():
    good = list(map(answered, every(0.01, 100, 101)))
    lost = Sample(0, 99.99, 0.0, 0.02, "lost")
    assert figures_of(*good, before=(lost,))[FAILED] == pytest.approx(100)
    assert figures_of(*good, before=(refused(99.0),))[FAILED] == 0


def test_overload_tells_what_was_shed_from_what_was_let_in():
    good = [answered(due_s, 0.1) for due_s in every(0.01, 0, 2)]
    late = [answered(due_s, 0.4) for due_s in every(0.1, 0, 2)]
    shed = list(map(refused, every(0.01, 0, 2)))
    figures = overload_figures([*good, *late, *shed, refused(2.0)], capacity_per_s=100)
    # Those due in the last 0.1 s are answered later: no goodput within the two seconds.
    assert figures[GOODPUT] == pytest.approx(0.95, abs=0.01)
    assert figures[FAILED] == pytest.approx(10_000 * 20 / 421)
    assert figures[SHED] == pytest.approx(10_000 * 201 / 421)
    assert figures[ADMITTED] == pytest.approx(400)
    assert figures[SHED_P99] == pytest.approx(2)
