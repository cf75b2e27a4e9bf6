"""Plays every failure against a plan and says what happens.

Lives here: an independent account of a plan, from its records alone. It shares nothing with what made the
plan but what a variant costs its node, so that an error in one shows in the other.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from understudy.core.planning.footprint import busy, load_ms, replica_mb
from understudy.failures import ANY, any_of, to_survive
from understudy.wire.records import (
    AppVersion,
    Contingency,
    Device,
    NodeInfo,
    Outcome,
    Placement,
    Plan,
    Role,
    Variant,
)

WARM_MS = 5.0  # the lost link seen, the request sent again
COLD_MS = 10.0  # the same, and a blank worker activated; what it loads comes on top
SLACK = 1e-5  # of a device's memory or cores: rounding, no more
SUBSETS_MAX = 20_000  # losses of several nodes that are tried one by one for a device

Where = tuple[str, str]  # node, device
Need = tuple[float, float]  # MB, cores


@dataclass(frozen=True, slots=True)
class Replay:
    """`outcomes`: one per failure and app that it affects. `violations`: what is wrong, as sentences."""

    outcomes: tuple[Outcome, ...]
    violations: tuple[str, ...]


def replay(
    plan: Plan,
    apps: tuple[AppVersion, ...],
    nodes: tuple[NodeInfo, ...],
    survive: Iterable[str],
    lacking: Collection[tuple[str, str]] = (),
) -> Replay:
    """What each app answers in each failure, and every rule of planning that the plan breaks.

    Checked are: names that mean something; standbys apart from their primaries; the memory and cores of every
    device in normal operation, and while contingencies swap (both variants loaded); and that no app is left
    silent beside free room. Apps without a primary are the plan's own statement (`unplaced`), no violation.
    `lacking`: (node, environment) where that isn't ready; nothing that needs it may be there.
    Of "any-K" every combination of nodes is covered, whether it is tried by itself or not.
    """
    stage = _Stage(plan, apps, nodes, lacking)
    violations = [
        *stage.misnamed(),
        *stage.unready(),
        *stage.standbys_beside_primaries(),
        *stage.miscounted(),
    ]
    violations += stage.overfull({}, "in normal operation", stage.devices)
    outcomes: list[Outcome] = []
    several = any_of(survive) if len(nodes) > 1 else 0
    for failure, lost in to_survive(nodes, survive).items():
        # Where several nodes may be lost, room that one loss leaves free may be another's.
        found, wrong = stage.play(failure, lost, spare=not several or len(lost) > 1)
        outcomes += found
        violations += wrong
    if several:
        found, wrong = _AnyLoss(stage, min(several, len(nodes) - 1)).play()
        outcomes += found
        violations += wrong
    return Replay(tuple(outcomes), tuple(violations))


class _Stage:
    """The plan, indexed for playing."""

    def __init__(
        self,
        plan: Plan,
        apps: tuple[AppVersion, ...],
        nodes: tuple[NodeInfo, ...],
        lacking: Collection[tuple[str, str]],
    ) -> None:
        self.plan = plan
        self._lacking = lacking
        self.apps = {app.app: app for app in apps}
        self._variants = {
            app.app: {variant.name: (rank, variant) for rank, variant in enumerate(app.variants)}
            for app in apps
        }
        self.nodes = {node.name: node for node in nodes}
        self.devices: dict[Where, Device] = {}
        for node in nodes:
            for device in node.devices or (Device("", node.memory_mb, node.cores),):
                self.devices[node.name, device.name] = device
        self.placements: dict[str, list[Placement]] = defaultdict(list)
        self.apps_on: dict[str, set[str]] = defaultdict(set)
        self.used: dict[Where, Need] = defaultdict(lambda: (0.0, 0.0))
        for placed in plan.placements:
            self.placements[placed.app].append(placed)
            self.apps_on[placed.node].add(placed.app)
            if (variant := self.variant(placed)) is not None:
                where = placed.node, placed.device
                self.used[where] = _sum(self.used[where], self.needs(self.apps[placed.app], variant))
        self.contingencies = {(c.app, c.failure): c for c in plan.contingencies}
        self._staged: dict[str, list[Contingency]] = defaultdict(list)
        for contingency in plan.contingencies:
            self._staged[contingency.failure].append(contingency)

    def variant(self, placed: Placement | Contingency) -> Variant | None:
        app = self.apps.get(placed.app)
        if app is None or app.version != placed.version:
            return None
        return self._variants[placed.app].get(placed.variant, (0, None))[1]

    def rank(self, placed: Placement) -> int:
        return self._variants[placed.app].get(placed.variant, (len(self._variants[placed.app]), None))[0]

    def accuracy(self, placed: Placement | Contingency) -> float:
        variant = self._variants[placed.app].get(placed.variant, (0, None))[1]
        return variant.accuracy if variant is not None else 0.0

    def needs(self, app: AppVersion, variant: Variant) -> Need:
        return replica_mb(variant), busy(app, variant)

    def needs_while_swapping(self, app: AppVersion, contingency: Contingency) -> Need:
        """With both variants loaded, one of which answers: the worst moment of a way back."""
        variants = self._variants[app.app]
        needed = self.needs(app, variants[contingency.variant][1])
        if contingency.first == contingency.variant or contingency.first not in variants:
            return needed
        first = self.needs(app, variants[contingency.first][1])
        return needed[0] + first[0], max(needed[1], first[1])

    # what holds without any failure

    def misnamed(self) -> Iterator[str]:
        for placed in self.plan.placements:
            if (placed.node, placed.device) not in self.devices:
                yield f"a replica of {placed.app!r} is planned on unknown {_named(placed)}"
            if self.variant(placed) is None:
                yield f"{placed.app!r} has no variant {placed.variant!r} in version {placed.version}"
        for key, count in Counter((c.app, c.failure) for c in self.plan.contingencies).items():
            if count > 1:
                yield f"app {key[0]!r} has {count} contingencies for {key[1]}"
        for contingency in self.plan.contingencies:
            app = self.apps.get(contingency.app)
            if (contingency.node, contingency.device) not in self.devices:
                yield f"contingency {contingency.key} names unknown {_named(contingency)}"
            if self.variant(contingency) is None or (app and app.variant(contingency.first) is None):
                yield f"contingency {contingency.key} names an unknown variant or version"

    def unready(self) -> Iterator[str]:
        """Replicas, and what contingencies load, where their environment isn't ready."""
        planned: tuple[Placement | Contingency, ...] = (*self.plan.placements, *self.plan.contingencies)
        for placed in planned:
            names = {placed.variant} | ({placed.first} if isinstance(placed, Contingency) else set())
            variants = self._variants.get(placed.app, {})
            for name in sorted(names & variants.keys()):
                if not self._runs(variants[name][1], placed.node):
                    where = f"{_named(placed)}, which lacks its packages"
                    yield f"{name!r} of {placed.app!r} is planned on {where}"

    def _runs(self, variant: Variant, node: str) -> bool:
        return (node, variant.environment_key) not in self._lacking

    def standbys_beside_primaries(self) -> Iterator[str]:
        for app, placements in self.placements.items():
            primaries = {p.node for p in placements if p.role is Role.PRIMARY}
            for placed in placements:
                if placed.role is Role.STANDBY and placed.node in primaries:
                    yield f"the standby of {app!r} shares node {placed.node} with its primary"

    def miscounted(self) -> Iterator[str]:
        for name, app in self.apps.items():
            primaries = sum(p.role is Role.PRIMARY for p in self.placements[name])
            if primaries > app.replicas:
                yield f"app {name!r} has {primaries} primaries, more than its {app.replicas}"
            if primaries == 0 and name not in self.plan.unplaced:
                yield f"app {name!r} has no primary, and the plan doesn't say why"

    def overfull(self, added: dict[Where, Need], when: str, where: Iterable[Where]) -> Iterator[str]:
        for at in where:
            device = self.devices.get(at)
            if device is None:
                continue
            mb, needed = _sum(self.used[at], added.get(at, (0.0, 0.0)))
            if mb > device.memory_mb * (1 + SLACK):
                yield f"{_name(at)} needs {mb:.1f} MB {when}, and has {device.memory_mb:.1f} MB"
            if device.cores and needed > device.cores * (1 + SLACK):
                yield (f"{_name(at)} needs {needed:.2f} cores {when}, and has {device.cores:.2f}")

    # what happens in a failure

    def play(self, failure: str, lost: frozenset[str], *, spare: bool) -> tuple[list[Outcome], list[str]]:
        """Outcomes of the apps that lose a replica, and what breaks a rule; `spare` room has to be used."""
        outcomes = []
        during: dict[Where, Need] = defaultdict(lambda: (0.0, 0.0))
        silent = []
        for name in sorted({app for node in lost for app in self.apps_on[node]}):
            app = self.apps.get(name)
            if app is None:
                continue
            outcome = self._outcome(app, failure, lost)
            if outcome is None:
                continue
            outcomes.append(outcome)
            if outcome.how == "cold":
                acting = self.contingencies[name, failure]
                where = acting.node, acting.device
                during[where] = _sum(during[where], self.needs_while_swapping(app, acting))
            elif outcome.how in ("none", "static"):
                silent.append(app)
        violations = [
            f"contingency {c.key} acts on node {c.node}, which is lost itself"
            for c in self._staged[failure]
            if c.node in lost
        ]
        violations += self.overfull(during, f"while contingencies for {failure} swap variants", during)
        if spare and silent:
            violations += self._needless_silence(silent, failure, lost, during)
        return outcomes, violations

    def _outcome(self, app: AppVersion, failure: str, lost: frozenset[str]) -> Outcome | None:
        """None: the failure doesn't affect it."""
        placements = self.placements[app.app]
        left = [p for p in placements if p.node not in lost]
        if left:
            primaries = [p.node for p in placements if p.role is Role.PRIMARY]
            if primaries and lost.isdisjoint(primaries):
                return None
            best = min(left, key=lambda p: (self.rank(p), p.role is not Role.PRIMARY))
            return Outcome(failure, app.app, "warm", best.variant, best.node, self.accuracy(best), WARM_MS)
        contingency = self.contingencies.get((app.app, failure))
        if contingency is not None and self.can_act(contingency, lost):
            return self.cold_outcome(failure, contingency)
        return Outcome(failure, app.app, silence(app), None, None, 0.0, 0.0)

    def cold_outcome(self, failure: str, c: Contingency) -> Outcome:
        first = self._variants[c.app].get(c.first, (0, None))[1]
        recovery_ms = COLD_MS + (load_ms(first) if first else 0.0)
        return Outcome(failure, c.app, "cold", c.variant, c.node, self.accuracy(c), recovery_ms)

    def can_act(self, contingency: Contingency, lost: Collection[str]) -> bool:
        known = (contingency.node, contingency.device) in self.devices
        return known and contingency.node not in lost and self.variant(contingency) is not None

    def _needless_silence(
        self, silent: list[AppVersion], failure: str, lost: frozenset[str], during: dict[Where, Need]
    ) -> Iterator[str]:
        free = []
        for at, device in self.devices.items():
            mb, needed = _sum(self.used[at], during.get(at, (0.0, 0.0)))
            if at[0] not in lost:
                idle = device.cores - needed if device.cores else math.inf
                free.append((device.memory_mb * (1 - SLACK) - mb, idle, at))
        largest = max((mb for mb, _, _ in free), default=0.0)
        for app in silent:
            for variant in sorted(app.variants, key=replica_mb):
                needed_mb = replica_mb(variant)
                if needed_mb >= largest:
                    break
                fits = [
                    at
                    for mb, idle, at in free
                    if mb > needed_mb and idle > busy(app, variant) and self._runs(variant, at[0])
                ]
                if fits:
                    yield (
                        f"app {app.app!r} has no contingency for {failure}, although {_name(fits[0])} has "
                        f"room for its variant {variant.name!r} ({needed_mb:.1f} MB)"
                    )
                    break


