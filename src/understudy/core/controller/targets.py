"""From the plan and what is observed to what each node shall run now. Pure and stateless.

Make before break: what an app runs on is kept until all its planned primaries have been ready for a while;
then the rest goes, and the activations that gateways made are released.

Keeping costs memory that the plan gave to others. Where a node can't hold both, room is made in this order,
until it fits: standbys that don't run yet wait; kept replicas go whose app has another one ready; the only
replica of an app gets a bridge, its smallest variant on a node with room or in the place of a standby that
isn't needed now, and goes when that is ready. The only replica of an app goes without a bridge if the plan
gave the app up for what is worth as much, for an app that nobody answers for and that is worth as much, and,
when nothing else moves any more, if its successor is loaded so well within the app's deadline that requests
can wait for it. So a plan is carried out however little room there is, if its models load quickly.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from understudy.core.controller.environments import is_ready
from understudy.core.controller.nodes import Node
from understudy.core.lifecycle import NodePhase, ReplicaPhase
from understudy.core.planning.footprint import load_ms, replica_mb
from understudy.wire.messages import ReplicaState, Target, TargetReplica
from understudy.wire.records import (
    AppVersion,
    ArtifactRef,
    Contingency,
    Criticality,
    Placement,
    Plan,
    Role,
)

# Answers, or is about to.
STARTING = (ReplicaPhase.STARTING, ReplicaPhase.LOADING)
LIVE = (*STARTING, ReplicaPhase.READY, ReplicaPhase.FAILING)
# A replica on any other may be gone already.
ANSWERING_NODES = (NodePhase.READY, NodePhase.RETURNING, NodePhase.DRAINED)
WORTH = {Criticality.BEST_EFFORT: 0, Criticality.STANDARD: 1, Criticality.CRITICAL: 2}

RELEASE_WAIT_MAX_S = 60.0
SOON = 5.0  # times the last wait
SWAP_FRACTION = 0.25  # of an app's deadline, which a successor may take to load while nobody answers

What = tuple[str, int, str]  # (app, version, variant)


class TargetFacts(msgspec.Struct):
    plan: Plan
    apps: Mapping[str, AppVersion]  # the version of each app that the plan is about
    versions: Mapping[tuple[str, int], AppVersion]  # every version that may still run
    nodes: Mapping[str, Node]
    stable: frozenset[str] = frozenset()  # apps whose planned primaries have been ready for long enough
    quarantined: frozenset[What] = frozenset()
    asked: Mapping[str, tuple[What, ...]] = msgspec.field(default_factory=dict)  # to be tried, by node
    previous: Mapping[str, AppVersion] = msgspec.field(default_factory=dict)  # may be called back by gateways

    def is_planned(self, app: str, version: int) -> bool:
        """False for what the plan says of an app that was removed, or removed and deployed anew, since."""
        return app in self.apps and self.apps[app].version == version


@dataclass(frozen=True, slots=True)
class ReleaseWait:
    """How long to wait before a stand-in is released, longer each time that a gateway wants it back soon.

    Gateways see what reports don't: a replica that is ready and fails its users. Without this its stand-in
    would be released and loaded again for as long as they eject it.
    """

    wait_s: float = 0.0
    since_s: float = -math.inf

    def after(self, now: float, first_s: float) -> ReleaseWait:
        """Something was loaded for the app at `now`."""
        soon = now - self.since_s < SOON * max(self.wait_s, first_s)
        return ReleaseWait(min(RELEASE_WAIT_MAX_S, 2 * self.wait_s) if soon else first_s, now)


@dataclass(slots=True)
class _Draft:
    """One node's target in the making. Every observed replica that stays is in exactly one list."""

    node: Node
    planned: list[TargetReplica]
    running: list[ReplicaState] = field(default_factory=list)  # what carries out `planned` already
    kept: list[ReplicaState] = field(default_factory=list)
    activated: list[ReplicaState] = field(default_factory=list)  # by gateways, and still needed
    released: set[str] = field(default_factory=set)
    bridges: list[TargetReplica] = field(default_factory=list)

    def has_ready(self, app: str) -> int:
        """How many ready replicas of `app` stay here. A node in doubt counts for nothing."""
        if self.node.state not in ANSWERING_NODES:
            return 0
        stays = (*self.running, *self.kept, *self.activated)
        return sum(replica.app == app and replica.state == ReplicaPhase.READY for replica in stays)

    def waiting(self) -> list[TargetReplica]:
        """What is planned here and doesn't run yet."""
        running = Counter(map(_what, self.running))
        found = []
        for placed in self.planned:
            running[_what(placed)] -= 1
            if running[_what(placed)] < 0:
                found.append(placed)
        return found

    def postpone(self, placed: TargetReplica) -> None:
        self.planned = [other for other in self.planned if other is not placed]

    def take_away(self, replica: ReplicaState) -> None:
        if not replica.activation:
            self.kept.remove(replica)
            return
        # An activation may be running two variants, on its way from the first to the better one.
        self.activated = [r for r in self.activated if r.activation != replica.activation]
        self.released.add(replica.activation)


