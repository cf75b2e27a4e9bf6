"""What no plan can undercut, and what each app would get if memory and compute were one piece.

The rows of all failures of one kind (each node, or each site of one level) are added up: whatever the plan,
what runs in a class of nodes has to fit beside the room for the apps of every other class. That leaves one
row for each kind and resource. Prices for these rows (Lagrange multipliers) let every app choose for itself;
the sum of what they choose is a bound for any prices, and the best prices are found one at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from understudy.core.planning.choices import Choices
from understudy.core.planning.objective import RELABEL, RESTAGE, Problem
from understudy.failures import kind_of

SWEEPS = 3
PRECISION = 0.002  # of a price, relative
STEP = 1.1
PRICE_MIN, PRICE_MAX = 1e-6, 1e6

Floats = NDArray[np.float64]
Prices = Floats  # of a MB and a core, by resource and kind of failure


@dataclass(frozen=True, slots=True)
class Bound:
    """`loss` is the least possible. By app: the variants (their index) that it would get; -1: none."""

    prices: Prices
    loss: float
    primaries: list[int]
    standbys: list[int]


class Relaxed:
    """The problem with its rows added up by kind and resource."""

    def __init__(self, problem: Problem, choices: list[Choices], prices: Prices | None = None) -> None:
        self._shares = _shares(problem)
        limits = [problem.memory_mb, sum(held.cores for held in problem.bins)]
        self._limits = np.array([limit for limit in limits if math.isfinite(limit)])
        self._replicas = np.array([c.app.replicas for c in choices], dtype=float)
        fits = max(held.memory_mb for held in problem.bins)
        moved = _movement(problem, choices)
        wide = max(len(c.mb) for c in choices)
        ways_wide = max(len(c.ways) for c in choices)
        mb = _padded([c.mb for c in choices], wide, math.inf)
        self._sizes = [mb, _padded([c.busy for c in choices], wide, 0.0)][: len(self._limits)]
        self._sizes[0] = np.where(mb > fits, 0.0, mb)
        self._primary = _padded([c.primary for c in choices], wide, math.inf) + moved[:, None] * (
            1.0 + RELABEL
        )
        self._standby = _padded([c.standby for c in choices], wide, math.inf) + moved[:, None]
        self._primary[mb > fits] = self._standby[mb > fits] = math.inf
        self._warm = _padded([c.warm for c in choices], wide, 0.0) * (
            len(self._shares) - (problem.any_of > 0)
        )
        # Nothing for what may be staged already, or once for two kinds (whichever node, and each by name).
        staging = 0.0 if problem.staged or problem.any_of else RESTAGE
        self._ways = _padded([[way.loss + staging for way in c.ways] for c in choices], ways_wide, math.inf)
        rooms = _padded([[way.room_mb for way in c.ways] for c in choices], ways_wide, 0.0)
        self._ways[rooms > fits] = math.inf
        self._rooms = [rooms, _padded([[way.busy for way in c.ways] for c in choices], ways_wide, 0.0)]
        self._silent = np.array([c.silent for c in choices])
        self._unplaced = np.array([c.unplaced for c in choices])
        self._missing = np.array([c.missing for c in choices])
        self._worst = np.array([_worst(c, problem.any_of) for c in choices])
        self._all = np.arange(len(choices))
        shape = len(self._limits), max(1, len(self._shares))
        self._prices = prices if prices is not None and prices.shape == shape else np.zeros(shape)

    def bound(self, spared: float = 0.0) -> Bound:
        """The best bound that was found, for a cluster that is smaller by the fraction `spared`."""
        whole = self._limits
        self._limits = whole * (1.0 - spared)
        self._prices = self._best_prices(self._prices)
        loss, _, primaries, standbys = self._choose(self._prices)
        self._limits = whole
        return Bound(self._prices, loss, primaries.tolist(), standbys.tolist())

    def _best_prices(self, prices: Prices) -> Prices:
        """Prices that make the bound as large as found, beginning with those of a similar problem."""
        prices = prices.copy()
        for _ in range(SWEEPS):
            before = prices.copy()
            for row in np.ndindex(prices.shape):
                self._improve(prices, row)
            if np.allclose(before, prices, rtol=0.01, atol=1e-12):
                break
        return prices

    def _improve(self, prices: Prices, row: tuple[int, ...]) -> None:
        """The best price of one row, by the sign of what is asked beyond its limit."""
        guess = float(prices[row])
        prices[row] = 0.0
        if self._excess(prices, row) <= 0.0:
            return
        low, high = self._bracket(prices, row, guess)
        while high > low * (1.0 + PRECISION):
            middle = prices[row] = math.sqrt(low * high)
            low, high = (middle, high) if self._excess(prices, row) > 0.0 else (low, middle)
        prices[row] = high

    def _bracket(self, prices: Prices, row: tuple[int, ...], guess: float) -> tuple[float, float]:
        """A price that is too low and one that isn't."""
        step = STEP if guess else STEP**4
        price = prices[row] = guess or PRICE_MIN
        while self._excess(prices, row) > 0.0 and price < PRICE_MAX:
            price = prices[row] = price * step
        high = price
        while price > PRICE_MIN and self._excess(prices, row) <= 0.0:
            high = price
            price = prices[row] = price / step
        return price, high

    def _excess(self, prices: Floats, row: tuple[int, ...]) -> float:
        return float(self._choose(prices)[1][row])

    def _choose(self, prices: Floats) -> tuple[float, Floats, NDArray[np.int_], NDArray[np.int_]]:
        """Each app's best choice at these prices: loss bound, excess by row, primaries, standbys."""
        held = prices.sum(axis=1)  # of a unit that is taken always
        sizes = sum(size * price for size, price in zip(self._sizes, held, strict=True))
        primary = self._primary + sizes
        best = primary.argmin(axis=1)
        first = primary[self._all, best]
        loss = first + (self._replicas - 1) * np.minimum(first, self._missing)
        replicas = np.where(first < self._missing, self._replicas, 1.0)
        # Protection: a standby for all kinds, or a way back for each kind. Several primaries need none.
        standby = self._standby + sizes + self._warm
        warm = standby.argmin(axis=1)
        warm_loss = standby[self._all, warm] + self._worst
        cold_loss = np.zeros(len(loss))
        alone = self._replicas == 1
        rooms_by_kind = []
        for kind, share in enumerate(self._shares):
            priced = self._ways + sum(
                room * (price * share) for room, price in zip(self._rooms, prices[:, kind], strict=False)
            )
            way = priced.argmin(axis=1)
            answered = priced[self._all, way] < self._silent
            cold_loss += np.where(answered, priced[self._all, way], self._silent)
            rooms_by_kind.append(
                [np.where(answered, room[self._all, way], 0.0) * share for room in self._rooms]
            )
        protected = alone & (warm_loss < cold_loss)
        loss = loss + np.where(alone, np.minimum(warm_loss, cold_loss), self._worst)
        placed = loss < self._unplaced
        total = float(np.where(placed, loss, self._unplaced).sum())
        taken = [
            (np.where(placed, replicas * size[self._all, best], 0.0)
             + np.where(placed & protected, size[self._all, warm], 0.0)).sum()
            for size in self._sizes
        ]  # fmt: skip
        excess = np.zeros_like(prices)
        cold = placed & alone & ~protected
        for r, limit in enumerate(self._limits):
            for kind in range(prices.shape[1]):
                room = rooms_by_kind[kind][r][cold].sum() if rooms_by_kind else 0.0
                excess[r, kind] = taken[r] + room - limit
        total -= float((held * self._limits).sum())
        return total, excess, np.where(placed, best, -1), np.where(placed & protected, warm, -1)


