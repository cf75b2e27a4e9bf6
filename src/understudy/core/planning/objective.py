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

from understudy.core.planning.footprint import busy, load_ms, replica_mb
from understudy.core.planning.replay import COLD_MS, WARM_MS
from understudy.failures import kind_of
from understudy.invariants import check
from understudy.settings.plan import PlanSettings
from understudy.wire.records import (
    AppVersion,
    Contingency,
    Criticality,
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


Place = tuple[str, int, str, str, str]  # app, version, variant, node, device
Lack = tuple[str, str]  # node, key of an environment that isn't ready there


@dataclass(frozen=True, slots=True)
class Bin:
    """What replicas are placed on: a device, or a whole node that has none. Without the reserve."""

    node: str
    device: str
    site: str
    memory_mb: float
    cores: float  # infinite where not limited


@dataclass(frozen=True, slots=True)
class Scenario:
    """Failures that take the same nodes away, so that one answer serves them all."""

    names: tuple[str, ...]
    lost: frozenset[str]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be decided. Apps hold their usable variants only."""

    bins: tuple[Bin, ...]
    apps: tuple[AppVersion, ...]
    scenarios: tuple[Scenario, ...]  # without those that leave no node
    settings: PlanSettings
    any_of: int = 0  # whichever so many nodes may be lost together; 0: one at most
    existing: frozenset[Place] = frozenset()  # replicas that (should) run now; another one is a movement
    staged: frozenset[Contingency] = frozenset()
    lacking: frozenset[Lack] = frozenset()

    def runs(self, variant: Variant, held: Bin) -> bool:
        """Whether its environment is ready there."""
        return not self.lacking or (held.node, variant.environment_key) not in self.lacking

    @property
    def memory_mb(self) -> float:
        return sum(held.memory_mb for held in self.bins)

    @property
    def situations(self) -> int:
        """Normal operation, and one failure of each kind."""
        kinds = {kind_of(name) for scenario in self.scenarios for name in scenario.names}
        return 1 + len(kinds) + (self.any_of > 0)


@dataclass(frozen=True, slots=True)
class Way:
    """One way back for a silenced app: load `first`, then replace it by `variant` (or stop there)."""

    first: str
    variant: str
    room_mb: float  # at the worst moment: both at once
    busy: float
    loss: float


def worth(app: AppVersion) -> float:
    return app.weight * WORTH[app.criticality]


def accuracy_lost(app: AppVersion, variant: Variant) -> float:
    """Fraction of the full-size variant's accuracy that `variant` lacks."""
    best = app.full_size.accuracy
    return max(0.0, 1.0 - variant.accuracy / best) if best > 0 else 0.0


def recovery_loss(recovery_ms: float) -> float:
    return RECOVERY * recovery_ms / (recovery_ms + 1000.0)


def memory_loss(variant: Variant, settings: PlanSettings) -> float:
    return settings.memory_cost * replica_mb(variant) / 1000.0


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
    sizes = [replica_mb(variant) for variant in app.variants]
    quickest = min(app.variants, key=lambda v: (load_ms(v), replica_mb(v)))
    found = [
        Way(v.name, v.name, size, busy(app, v), cold_loss(app, v, v))
        for v, size in zip(app.variants, sizes, strict=True)
    ]
    for variant, size in zip(app.variants, sizes, strict=True):
        if load_ms(variant) - load_ms(quickest) > PROGRESSIVE_GAIN_MS:
            needed = max(busy(app, variant), busy(app, quickest))
            loss = cold_loss(app, quickest, variant)
            found.append(Way(quickest.name, variant.name, size + replica_mb(quickest), needed, loss))
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
    return sum(worth(app) for app in problem.apps) * problem.situations


def score(problem: Problem, plan: Plan) -> float:
    """Weighted accuracy that `plan` retains, minus what it costs. Says nothing about limits."""
    placements = placements_by_app(plan)
    apps_on: dict[str, set[str]] = defaultdict(set)
    for placed in plan.placements:
        apps_on[placed.node].add(placed.app)
    loss = _placement_loss(problem, placements) + _movement_loss(problem, plan)
    answers = {(c.app, c.failure): c for c in plan.contingencies}
    apps = {app.app: app for app in problem.apps}
    for scenario in problem.scenarios:
        for name in sorted(set().union(*(apps_on[node] for node in scenario.lost))):
            for failure in scenario.names:
                answer = answers.get((name, failure))
                loss += _failure_loss(apps[name], placements[name], scenario.lost, answer)
    if problem.any_of:
        for app in problem.apps:
            loss += worst_loss(app, placements.get(app.app, []), answers, problem.any_of)
    return ideal(problem) - loss


def _placement_loss(problem: Problem, placements: dict[str, list[Placement]]) -> float:
    loss = 0.0
    loads: dict[tuple[str, str], float] = defaultdict(float)
    site_of = {held.node: held.site for held in problem.bins}
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
            loss += memory_loss(variant, problem.settings)
            if replica.role is Role.PRIMARY:
                loss += primary_loss(app, variant)
                loads[replica.node, replica.device] += replica_mb(variant)
            else:
                loss += standby_loss(app, variant, problem.settings)
    return loss + sum(balance(loads[held.node, held.device] / held.memory_mb) for held in problem.bins)


def _movement_loss(problem: Problem, plan: Plan) -> float:
    """Replicas that don't exist yet, and contingencies that have to be staged anew."""
    loss = RESTAGE * len(set(plan.contingencies) - problem.staged)
    for placed in plan.placements:
        if place(placed) not in problem.existing:
            primary = placed.role is Role.PRIMARY
            loss += problem.settings.movement_cost * (1.0 + (RELABEL if primary else 0.0))
    return loss


def place(placed: Placement) -> Place:
    return placed.app, placed.version, placed.variant, placed.node, placed.device


def _failure_loss(
    app: AppVersion, placed: list[Placement], lost: frozenset[str], answer: Contingency | None
) -> float:
    left = [p for p in placed if p.node not in lost]
    if all(p.role is not Role.PRIMARY for p in placed) or any(p.role is Role.PRIMARY for p in left):
        return 0.0  # paid for as unplaced, or not affected
    if left:
        return min(warm_loss(app, variant_of(app, p.variant)) for p in left)
    if answer is None:
        return silent_loss(app)
    return cold_loss(app, variant_of(app, answer.first), variant_of(app, answer.variant))


def worst_loss(
    app: AppVersion, placed: list[Placement], answers: dict[tuple[str, str], Contingency], any_of: int
) -> float:
    """The most that losing whichever `any_of` nodes costs `app`."""
    primaries = [p for p in placed if p.role is Role.PRIMARY]
    nodes = list(dict.fromkeys(p.node for p in placed))
    if not primaries or len({p.node for p in primaries}) > any_of:
        return 0.0
    if len(nodes) > any_of:
        standbys = [p for p in placed if p.role is not Role.PRIMARY]
        return max(warm_loss(app, variant_of(app, p.variant)) for p in standbys)
    ways_back = [answers.get((app.app, failure)) for failure in chain(nodes, any_of)]
    if any(way is None for way in ways_back):
        return silent_loss(app)
    return max(
        cold_loss(app, variant_of(app, way.first), variant_of(app, way.variant)) for way in ways_back if way
    )


def chain(nodes: list[str], any_of: int) -> list[str]:
    """Names of the contingencies of an app with replicas on `nodes`, in the order in which they are lost."""
    names = [f"node:{nodes[0]}" if len(nodes) == 1 else f"any-{len(nodes)}"]
    return names + [f"any-{count}" for count in range(len(nodes) + 1, any_of + 1)]


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
