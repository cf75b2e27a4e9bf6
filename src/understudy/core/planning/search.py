"""The search for a plan: the heuristic always, the exact program where the cluster is small enough for it.

The program is too hard to be solved from nothing, and easy to improve on a good start: so it begins with the
heuristic's plan. Contingencies for given placements are a small program that is solved to the end.

A new plan is compared with those that move less: everything that runs stays and only what is lost or lacking
is placed; then full-size primaries stay; and only then everything is open. Each has to be better than the one
before by more than what can't be told apart, so that replanning moves nothing without a reason.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from understudy.core.planning import solver
from understudy.core.planning.bound import Prices
from understudy.core.planning.choices import Choices
from understudy.core.planning.heuristic import draft_plan, moved
from understudy.core.planning.objective import Place, Problem, ideal, place, score
from understudy.core.planning.placement import PlacementProgram, Solution
from understudy.wire.errors import ConfigError
from understudy.wire.records import Placement, Plan, Role

CELLS_MAX = 20_000  # about as many columns as a program may have to be solved in seconds
POLISH_SHARE = 0.4  # of the time limit, for what moves little
# In weighted accuracy. Placements are sought to within PLACEMENT_GAP (well below the price of a movement).
PLACEMENT_GAP = 0.001
CONTINGENCY_GAP = 1e-6
POLISH_GAIN = 0.002  # what anything else is moved for: more than placements are sought to
# What full-size primaries are moved for when they could stay: about one standard app's answer in a failure.
UPHEAVAL_GAIN = 1.0


def find_plan(
    problem: Problem, choices: list[Choices], current: Plan | None, prices: Prices | None = None
) -> tuple[Plan, Prices]:
    """Placements and contingencies for `problem`, with objective, gap and time; nothing else is filled in.
    The second is for the next plan of a similar problem.

    Raises `ConfigError` if the exact method is asked for and can't be had.
    """
    method = problem.settings.method
    if method == "exact" and problem.any_of:
        raise ConfigError('plan.method = "exact" can\'t plan for "any-K": name the failures, or use "auto"')
    draft = draft_plan(problem, choices, current, prices)
    plan, loss, bound = draft.plan, draft.loss, draft.bound.loss
    spent_s = 0.0
    close = loss - bound <= PLACEMENT_GAP
    if method == "exact" or (method == "auto" and not close and _is_small(problem, choices)):
        search = _Search(problem, choices, plan, bound, current)
        plan, loss, bound, spent_s = search.run()
        method = "exact"
    else:
        method = "heuristic"
    best = ideal(problem) - loss
    found = msgspec.structs.replace(
        plan,
        objective=best,
        gap=max(0.0, loss - bound) / max(abs(best), 1e-9),
        solve_ms=spent_s * 1000.0,
        method=method,
        moved=moved(problem, plan),
    )
    return found, draft.bound.prices


def _is_small(problem: Problem, choices: list[Choices]) -> bool:
    if problem.any_of or not solver.is_installed():
        return False
    by_scenario = sum(len(c.ways) for c in choices) * len(problem.scenarios)
    return (sum(2 * len(c.mb) for c in choices) + by_scenario) * len(problem.bins) <= CELLS_MAX


class _Search:
    """One search for a plan by the exact program, and what it has found and spent so far."""

    def __init__(
        self, problem: Problem, choices: list[Choices], draft: Plan, loss_bound: float, current: Plan | None
    ) -> None:
        self._problem = problem
        self._program = PlacementProgram(problem, choices)
        self._current = current if current is not None and problem.existing else None
        self._draft = draft
        self._best: Solution | None = None
        self._loss_bound = loss_bound
        self._tolerance = max(PLACEMENT_GAP, problem.settings.gap * ideal(problem))

    def run(self) -> tuple[Plan, float, float, float]:
        """The plan, its loss, the least loss possible, and the seconds spent."""
        self._detail(self._draft, 0.0)
        if self._current is not None:
            # What runs, just as it is: a draft may have moved what is as good where it was.
            here = [p for p in self._current.placements if place(p) in self._problem.existing]
            self._detail(msgspec.structs.replace(self._current, placements=tuple(here)), 0.0)
            keep = self._worth_keeping(self._draft.placements)
            self._improve(POLISH_SHARE, POLISH_GAIN, keep)
            self._improve(1.0, max(UPHEAVAL_GAIN, self._tolerance))
        else:
            self._improve(1.0, 0.0)
        if self._best is None:
            return self._draft, self._loss(self._draft), self._loss_bound, self._program.spent_s
        plan = self._best.plan
        return plan, self._loss(plan), self._loss_bound, self._program.spent_s

    def _detail(self, plan: Plan, margin: float) -> None:
        """Take the placements of `plan` with the best contingencies for them, if that is the best so far."""
        found = self._solve(1.0, CONTINGENCY_GAP, fixed=plan)
        if found is None:
            return
        if self._best is None or self._loss(found.plan) < self._loss(self._best.plan) - margin:
            self._best = found

    def _improve(self, share: float, margin: float, keep: frozenset[Place] = frozenset()) -> None:
        """The whole program from the best plan, in a share of the time that is left."""
        start = self._best
        found = self._solve(share, max(margin, self._tolerance), keep=keep, start=start)
        if found is None:
            return
        if not keep:
            self._loss_bound = max(self._loss_bound, found.loss_bound)
        # Counted: two replicas of an app on one node are equal records.
        if start is None or Counter(found.plan.placements) != Counter(start.plan.placements):
            self._detail(found.plan, margin)

    def _solve(
        self,
        share: float,
        gap: float,
        *,
        keep: frozenset[Place] = frozenset(),
        fixed: Plan | None = None,
        start: Solution | None = None,
    ) -> Solution | None:
        limit_s = share * (self._problem.settings.time_limit_s - self._program.spent_s)
        values = start.values if start is not None else None
        return self._program.solve(limit_s, gap, keep=keep, fixed=fixed, start=values)

    def _loss(self, plan: Plan) -> float:
        return ideal(self._problem) - score(self._problem, plan)

    def _worth_keeping(self, placements: tuple[Placement, ...]) -> frozenset[Place]:
        """Full-size primaries that run: nothing about them can be better than it is."""
        full_size = {(app.app, app.full_size.name) for app in self._problem.apps}
        return frozenset(
            place(placed)
            for placed in placements
            if placed.role is Role.PRIMARY
            and (placed.app, placed.variant) in full_size
            and place(placed) in self._problem.existing
        )
