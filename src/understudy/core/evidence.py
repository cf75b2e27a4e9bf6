"""Does one thing fail more often than another? Evidence that holds however often it is looked at.

Whoever peeks at a z-test every second is wrong far more often than its level says. Here a look costs
nothing: if the first doesn't fail more often than the second, the chance that `evidence` ever reaches
1/alpha, over all looks until the end of time, is at most alpha, in whatever order requests come and whoever
decides how many each of the two gets.

How: the likelihood of what was seen, each side's unknown share averaged over a Jeffreys prior, which is
Beta(1/2, 1/2), divided by the largest likelihood that equal shares can give it. For the true shares that
quotient is at most a martingale that begins with 1, so Ville's inequality bounds it. Sources: Ville, "Étude
critique de la notion de collectif" (1939); Robbins, "Statistical methods related to the law of the iterated
logarithm" (1970), for the average; Wasserman, Ramdas and Balakrishnan, "Universal inference" (PNAS 2020).

Power: who fails everybody is found after two requests against a clean record of 1,000, after four against one
of 10 (alpha 0.01). `tests/unit/test_evidence.py` states false alarms and more of the power, by simulation.

What is counted must be independent: one client's thousand bad rows are one observation or few. Whoever counts
sees to that (`core.gateway.conduct`).
"""

from __future__ import annotations

from math import exp, inf, lgamma, log, pi
from typing import NamedTuple

LOG_MAX = 700.0  # exp of more is beyond a float


class Tally(NamedTuple):
    """`failed` of `asked`, counted from a moment that was chosen without looking at them."""

    failed: int
    asked: int

    @property
    def share(self) -> float:
        return self.failed / self.asked if self.asked else 0.0

    def __add__(self, other: object) -> Tally:
        if not isinstance(other, Tally):
            return NotImplemented
        return Tally(self.failed + other.failed, self.asked + other.asked)


def evidence(one: Tally, other: Tally) -> float:
    """For `one` failing more often than `other`: reject the contrary at level alpha from 1/alpha on.

    1 and less is none; 0 when `one` fails no more often than `other`. O(1).
    """
    if not one.asked or not other.asked or one.share <= other.share:
        return 0.0
    both = one + other
    log_evidence = _log_average(one) + _log_average(other) - _log_largest(both)
    return exp(log_evidence) if log_evidence < LOG_MAX else inf


def fails_more(one: Tally, other: Tally, alpha: float) -> bool:
    return evidence(one, other) >= 1 / alpha


def _log_average(tally: Tally) -> float:
    """Of the likelihood over Beta(1/2, 1/2): B(f + 1/2, n - f + 1/2) / B(1/2, 1/2)."""
    failed, answered = tally.failed, tally.asked - tally.failed
    return lgamma(failed + 0.5) + lgamma(answered + 0.5) - lgamma(tally.asked + 1) - log(pi)


def _log_largest(tally: Tally) -> float:
    """Of the likelihood, over all shares: at the share that was seen."""
    failed, answered = tally.failed, tally.asked - tally.failed
    return sum(n * log(n / tally.asked) for n in (failed, answered) if n)