def _shares(problem: Problem) -> list[float]:
    """Of each kind of failure that every node is in: what share of an app's room every other app waits for.

    With C classes of nodes, one of which is lost, a room serves C - 1 of them. With any K of N nodes lost,
    the rows of all such losses add up to K / (N - K). The last kind, if several nodes may be lost at once.
    """
    nodes = {held.node for held in problem.bins}
    counts: dict[str, int] = {}
    covered: dict[str, int] = {}
    for scenario in problem.scenarios:
        for kind in map(kind_of, scenario.names):
            counts[kind] = counts.get(kind, 0) + 1
            covered[kind] = covered.get(kind, 0) + len(scenario.lost)
    shares = [
        1.0 / (count - 1) for kind, count in counts.items() if covered[kind] == len(nodes) and count > 1
    ]
    return shares + ([problem.any_of / (len(nodes) - problem.any_of)] if problem.any_of else [])


def _worst(choices: Choices, any_of: int) -> float:
    """What the loss of whichever `any_of` nodes costs an app at least."""
    replicas = choices.app.replicas
    if replicas > any_of:
        return 0.0
    cold = min(choices.silent, *(way.loss for way in choices.ways))
    return cold if replicas < any_of or not choices.standby else min(cold, *choices.warm)


def _movement(problem: Problem, choices: list[Choices]) -> Floats:
    """What placing any replica of an app costs at least: nothing where one runs already."""
    running = {app for app, *_ in problem.existing}
    price = problem.settings.movement_cost
    return np.array([0.0 if c.app.app in running else price for c in choices])


def _padded(rows: Sequence[Sequence[float]], width: int, rest: float) -> Floats:
    """The rows as one array of this width."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    made = np.full((len(rows), width), rest)
    made[np.arange(width) < lengths[:, None]] = np.fromiter(itertools.chain.from_iterable(rows), dtype=float)
    return made
