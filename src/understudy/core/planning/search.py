"""The search for a plan: which programs are solved in which order, and how much of the current plan stays.

The whole program is too hard to be solved at once, so a plan is searched for in steps, each of them easy
because of the one before:

    sketch  placements by the largest failures only, with the room that is left as if it were one piece
    draft   placements by the largest failures, with room node by node, started from the sketch
    detail  the best contingencies for given placements: small, and solved exactly
    proof   the whole program, started from the best plan so far, for a bound on what is still possible

What answers the loss of a site answers that of its nodes too: hence the largest failures first.

A new plan is compared with three that move less: everything where it is; only what is lost or lacking
placed; and only then everything open. Each has to be better than the one before by more than what the solver
can't tell apart, so that replanning moves nothing without a reason.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from understudy.core.planning.objective import Place, Problem, ideal, place, score
from understudy.core.planning.placement import PlacementProgram, Solution
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import Placement, Plan, Role

# Shares of the time limit. What is left when all have used theirs is for contingencies.
SKETCH_SHARE = 0.15
DRAFT_SHARE = 0.2
PROOF_SHARE = 0.2
# In weighted accuracy. Placements are sought to within PLACEMENT_GAP (well below the price of a movement).
PLACEMENT_GAP = 0.001
CONTINGENCY_GAP = 1e-6
POLISH_GAIN = 0.002  # what anything else is moved for: more than placements are sought to
# What full-size primaries are moved for when they could stay: about one standard app's answer in a failure.
UPHEAVAL_GAIN = 1.0


def find_plan(problem: Problem, current: Plan | None) -> Plan:
    """Placements and contingencies for `problem`, with objective, gap and time; nothing else is filled in.

    Raises TIMEOUT if the time limit was too short for any plan.
    """
    return _Search(problem, current).run()


def _drafted(problem: Problem) -> Problem:
    """The same by its largest failures only: what answers the loss of a site answers that of its nodes too.

    Much smaller, and placements that are good for it are good: the rest is choosing contingencies.
    """
    largest = []
    for scenario in problem.scenarios:
        if any(scenario.lost < other.lost for other in problem.scenarios):
            continue
        within = [other.weight for other in problem.scenarios if other.lost < scenario.lost]
        largest.append(replace(scenario, weight=scenario.weight + max(within, default=0.0)))
    return replace(problem, scenarios=tuple(largest))


class _Search:
    """One search for a plan, and what it has found and spent so far."""

    def __init__(self, problem: Problem, current: Plan | None) -> None:
        self._problem = problem
        self._current = _still_valid(problem, current) if current is not None else ()
        drafted = _drafted(problem)
        self._sketch = PlacementProgram(drafted, pooled=True)
        self._draft = PlacementProgram(drafted)
        self._whole = PlacementProgram(problem)
        self._best: Solution | None = None
        self._detailed: set[tuple[Placement, ...]] = set()
        self._loss_bound = 0.0
        self._tolerance = max(PLACEMENT_GAP, problem.settings.gap * ideal(problem))

    def run(self) -> Plan:
        if self._current:
            self._detail(Plan(revision=0, placements=self._current), 0.0)
            self._search(self._worth_keeping(self._current), POLISH_GAIN)
        if self._best is None:
            self._search(frozenset(), 0.0)
            self._prove(0.0)
        elif not self._prove(UPHEAVAL_GAIN):
            self._search(frozenset(), UPHEAVAL_GAIN)
        if self._best is None:
            limit_s = self._problem.settings.time_limit_s
            raise UnderstudyError(
                Code.TIMEOUT, "no plan was found in time; raise plan.time_limit_s", time_limit_s=limit_s
            )
        self._polish(self._best)
        best = score(self._problem, self._best.plan)
        gap = (ideal(self._problem) - self._loss_bound - best) / max(abs(best), 1e-9)
        return msgspec.structs.replace(
            self._best.plan, objective=best, gap=max(0.0, gap), solve_ms=self._spent_s() * 1000.0
        )

    def _search(self, keep: frozenset[Place], margin: float) -> None:
        """Sketch, draft, and the details of both."""
        sketch = self._solve(self._sketch, SKETCH_SHARE, PLACEMENT_GAP, keep=keep)
        if sketch is None:
            return
        self._detail(sketch.plan, margin)
        start = self._solve(self._draft, 1.0, CONTINGENCY_GAP, fixed=sketch.plan)
        draft = self._solve(self._draft, DRAFT_SHARE, self._tolerance, keep=keep, start=start)
        if draft is not None:
            self._detail(draft.plan, margin)

    def _detail(self, plan: Plan, margin: float) -> None:
        """Take the placements of `plan` with the best contingencies for them, if that is the best so far."""
        if plan.placements in self._detailed:
            return
        self._detailed.add(plan.placements)
        found = self._solve(self._whole, 1.0, CONTINGENCY_GAP, fixed=plan)
        if found is None:
            return
        if self._best is None or self._loss(found) < self._loss(self._best) - margin:
            self._best = found

    def _prove(self, margin: float) -> bool:
        """Whether nothing is better than the best plan by more than the margin. May find a better plan."""
        margin = max(margin, self._tolerance)
        proof = self._solve(self._whole, PROOF_SHARE, margin, start=self._best)
        if proof is None or self._best is None:
            return False
        self._loss_bound = max(self._loss_bound, proof.loss_bound)
        self._detail(proof.plan, margin if self._current else 0.0)
        return self._loss(self._best) <= self._loss_bound + margin

    def _solve(
        self,
        program: PlacementProgram,
        share: float,
        gap: float,
        *,
        keep: frozenset[Place] = frozenset(),
        fixed: Plan | None = None,
        start: Solution | None = None,
    ) -> Solution | None:
        time_limit_s = self._problem.settings.time_limit_s
        limit_s = min(share * time_limit_s, time_limit_s - self._spent_s())
        values = start.values if start is not None else None
        return program.solve(limit_s, gap, keep=keep, fixed=fixed, start=values)

    def _spent_s(self) -> float:
        return self._sketch.spent_s + self._draft.spent_s + self._whole.spent_s

    def _loss(self, solution: Solution) -> float:
        return ideal(self._problem) - score(self._problem, solution.plan)

    def _polish(self, found: Solution) -> None:
        """Improve what isn't settled, so that the next search with these facts finds nothing to improve."""
        keep = self._worth_keeping(found.plan.placements)
        if keep != self._worth_keeping(self._current):
            self._search(keep, POLISH_GAIN)

    def _worth_keeping(self, placements: tuple[Placement, ...]) -> frozenset[Place]:
        """Full-size primaries: nothing about them can be better than it is."""
        full_size = {(app.app, app.full_size.name) for app in self._problem.apps}
        return frozenset(
            place(placed)
            for placed in placements
            if placed.role is Role.PRIMARY and (placed.app, placed.variant) in full_size
        )


def _still_valid(problem: Problem, current: Plan) -> tuple[Placement, ...]:
    """Current placements of usable variants on usable nodes."""
    variants = {(app.app, app.version, v.name) for app in problem.apps for v in app.variants}
    nodes = {node.name for node in problem.nodes}
    return tuple(
        placed
        for placed in current.placements
        if (placed.app, placed.version, placed.variant) in variants and placed.node in nodes
    )
