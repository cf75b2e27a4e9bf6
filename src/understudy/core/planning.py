"""The plan: where replicas live, and what happens when something is lost.

Lives here: the facts that a plan is made from, the order in which plans are tried, and how much of the
current plan stays. The arithmetic is in `objective`, the search in `placement`, the check in `replay`, the
words in `weaknesses`.

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

from collections import defaultdict
from dataclasses import replace

import msgspec

from understudy.config import PlanSettings
from understudy.core.footprint import replica_mb
from understudy.core.objective import Place, Problem, Scenario, ideal, place, score
from understudy.core.placement import PlacementProgram, Solution
from understudy.core.replay import lost_nodes, replay
from understudy.core.weaknesses import unplaced_reasons, weaknesses
from understudy.invariants import check
from understudy.wire.records import AppVersion, NodeInfo, Placement, Plan, Role

# Shares of the time limit. What is left when all have used theirs is for contingencies.
SKETCH_SHARE = 0.15
DRAFT_SHARE = 0.2
PROOF_SHARE = 0.2
# In weighted accuracy. Placements are sought to within PLACEMENT_GAP (well below the price of a movement).
PLACEMENT_GAP = 0.0005
CONTINGENCY_GAP = 1e-6


class PlanInput(msgspec.Struct, frozen=True):
    """Facts that a plan is made from. `nodes` are those that may hold replicas now."""

    nodes: tuple[NodeInfo, ...]
    apps: tuple[AppVersion, ...]
    current: Plan | None = None
    quarantined: frozenset[tuple[str, int, str]] = frozenset()  # (app, version, variant)
    settings: PlanSettings = PlanSettings()


def make_plan(facts: PlanInput, revision: int, reason: str) -> Plan:
    """A plan for `facts`, checked by replay; the same facts give the same plan.

    Blocks for `settings.time_limit_s` at most (give or take the building of the program), without holding
    the interpreter's lock: run it in a thread. Raises `ConfigError` if HiGHS isn't installed.
    """
    names = [app.app for app in facts.apps]
    check(len(set(names)) == len(names), "an app is planned in one version")
    apps, nodes = _usable_apps(facts), _usable_nodes(facts)
    threats = failures(facts.nodes, facts.settings)
    plan = Plan(revision=revision, reason=reason)
    if apps and nodes:
        found = _Search(_problem(facts, apps, nodes), facts.current).run()
        plan = msgspec.structs.replace(found, revision=revision, reason=reason)
    unplaced = unplaced_reasons(plan, facts.apps, apps, nodes)
    plan = msgspec.structs.replace(plan, unplaced=unplaced)
    verdict = replay(plan, apps, nodes, threats)
    plan = msgspec.structs.replace(plan, outcomes=verdict.outcomes)
    warnings = (*verdict.violations, *weaknesses(plan, apps, nodes, facts.settings))
    return msgspec.structs.replace(plan, warnings=warnings)


def failures(nodes: tuple[NodeInfo, ...], settings: PlanSettings) -> tuple[str, ...]:
    """What the plan has to survive: "node:n1", …, and "site:a", … where there are two sites or more."""
    sites = sorted({node.site for node in nodes})
    threats = [f"node:{name}" for name in sorted(node.name for node in nodes) if "node" in settings.survive]
    threats += [f"site:{site}" for site in sites if "site" in settings.survive and len(sites) > 1]
    return tuple(threats)


def overhead(plan: Plan, apps: tuple[AppVersion, ...]) -> float:
    """Memory of standbys and of the room that contingencies need, as a fraction of the primaries' memory.

    Room is shared between failures: a node reserves for the worst of them, not for their sum.
    """
    sizes = {(app.app, v.name): replica_mb(v) for app in apps for v in app.variants}
    primaries_mb = standbys_mb = 0.0
    for placed in plan.placements:
        size_mb = sizes.get((placed.app, placed.variant), 0.0)
        if placed.role is Role.PRIMARY:
            primaries_mb += size_mb
        else:
            standbys_mb += size_mb
    needed_mb: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for c in plan.contingencies:
        both = {c.first, c.variant}
        needed_mb[c.node][c.failure] += sum(sizes.get((c.app, variant), 0.0) for variant in both)
    reserved_mb = sum(max(by_failure.values()) for by_failure in needed_mb.values())
    return (standbys_mb + reserved_mb) / primaries_mb if primaries_mb else 0.0


# The problem


def _usable_apps(facts: PlanInput) -> tuple[AppVersion, ...]:
    """Apps by their variants that aren't quarantined; those without any are left out."""
    usable = []
    for app in facts.apps:
        variants = tuple(v for v in app.variants if (app.app, app.version, v.name) not in facts.quarantined)
        if variants:
            usable.append(msgspec.structs.replace(app, variants=variants))
    return tuple(usable)