class _AnyLoss:
    """The loss of whichever K nodes at once, by what it can do to each app and to each device at worst."""

    def __init__(self, stage: _Stage, several: int) -> None:
        self._stage = stage
        self._several = several
        # By device: which nodes have to be lost for a contingency to act there, and what it needs then.
        self._acting: dict[Where, list[tuple[frozenset[str], Need]]] = defaultdict(list)

    def play(self) -> tuple[list[Outcome], list[str]]:
        failure = f"{ANY}{self._several}"
        worst = [self._worst(app, failure) for app in self._stage.apps.values()]
        violations: list[str] = []
        for at, acting in self._acting.items():
            device, used = self._stage.devices[at], self._stage.used[at]
            mb = _most([(lost, mb) for lost, (mb, _) in acting], self._several, device.memory_mb - used[0])
            idle = device.cores - used[1] if device.cores else math.inf
            needed = _most([(lost, needed) for lost, (_, needed) in acting], self._several, idle)
            violations += self._stage.overfull({at: (mb, needed)}, f"after {failure} at worst", [at])
        return [outcome for outcome in worst if outcome is not None], violations

    def _worst(self, app: AppVersion, failure: str) -> Outcome | None:
        """The worst answer that is left to `app`; notes what its ways back need."""
        placements = self._stage.placements[app.app]
        primaries = {p.node for p in placements if p.role is Role.PRIMARY}
        lost = {p.node for p in placements}
        if not primaries or len(primaries) > self._several:
            return None
        if len(lost) > self._several:
            worst = self._last([p for p in placements if p.node not in primaries], len(primaries))
            accuracy = self._stage.accuracy(worst)
            return Outcome(failure, app.app, "warm", worst.variant, worst.node, accuracy, WARM_MS)
        found = []
        while len(lost) <= self._several:
            name = f"{ANY}{len(lost)}" if len(lost) > 1 else f"node:{min(lost)}"
            contingency = self._stage.contingencies.get((app.app, name))
            if contingency is None or not self._stage.can_act(contingency, lost):
                return Outcome(failure, app.app, silence(app), None, None, 0.0, 0.0)
            needs = self._stage.needs_while_swapping(app, contingency)
            self._acting[contingency.node, contingency.device].append((frozenset(lost), needs))
            found.append(self._stage.cold_outcome(failure, contingency))
            lost = lost | {contingency.node}
        return min(found, key=lambda outcome: (outcome.accuracy, -outcome.recovery_ms))

    def _last(self, standbys: list[Placement], lost: int) -> Placement:
        """What answers when the best standbys are lost with the primaries."""
        ranked = sorted(standbys, key=self._stage.rank)
        by_node = {placed.node: placed for placed in reversed(ranked)}
        left = sorted(by_node.values(), key=self._stage.rank)
        return left[self._several - lost]


