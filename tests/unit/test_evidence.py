"""Evidence that one share is larger than another: hardly ever a false alarm, however often one looks."""

from __future__ import annotations

from math import exp, inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.core.evidence import Tally, evidence, fails_more

tallies = st.integers(0, 2000).flatmap(lambda n: st.builds(Tally, st.integers(0, n), st.just(n)))


def looked_at_always(random: Random, one: float, other: float, requests: int, alpha: float) -> int:
    """Requests to `one` until it is found to fail more often than `other`; 0 if that never happens.

    Looked at after each request. An adversary decides who gets the next one: whoever looks better for it.
    """
    mine, theirs = Tally(0, 0), Tally(0, 0)
    for _ in range(requests):
        if random.random() < 0.5 or mine.share < theirs.share:
            mine += Tally(random.random() < one, 1)
        else:
            theirs += Tally(random.random() < other, 1)
        if fails_more(mine, theirs, alpha):
            return mine.asked
    return 0


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_equal_shares_raise_a_false_alarm_at_most_as_often_as_stated(share: float, alpha: float):
    random = Random(1)
    runs = 150
    alarms = sum(looked_at_always(random, share, share, 300, alpha) > 0 for _ in range(runs))
    assert alarms <= alpha * runs + 2 * (alpha * runs) ** 0.5, "two deviations beyond the stated mean"


def test_a_z_test_looked_at_as_often_would_be_wrong_far_more_often():
    """What this is for: the same runs, by the test that is meant for one look."""
    random = Random(1)
    alarms = 0
    for _ in range(50):
        mine, theirs = Tally(0, 0), Tally(0, 0)
        for _ in range(600):
            mine += Tally(random.random() < 0.1, 1)
            theirs += Tally(random.random() < 0.1, 1)
            both = mine + theirs
            deviation = (both.share * (1 - both.share) * 2 / mine.asked) ** 0.5
            if mine.asked >= 20 and mine.share - theirs.share > 2.326 * deviation:
                alarms += 1
                break
    assert alarms >= 3, "6 % and more, where 1 % was meant"


@pytest.mark.parametrize(
    ("record", "alpha", "needed"),
    [
        (Tally(0, 1000), 0.01, 2), (Tally(0, 10), 0.01, 4), (Tally(0, 1000), 1e-6, 3),
        (Tally(0, 100), 1e-6, 5),
        (Tally(10, 100), 1e-6, 10), (Tally(50, 100), 1e-6, 33),
    ],
)  # fmt: skip
def test_who_fails_everybody_is_found_after_a_handful(record: Tally, alpha: float, needed: int):
    found = next(n for n in range(1, 100) if fails_more(Tally(n, n), record, alpha))
    assert found == needed


@pytest.mark.parametrize(("one", "other", "median"), [(0.5, 0.01, 25), (0.2, 0.01, 100), (0.1, 0.01, 250)])
def test_a_larger_share_is_found_within_the_requests_that_are_stated(one: float, other: float, median: int):
    random = Random(2)
    needed = sorted(looked_at_always(random, one, other, 4000, 0.01) or 4000 for _ in range(21))
    assert needed[10] <= median


@given(tallies, tallies)
def test_evidence_is_for_one_side_only_and_never_breaks(one: Tally, other: Tally):
    found = evidence(one, other)
    assert 0.0 <= found <= inf
    if one.share <= other.share:
        assert found == 0.0
    else:
        assert evidence(other, one) == 0.0


@given(tallies, tallies)
def test_it_is_the_quotient_that_scipy_computes(one: Tally, other: Tally):
    stats = pytest.importorskip("scipy.stats")
    found = evidence(one, other)
    if not 0.0 < found < inf:
        return
    both = one + other
    logs = [
        float(
            stats.betabinom.logpmf(t.failed, t.asked, 0.5, 0.5) - stats.binom.logpmf(t.failed, t.asked, 0.5)
        )
        + float(
            stats.binom.logpmf(t.failed, t.asked, 0.5) - stats.binom.logpmf(t.failed, t.asked, both.share)
        )
        for t in (one, other)
    ]
    assert found == pytest.approx(exp(min(sum(logs), 700.0)), rel=1e-6)
