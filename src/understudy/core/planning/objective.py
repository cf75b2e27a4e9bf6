"""What makes one plan better than another: the price of everything a plan can lack, in one currency.

The currency is *weighted accuracy*: 1.0 is one standard app of weight 1 that lost all its accuracy in one
situation. A situation is normal operation, or one of the failures to survive. A plan's loss is the sum of
the prices below; `score` adds them up for any plan, however it was made. The solver minimises the same sum,
term by term, and the tests compare the two.

The sizes of the constants are the order of the promises. Within one class of criticality: a place at all,
then full-size, then some answer in every failure (warm for critical apps), then the accuracy and the speed
of that answer, then memory, peace and an even spread. Between classes the protection of the higher one comes
before the size of the lower one: a best-effort app shrinks before a standard app stays without an answer.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from understudy.config import PlanSettings
from understudy.core.planning.footprint import load_ms, replica_mb
from understudy.core.planning.replay import COLD_MS, WARM_MS
from understudy.invariants import check
from understudy.wire.records import (
    AppVersion,
    Contingency,
    Criticality,
    NodeInfo,
    Placement,
    Plan,
    Role,
    Variant,
)

WORTH = {Criticality.CRITICAL: 10.0, Criticality.STANDARD: 1.0, Criticality.BEST_EFFORT: 0.1}
# No primary, not even in normal operation. Criticality decides who stays out.
UNPLACED = {Criticality.CRITICAL: 2000.0, Criticality.STANDARD: 300.0, Criticality.BEST_EFFORT: 60.0}
DEGRADED = 15.0  # a primary that isn't full-size, besides what it loses in accuracy
REPLICA_MISSING = 30.0  # each primary short of the wanted number, once there is one
SILENT = 2.0  # no answer in a failure: accuracy (1) and the answer itself (1)
STATIC = 1.5  # the declared answer only
COLD_CRITICAL = 1.0  # a critical app that has to load first
SAME_NODE = 0.3  # each primary that shares its node with another one of its app
SAME_SITE = 0.1
RECOVERY = 0.05  # times t/(t + 1 s): half of it for one second, never more than this
BALANCE = 0.01  # times the squares of the nodes' loads; below the price of a movement on purpose
RELABEL = 0.1  # of the price of a movement: a new primary costs this much more than a new standby
RESTAGE = 0.0005  # a contingency that differs from the current one

# A step in between isn't worth its memory where it saves less than this (the agents' default skips it too).
PROGRESSIVE_GAIN_MS = 15.0

# Squares as the upper hull of tangents, since the program is linear: (slope, intercept) per tangent of x².
TANGENTS = tuple((2 * x, x * x) for x in (0.1, 0.3, 0.5, 0.7, 0.9))


Place = tuple[str, int, str, str]  # app, version, variant, node


@dataclass(frozen=True, slots=True)
class Scenario:
    """Failures that take the same nodes away, so that one answer serves them all."""

    names: tuple[str, ...]
    lost: frozenset[str]
    weight: float  # how many failures' losses it stands for; len(names) unless it stands for smaller ones too


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be decided. Apps hold their usable variants only; nodes' memory is without the reserve."""

    nodes: tuple[NodeInfo, ...]
    apps: tuple[AppVersion, ...]
    scenarios: tuple[Scenario, ...]  # without those that leave no node
    settings: PlanSettings
    existing: frozenset[Place] = frozenset()  # replicas that (should) run now; another one is a movement
    staged: frozenset[Contingency] = frozenset()

    @property
    def memory_mb(self) -> float:
        return sum(node.memory_mb for node in self.nodes)


@dataclass(frozen=True, slots=True)
class Way:
    """One way back for a silenced app: load `first`, then replace it by `variant` (or stop there)."""

    first: str
    variant: str
    room_mb: float  # at the worst moment: both at once
    loss: float


def worth(app: AppVersion) -> float:
    return app.weight * WORTH[app.criticality]


def accuracy_lost(app: AppVersion, variant: Variant) -> float:
    """Fraction of the full-size variant's accuracy that `variant` lacks."""
    best = app.full_size.accuracy
    return max(0.0, 1.0 - variant.accuracy / best) if best > 0 else 0.0


def recovery_loss(recovery_ms: float) -> float:
    return RECOVERY * recovery_ms / (recovery_ms + 1000.0)


def primary_loss(app: AppVersion, variant: Variant) -> float:
    degraded = DEGRADED if app.rank(variant.name) > 0 else 0.0
    return worth(app) * (accuracy_lost(app, variant) + degraded) / app.replicas


def standby_loss(app: AppVersion, variant: Variant, settings: PlanSettings) -> float:
    """A standby's price grows with its memory, in full-size replicas of its own app.

    So a smaller standby is taken while it saves more memory than it loses accuracy in the failures that it
    answers, and a full-size one only where the family falls off steeply, however much room there is.
    """
    size = replica_mb(variant) / max(replica_mb(app.full_size), 1e-9)
    return worth(app) * settings.standby_memory_cost * size


def warm_loss(app: AppVersion, variant: Variant) -> float:
    return worth(app) * (accuracy_lost(app, variant) + recovery_loss(WARM_MS))


