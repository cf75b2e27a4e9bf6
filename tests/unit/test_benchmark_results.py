"""What a benchmark concludes from its figures."""

from __future__ import annotations

from benchmarks.http import aims_of, best, comparisons, rows_of
from benchmarks.load import Measurement
from benchmarks.results import aim, row

US = 1_000_000


def run(requests: int, p50_us: float = 100) -> Measurement:
    return Measurement(requests, US, p50_us, 2 * p50_us, 3 * p50_us, failed=0, broken=0)


MEASURED = {
    ("Understudy", 32): [run(800), run(400), run(900)],
    ("Understudy", 1): [run(10, 150), run(10, 170), run(10, 160)],
    ("FastAPI, uvicorn x 1", 32): [run(100), run(100), run(100)],
    ("FastAPI, uvicorn x 2", 32): [run(200), run(100), run(200)],
    ("HAProxy x 1 + worker", 32): [run(1000), run(1000), run(1000)],
    ("HAProxy x 1 + worker", 1): [run(10, 130), run(10, 130), run(10, 130)],
    ("worker over HTTP", 1): [run(10, 100), run(10, 100), run(10, 100)],
}


def test_a_row_keeps_the_spread() -> None:
    figure = row("p50", "us", [5, 1, 3, 4, 2])
    assert (figure.n, figure.min, figure.median, figure.p99, figure.max) == (5, 1, 3, 5, 5)


def test_aims_point_both_ways() -> None:
    assert aim("more", 4.0, 4.0, "higher").met
    assert not aim("more", 3.9, 4.0, "higher").met
    assert aim("less", 100, 100, "lower").met
    assert not aim("less", 101, 100, "lower").met


def test_rivals_are_met_at_their_best_and_round_by_round() -> None:
    assert best(MEASURED, "FastAPI") == "FastAPI, uvicorn x 2"
    one_process, fastapi, haproxy, added, added_by_haproxy = comparisons(MEASURED)
    assert one_process.median == 8.0
    assert (fastapi.min, fastapi.median, fastapi.max) == (4.0, 4.0, 4.5)
    assert haproxy.median == 0.8
    assert added.median == 60
    assert added_by_haproxy.median == 30


def test_an_aim_that_is_not_met_stays_visible() -> None:
    slow = {**MEASURED, ("Understudy", 32): [run(500), run(500), run(500)]}
    assert [aim.met for aim in aims_of(comparisons(MEASURED))] == [True, True, True, True]
    assert [aim.met for aim in aims_of(comparisons(slow))] == [True, False, False, True]
    assert len(rows_of(slow)) == 3 * len(slow)