def _most(acting: list[tuple[frozenset[str], float]], several: int, free: float) -> float:
    """The most that the loss of `several` nodes can ask of a device; never too little.

    Each need is charged to one of the nodes whose loss it waits for, and the largest charges are added up.
    Where that is more than is free, the losses are tried one by one if these are few enough: of two nodes,
    only pairs that something waits for can be worse than the two worst nodes.
    """
    charged: dict[str, float] = defaultdict(float)
    for needed, need in acting:
        charged[min(needed)] += need
    bound = sum(heapq.nlargest(several, charged.values()))
    nodes = sorted(set().union(*(needed for needed, _ in acting)))
    several = min(several, len(nodes))
    if bound <= free or (several > 2 and math.comb(len(nodes), several) > SUBSETS_MAX):
        return bound
    if several > 2:
        losses = {frozenset(lost) for lost in itertools.combinations(nodes, several)}
    else:
        alone = {node: sum(need for needed, need in acting if needed == {node}) for node in nodes}
        losses = {needed for needed, _ in acting if len(needed) == several}
        losses.add(frozenset(heapq.nlargest(several, nodes, key=lambda node: alone[node])))
    return max(sum(need for needed, need in acting if needed <= lost) for lost in losses)


def silence(app: AppVersion) -> str:
    return "none" if app.static is None else "static"


def _sum(one: Need, other: Need) -> Need:
    return one[0] + other[0], one[1] + other[1]


def _name(at: Where) -> str:
    return f"node {at[0]} device {at[1]}" if at[1] else f"node {at[0]}"


def _named(placed: Placement | Contingency) -> str:
    return f"device {placed.device!r} of node {placed.node!r}" if placed.device else f"node {placed.node!r}"