def _usable_nodes(facts: PlanInput) -> tuple[NodeInfo, ...]:
    """Nodes by the memory that may be used."""
    reserve_mb = facts.settings.node_reserve_mb
    nodes = sorted(facts.nodes, key=lambda node: node.name)
    return tuple(
        msgspec.structs.replace(node, memory_mb=node.memory_mb - reserve_mb)
        for node in nodes
        if node.memory_mb > reserve_mb
    )


def _problem(facts: PlanInput, apps: tuple[AppVersion, ...], nodes: tuple[NodeInfo, ...]) -> Problem:
    names: dict[frozenset[str], list[str]] = defaultdict(list)
    for failure in failures(facts.nodes, facts.settings):
        lost = lost_nodes(failure, nodes)
        if lost and len(lost) < len(nodes):
            names[lost].append(failure)
    scenarios = tuple(Scenario(tuple(same), lost, len(same)) for lost, same in names.items())
    current = facts.current or Plan(revision=0)
    return Problem(
        nodes=nodes,
        apps=apps,
        scenarios=scenarios,
        settings=facts.settings,
        existing=_existing(current, nodes),
        staged=frozenset(current.contingencies),
    )


def _existing(current: Plan, nodes: tuple[NodeInfo, ...]) -> frozenset[Place]:
    """What runs already: current replicas on `nodes`, and what was activated for apps that lost theirs."""
    alive = {node.name for node in nodes}
    domains = {f"node:{node.name}" for node in nodes} | {f"site:{node.site}" for node in nodes}
    left = [placed for placed in current.placements if placed.node in alive]
    silenced = {placed.app for placed in current.placements} - {placed.app for placed in left}
    activated = {
        (c.app, c.version, c.variant, c.node)
        for c in current.contingencies
        if c.app in silenced and c.failure not in domains and c.node in alive
    }
    return frozenset({place(placed) for placed in left} | activated)


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
        self._loss_bound = 0.0
        self._left_s = problem.settings.time_limit_s
        # What a proof can't tell apart. Nothing moves for less.
        self._margin = max(PLACEMENT_GAP, problem.settings.gap * ideal(problem))

    def run(self) -> Plan:
        if self._current:
            self._detail(Plan(revision=0, placements=self._current), 0.0)
            self._search(self._worth_keeping(), 2 * PLACEMENT_GAP)
        if self._best is None:
            self._search(frozenset(), 0.0)
            self._prove(0.0)
        elif not self._prove(self._margin):
            self._search(frozenset(), self._margin)
        check(self._best is not None, "placing nothing is always a plan")
        assert self._best is not None
        best = score(self._problem, self._best.plan)
        gap = (ideal(self._problem) - self._loss_bound - best) / max(abs(best), 1e-9)
        spent_s = self._problem.settings.time_limit_s - self._left_s
        return msgspec.structs.replace(
            self._best.plan, objective=best, gap=max(0.0, gap), solve_ms=spent_s * 1000.0
        )

    def _search(self, keep: frozenset[Place], margin: float) -> None:
        """Sketch, draft, and the details of both."""
        sketch = self._solve(self._sketch, SKETCH_SHARE, PLACEMENT_GAP, keep=keep)
        if sketch is None:
            return
        self._detail(sketch.plan, margin)
        start = self._solve(self._draft, 1.0, CONTINGENCY_GAP, fixed=sketch.plan)
        draft = self._solve(self._draft, DRAFT_SHARE, self._margin, keep=keep, start=start)
        if draft is not None:
            self._detail(draft.plan, margin)

    def _detail(self, plan: Plan, margin: float) -> None:
        """Take the placements of `plan` with the best contingencies for them, if that is the best so far."""
        found = self._solve(self._whole, 1.0, CONTINGENCY_GAP, fixed=plan)
        if found is None:
            return
        if self._best is None or self._loss(found) < self._loss(self._best) - margin:
            self._best = found

    def _prove(self, margin: float) -> bool:
        """Whether nothing is better than the best plan by more than the margin. May find a better plan."""
        proof = self._solve(self._whole, PROOF_SHARE, self._margin, start=self._best)
        if proof is None or self._best is None:
            return False
        self._loss_bound = max(self._loss_bound, proof.loss_bound)
        self._detail(proof.plan, margin)
        return self._loss(self._best) <= self._loss_bound + self._margin

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
        limit_s = min(self._left_s, share * self._problem.settings.time_limit_s)
        values = start.values if start is not None else None
        solution = program.solve(limit_s, gap, keep=keep, fixed=fixed, start=values)
        self._left_s -= solution.solve_s if solution is not None else limit_s
        return solution

    def _loss(self, solution: Solution) -> float:
        return ideal(self._problem) - score(self._problem, solution.plan)

    def _worth_keeping(self) -> frozenset[Place]:
        """Full-size primaries: nothing about them can be better than it is."""
        full_size = {(app.app, app.full_size.name) for app in self._problem.apps}
        return frozenset(
            place(placed)
            for placed in self._current
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