def settled_apps(plan: Plan, nodes: Mapping[str, Node]) -> frozenset[str]:
    """Apps with a planned primary whose planned primaries are all ready now, on nodes that are ready."""
    wanted: dict[str, Counter[tuple[str, What]]] = {}
    for placement in plan.placements:
        if placement.role is Role.PRIMARY:
            what = (placement.app, placement.version, placement.variant)
            wanted.setdefault(placement.app, Counter())[(placement.node, what)] += 1
    ready: Counter[tuple[str, What]] = Counter()
    for name, node in nodes.items():
        if node.state == NodePhase.READY:
            ready.update(
                (name, _what(replica)) for replica in _observed(node) if replica.state == ReplicaPhase.READY
            )
    return frozenset(app for app, counts in wanted.items() if counts <= ready)


def activated_replicas(nodes: Mapping[str, Node]) -> frozenset[tuple[str, str]]:
    """(app, replica) of all that gateways had started."""
    return frozenset(
        (replica.app, replica.id)
        for node in nodes.values()
        for replica in _observed(node)
        if replica.activation
    )


def make_targets(facts: TargetFacts) -> dict[str, Target]:
    """A target for each node that reported what it runs; all with revision 0."""
    placements: dict[str, list[Placement]] = defaultdict(list)
    for placed in facts.plan.placements:
        if facts.is_planned(placed.app, placed.version):
            placements[placed.node].append(placed)
    drafts = [
        _draft(node, facts, placements[name])
        for name, node in sorted(facts.nodes.items())
        if node.connected and node.observed is not None and node.state != NodePhase.DEAD
    ]
    _make_room(drafts, facts)
    contingencies: dict[str, list[Contingency]] = defaultdict(list)
    for c in facts.plan.contingencies:
        if facts.is_planned(c.app, c.version):
            contingencies[c.node].append(c)
    names = [draft.node.info.name for draft in drafts]
    return {
        name: _target(draft, facts, tuple(contingencies[name]))
        for name, draft in zip(names, drafts, strict=True)
    }


def _draft(node: Node, facts: TargetFacts, placements: list[Placement]) -> _Draft:
    planned = [TargetReplica(p.app, p.version, p.variant, p.role) for p in placements if node.plannable]
    asked = facts.asked.get(node.info.name, ()) if node.plannable else ()
    planned += [TargetReplica(*what, Role.STANDBY) for what in asked if what not in map(_what, planned)]
    draft = _Draft(node, planned)
    missing = Counter(_what(replica) for replica in planned)
    # An activation that the plan wants too is re-labelled, but a replica of the plan's own comes first.
    for replica in sorted(
        _observed(node), key=lambda r: (bool(r.activation), r.state != ReplicaPhase.READY, r.id)
    ):
        what = _what(replica)
        needed = replica.app in facts.apps and replica.app not in facts.stable
        # A version that had to be called back stays until the next: the current one may pass its probes.
        previous = facts.previous.get(replica.app)
        recalled = previous is not None and replica.version == previous.version
        if missing[what] > 0 and replica.state in LIVE:
            missing[what] -= 1
            draft.running.append(replica)
        elif replica.activation and (needed or recalled):
            draft.activated.append(replica)
        elif replica.activation:
            draft.released.add(replica.activation)
        elif needed and replica.state in LIVE and what[:2] in facts.versions:
            draft.kept.append(replica)
    return draft


# Room


def _make_room(drafts: list[_Draft], facts: TargetFacts) -> None:
    for draft in drafts:
        _defer_standbys(draft, facts)
    for draft in drafts:
        for replica in _surplus(draft, facts):
            elsewhere = sum(other.has_ready(replica.app) for other in drafts) > 1
            if _excess_mb(draft, facts) > 0 and (replica.state != ReplicaPhase.READY or elsewhere):
                draft.take_away(replica)
    for draft in drafts:
        if _excess_mb(draft, facts) > 0:
            _make_way(draft, drafts, facts)