def cold_loss(app: AppVersion, first: Variant, variant: Variant) -> float:
    late = COLD_CRITICAL if app.criticality is Criticality.CRITICAL else 0.0
    return worth(app) * (accuracy_lost(app, variant) + recovery_loss(COLD_MS + load_ms(first)) + late)


def silent_loss(app: AppVersion) -> float:
    return worth(app) * (SILENT if app.static is None else STATIC)


def unplaced_loss(app: AppVersion) -> float:
    return app.weight * UNPLACED[app.criticality]


def ways(app: AppVersion) -> tuple[Way, ...]:
    """Ways back worth considering, best first: none needs more room than another without losing less."""
    quickest = min(app.variants, key=lambda v: (load_ms(v), replica_mb(v)))
    found = [Way(v.name, v.name, replica_mb(v), cold_loss(app, v, v)) for v in app.variants]
    for variant in app.variants:
        if load_ms(variant) - load_ms(quickest) > PROGRESSIVE_GAIN_MS:
            room_mb = replica_mb(variant) + replica_mb(quickest)
            loss = cold_loss(app, quickest, variant)
            found.append(Way(quickest.name, variant.name, room_mb, loss))
    best: list[Way] = []
    for way in sorted(found, key=lambda w: (w.room_mb, w.loss)):
        if not best or way.loss < best[-1].loss - 1e-9:
            best.append(way)
    return tuple(reversed(best))


def balance(load: float) -> float:
    """The convex price of a node's load (the primaries' share of its memory)."""
    return BALANCE * max(0.0, *(slope * load - intercept for slope, intercept in TANGENTS))


def ideal(problem: Problem) -> float:
    """What a cluster without limits would retain: normal operation and one failure of each kind, per app."""
    return sum(worth(app) for app in problem.apps) * (1 + len(set(problem.settings.survive)))


def score(problem: Problem, plan: Plan) -> float:
    """Weighted accuracy that `plan` retains, minus what it costs. Says nothing about memory limits."""
    loss = _placement_loss(problem, plan) + _movement_loss(problem, plan)
    for scenario in problem.scenarios:
        loss += _scenario_loss(problem, plan, scenario)
    return ideal(problem) - loss


def _placement_loss(problem: Problem, plan: Plan) -> float:
    loss = 0.0
    loads: dict[str, float] = defaultdict(float)
    site_of = {node.name: node.site for node in problem.nodes}
    placements = placements_by_app(plan)
    for app in problem.apps:
        placed = placements.get(app.app, [])
        primaries = [p for p in placed if p.role is Role.PRIMARY]
        missing = app.replicas - len(primaries)
        if not primaries:
            loss += unplaced_loss(app)
            missing -= 1
        loss += worth(app) * REPLICA_MISSING * missing
        loss += worth(app) * SAME_NODE * (len(primaries) - len({p.node for p in primaries}))
        loss += worth(app) * SAME_SITE * (len(primaries) - len({site_of[p.node] for p in primaries}))
        for replica in placed:
            variant = variant_of(app, replica.variant)
            loss += problem.settings.memory_cost * replica_mb(variant) / problem.memory_mb
            if replica.role is Role.PRIMARY:
                loss += primary_loss(app, variant)
                loads[replica.node] += replica_mb(variant)
            else:
                loss += standby_loss(app, variant, problem.settings)
    return loss + sum(balance(loads[node.name] / node.memory_mb) for node in problem.nodes)


def _movement_loss(problem: Problem, plan: Plan) -> float:
    """Replicas that don't exist yet, and contingencies that have to be staged anew."""
    loss = RESTAGE * len(set(plan.contingencies) - problem.staged)
    for placed in plan.placements:
        if place(placed) not in problem.existing:
            primary = placed.role is Role.PRIMARY
            loss += problem.settings.movement_cost * (1.0 + (RELABEL if primary else 0.0))
    return loss


def place(placed: Placement) -> Place:
    return placed.app, placed.version, placed.variant, placed.node


def _scenario_loss(problem: Problem, plan: Plan, scenario: Scenario) -> float:
    loss = 0.0
    placements = placements_by_app(plan)
    answers = {(c.app, c.failure): c for c in plan.contingencies}
    for app in problem.apps:
        placed = placements.get(app.app, [])
        left = [p for p in placed if p.node not in scenario.lost]
        if all(p.role is not Role.PRIMARY for p in placed) or any(p.role is Role.PRIMARY for p in left):
            continue  # paid for as unplaced, or not affected
        for name in scenario.names:
            answer = answers.get((app.app, name))
            if left:
                loss += min(warm_loss(app, variant_of(app, p.variant)) for p in left)
            elif answer is not None:
                loss += cold_loss(app, variant_of(app, answer.first), variant_of(app, answer.variant))
            else:
                loss += silent_loss(app)
    return loss


def placements_by_app(plan: Plan) -> dict[str, list[Placement]]:
    placements: dict[str, list[Placement]] = defaultdict(list)
    for placed in plan.placements:
        placements[placed.app].append(placed)
    return placements


def variant_of(app: AppVersion, name: str) -> Variant:
    variant = app.variant(name)
    check(variant is not None, f"the plan names {name!r}, which is no usable variant of {app.app!r}")
    assert variant is not None
    return variant
