"""What a benchmark concludes from its figures."""

from __future__ import annotations

from benchmarks.compare import CLOSED, ONE, Measured, aims_of, best, compared, ratios, rows_of
from benchmarks.load import Measurement
from benchmarks.results import aim, row

US = 1_000_000


def rounds(*requests: int, p50_us: float = 100) -> dict[int, Measurement]:
    """One second for each round, counted from 1."""
    return {
        turn: Measurement(count, US, p50_us, 2 * p50_us, 3 * p50_us, failed=0)
        for turn, count in enumerate(requests, 1)
    }


MEASURED: Measured = {
    ("Understudy", CLOSED): rounds(800, 400, 900),
    ("Understudy", ONE): rounds(10, 10, 10, p50_us=160),
    ("FastAPI, uvicorn x 1", CLOSED): rounds(100, 100, 100),
    ("FastAPI, uvicorn x 2", CLOSED): rounds(200, 100, 200),
    ("HAProxy x 1 + worker", CLOSED): rounds(1000, 1000, 1000),
    ("HAProxy x 1 + worker", ONE): rounds(10, 10, 10, p50_us=130),
    ("worker over HTTP", ONE): rounds(10, 10, 10, p50_us=100),
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
    rows = {found.figure: found for found in compared(MEASURED)}
    assert rows[f"Understudy / FastAPI, uvicorn x 1, {CLOSED}: throughput"].median == 8.0
    fastapi = rows[f"Understudy / FastAPI, uvicorn x 2, {CLOSED}: throughput"]
    assert (fastapi.min, fastapi.median, fastapi.max) == (4.0, 4.0, 4.5)
    assert rows[f"Understudy / HAProxy x 1 + worker, {CLOSED}: throughput"].median == 0.8
    assert rows["added by the gateway at one connection: p50"].median == 60
    assert rows["added by HAProxy at one connection: p50"].median == 30


def test_an_aim_that_is_not_met_stays_visible() -> None:
    slow = {**MEASURED, ("Understudy", CLOSED): rounds(500, 500, 500)}
    assert [aim.met for aim in aims_of(MEASURED)] == [True, True, True, True]
    assert [aim.met for aim in aims_of(slow)] == [True, False, False, True]
    assert len(list(rows_of(slow))) == 4 * len(slow)


def test_a_round_that_one_of_two_lacks_is_not_compared() -> None:
    partly = {**MEASURED, ("MLServer", CLOSED): {2: rounds(200)[1]}}
    assert ratios(partly, CLOSED, "MLServer") == [2.0]
    assert ratios(partly, CLOSED, "BentoML") == []