def _defer_standbys(draft: _Draft, facts: TargetFacts) -> None:
    """Standbys that don't run yet wait while something that is kept is in their place."""
    if not draft.kept and not draft.activated:
        return
    for placed in draft.waiting():
        if placed.role is not Role.PRIMARY and _excess_mb(draft, facts) > 0:
            draft.postpone(placed)


def _make_way(draft: _Draft, drafts: list[_Draft], facts: TargetFacts) -> None:
    """Only replicas that are the last of their app are left in the way."""
    planned = {placed.app for placed in facts.plan.placements}
    silent = [
        _worth(facts.apps[replica.app])
        for replica in draft.planned
        if replica.role is Role.PRIMARY and not any(other.has_ready(replica.app) for other in drafts)
    ]
    waiting = [_worth(facts.apps[r.app]) for r in draft.waiting() if r.role is Role.PRIMARY]
    for replica in _surplus(draft, facts):
        if _excess_mb(draft, facts) <= 0:
            return
        app = facts.apps[replica.app]
        if _on_its_way(app, drafts, facts) or _bridge(app, drafts, facts):
            continue
        rivals = silent if app.app in planned else waiting
        if rivals and max(rivals) >= _worth(app):
            draft.take_away(replica)
        elif _swaps(replica, draft, drafts, facts):
            return


def _swaps(replica: ReplicaState, draft: _Draft, drafts: list[_Draft], facts: TargetFacts) -> bool:
    """Have what is planned here loaded in place of `replica`, if it is back so soon that nobody notices.

    In its place comes its own successor; or that of another one whose place is where `replica` goes.
    """
    app = facts.apps[replica.app]
    if any(r.state in STARTING for other in drafts for r in _observed(other.node)):
        return False  # what comes may make room without it
    for other in drafts:
        for goes in [replica] if other is draft else (*other.kept, *other.activated):
            here, there = _planned(goes.app, draft), _planned(app.app, other)
            if here is None or there is None:
                continue
            pause_ms = sum(_load_ms(placed, facts) for placed in {id(p): p for p in (here, there)}.values())
            fits = _fits(here, replica, draft, facts) and _fits(there, goes, other, facts)
            if fits and pause_ms <= SWAP_FRACTION * app.deadline_ms:
                draft.take_away(replica)
                for placed in draft.waiting():
                    if placed is not here:
                        draft.postpone(placed)
                return True
    return False


def _planned(app: str, draft: _Draft) -> TargetReplica | None:
    """The primary of `app` that is to run on this node, and doesn't yet."""
    return next((r for r in draft.waiting() if r.app == app and r.role is Role.PRIMARY), None)


def _fits(placed: TargetReplica, instead: ReplicaState, draft: _Draft, facts: TargetFacts) -> bool:
    running = (*draft.running, *draft.kept, *draft.activated)
    stays_mb = sum(_memory_mb(replica, facts) for replica in running if replica is not instead)
    return stays_mb + _memory_mb(placed, facts) <= draft.node.info.memory_mb


def _on_its_way(app: AppVersion, drafts: list[_Draft], facts: TargetFacts) -> bool:
    """Whether another replica of `app` is being started where there is room for it."""
    for draft in drafts:
        starting = [r for r in (*draft.kept, *draft.activated) if r.state in STARTING]
        fits = _excess_mb(draft, facts) <= 0
        ordered = [r for r in draft.planned if fits] + draft.bridges
        if any(r.app == app.app for r in starting) or any(r.app == app.app for r in ordered):
            return True
    return False


def _bridge(app: AppVersion, drafts: list[_Draft], facts: TargetFacts) -> bool:
    """Have the smallest variant of `app` started where there is most room. False: it fits nowhere."""
    variants = [v for v in app.variants if (app.app, app.version, v.name) not in facts.quarantined]
    if not variants:
        return False
    smallest = min(variants, key=replica_mb)
    key = smallest.environment_key
    ready = [draft for draft in drafts if draft.node.state == NodePhase.READY and is_ready(key, draft.node)]
    for draft in sorted(ready, key=lambda draft: _excess_mb(draft, facts)):
        given_up = _dispensable(draft, replica_mb(smallest), drafts, facts)
        if given_up is not None:
            for standby in given_up:
                draft.postpone(standby)
                draft.running.remove(next(r for r in draft.running if _what(r) == _what(standby)))
            draft.bridges.append(TargetReplica(app.app, app.version, smallest.name, Role.STANDBY))
            return True
    return False


def _dispensable(
    draft: _Draft, needed_mb: float, drafts: list[_Draft], facts: TargetFacts
) -> list[TargetReplica] | None:
    """Which running standbys may go for a while so that `needed_mb` fit; None if that isn't enough."""
    waiting = draft.waiting()
    running = [r for r in draft.planned if r.app in facts.apps and not any(r is w for w in waiting)]
    standbys = [r for r in running if r.role is not Role.PRIMARY]
    found: list[TargetReplica] = []
    lacking_mb = needed_mb + _excess_mb(draft, facts)
    for standby in sorted(standbys, key=lambda r: (_worth(facts.apps[r.app]), -_memory_mb(r, facts))):
        if lacking_mb > 0 and any(other.has_ready(standby.app) for other in drafts if other is not draft):
            found.append(standby)
            lacking_mb -= _memory_mb(standby, facts)
    return found if lacking_mb <= 0 else None


def _surplus(draft: _Draft, facts: TargetFacts) -> list[ReplicaState]:
    """What could be taken away, the most expendable first."""
    return sorted(
        draft.kept + draft.activated,
        key=lambda r: (r.state == ReplicaPhase.READY, _worth(facts.apps[r.app]), -_memory_mb(r, facts), r.id),
    )


def _excess_mb(draft: _Draft, facts: TargetFacts) -> float:
    """Memory that the draft needs beyond what its node has; negative: that much is free."""
    observed = sum(_memory_mb(replica, facts) for replica in (*draft.kept, *draft.activated))
    ordered = sum(_memory_mb(replica, facts) for replica in (*draft.planned, *draft.bridges))
    return observed + ordered - draft.node.info.memory_mb


def _memory_mb(replica: TargetReplica | ReplicaState, facts: TargetFacts) -> float:
    """As the agent counts it."""
    app = facts.versions.get((replica.app, replica.version))
    variant = app.variant(replica.variant) if app else None
    if variant is not None:
        return replica_mb(variant)
    return replica.memory_mb if isinstance(replica, ReplicaState) else 0.0


def _load_ms(placed: TargetReplica, facts: TargetFacts) -> float:
    variant = facts.apps[placed.app].variant(placed.variant)
    return load_ms(variant) if variant is not None else math.inf


def _worth(app: AppVersion) -> tuple[int, float]:
    return WORTH[app.criticality], app.weight


# The message


def _target(draft: _Draft, facts: TargetFacts, contingencies: tuple[Contingency, ...]) -> Target:
    kept = [
        TargetReplica(r.app, r.version, r.variant, Role.STANDBY if r.role is Role.CONTINGENCY else r.role)
        for r in draft.kept
    ]
    replicas = (*draft.planned, *kept, *draft.bridges)
    # Former versions first: who looks an app up by its name alone finds the one that is planned.
    former = {_what(r)[:2] for r in replicas} | {_what(r)[:2] for r in draft.activated}
    former |= {(app.app, app.version) for app in facts.previous.values()}
    former -= {(app.app, app.version) for app in facts.apps.values()}
    apps = [facts.versions[key] for key in sorted(former) if key in facts.versions]
    apps += [facts.apps[app] for app in sorted(facts.apps)]
    wanted = [_what(replica) for replica in replicas]
    wanted += [(c.app, c.version, variant) for c in contingencies for variant in (c.first, c.variant)]
    # Any node can become the last resort, so it has the smallest variant of every app on its disk.
    last_resorts = (*facts.apps.values(), *facts.previous.values())
    wanted += [(app.app, app.version, app.smallest.name) for app in last_resorts]
    return Target(
        revision=0,
        apps=tuple(apps),
        replicas=replicas,
        contingencies=contingencies,
        stage=_artifacts(wanted, facts),
        released=tuple(sorted(draft.released)),
        quarantined=tuple(sorted(facts.quarantined - set(facts.asked.get(draft.node.info.name, ())))),
    )


def _artifacts(wanted: list[What], facts: TargetFacts) -> tuple[ArtifactRef, ...]:
    found: dict[str, ArtifactRef] = {}
    for app_name, version, variant_name in wanted:
        app = facts.versions.get((app_name, version))
        variant = app.variant(variant_name) if app else None
        if variant is not None:
            found.setdefault(variant.artifact.digest, variant.artifact)
    return tuple(found[digest] for digest in sorted(found))


def _observed(node: Node) -> tuple[ReplicaState, ...]:
    return node.observed.replicas if node.observed is not None else ()


def _what(replica: ReplicaState | TargetReplica) -> What:
    return replica.app, replica.version, replica.variant
