"""Plays every failure against a plan and says what happens.

Lives here: an independent account of a plan, from its records alone. It shares nothing with the program that
made the plan but what a variant costs its node, so that an error in one shows in the other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from understudy.core.planning.footprint import load_ms, replica_mb
from understudy.wire.records import AppVersion, Contingency, NodeInfo, Outcome, Placement, Plan, Role, Variant

WARM_MS = 5.0  # the lost link seen, the request sent again
COLD_MS = 10.0  # the same, and a blank worker activated; what it loads comes on top
SLACK = 1e-5  # of a node's memory: rounding, no more


@dataclass(frozen=True, slots=True)
class Replay:
    """`outcomes`: one per failure and app. `violations`: what is wrong with the plan, as sentences."""

    outcomes: tuple[Outcome, ...]
    violations: tuple[str, ...]


def replay(
    plan: Plan, apps: tuple[AppVersion, ...], nodes: tuple[NodeInfo, ...], failures: Iterable[str]
) -> Replay:
    """What each app answers in each failure, and every rule of planning that the plan breaks.

    Checked are: names that mean something; standbys apart from their primaries; the memory of every node in
    normal operation, while contingencies swap (both variants loaded) and afterwards; and that no app is left
    silent beside free room. Apps without a primary are the plan's own statement (`unplaced`), no violation.
    """
    stage = _Stage(plan, apps, nodes)
    violations = [*stage.misnamed(), *stage.standbys_beside_primaries(), *stage.miscounted()]
    violations += stage.overfull({}, frozenset(), "in normal operation")
    outcomes: list[Outcome] = []
    for failure in failures:
        lost = lost_nodes(failure, nodes)
        if not lost:
            violations.append(f"failure {failure!r} names no node or site of the cluster")
            continue
        outcomes += (stage.outcome(app, failure, lost) for app in apps)
        violations += stage.violations_in(failure, lost)
    return Replay(tuple(outcomes), tuple(violations))


def lost_nodes(failure: str, nodes: Iterable[NodeInfo]) -> frozenset[str]:
    """The nodes that `failure` ("node:NAME" or "site:NAME") takes away."""
    kind, _, name = failure.partition(":")
    if kind == "site":
        return frozenset(node.name for node in nodes if node.site == name)
    return frozenset(node.name for node in nodes if kind == "node" and node.name == name)


class _Stage:
    """The plan, indexed for playing."""

    def __init__(self, plan: Plan, apps: tuple[AppVersion, ...], nodes: tuple[NodeInfo, ...]) -> None:
        self._plan = plan
        self._apps = {app.app: app for app in apps}
        self._nodes = {node.name: node for node in nodes}
        self._placements: dict[str, list[Placement]] = defaultdict(list)
        for placed in plan.placements:
            self._placements[placed.app].append(placed)
        self._contingencies = {(c.app, c.failure): c for c in plan.contingencies}
        self._used_mb: dict[str, float] = defaultdict(float)
        for placed in plan.placements:
            variant = self._variant(placed)
            self._used_mb[placed.node] += replica_mb(variant) if variant else 0.0

    def _variant(self, placed: Placement | Contingency) -> Variant | None:
        app = self._apps.get(placed.app)
        return app.variant(placed.variant) if app is not None and app.version == placed.version else None

    def _memory_mb(self, app: AppVersion, names: set[str]) -> float:
        return sum(replica_mb(variant) for variant in app.variants if variant.name in names)

    # what holds without any failure

    def misnamed(self) -> Iterator[str]:
        for placed in self._plan.placements:
            if placed.node not in self._nodes:
                yield f"a replica of {placed.app!r} is planned on unknown node {placed.node!r}"
            if self._variant(placed) is None:
                yield f"{placed.app!r} has no variant {placed.variant!r} in version {placed.version}"
        for key, count in Counter((c.app, c.failure) for c in self._plan.contingencies).items():
            if count > 1:
                yield f"app {key[0]!r} has {count} contingencies for {key[1]}"
        for contingency in self._plan.contingencies:
            app = self._apps.get(contingency.app)
            if contingency.node not in self._nodes:
                yield f"contingency {contingency.key} names unknown node {contingency.node!r}"
            if self._variant(contingency) is None or (app and app.variant(contingency.first) is None):
                yield f"contingency {contingency.key} names an unknown variant or version"

    def standbys_beside_primaries(self) -> Iterator[str]:
        for app, placements in self._placements.items():
            primaries = {p.node for p in placements if p.role is Role.PRIMARY}
            for placed in placements:
                if placed.role is Role.STANDBY and placed.node in primaries:
                    yield f"the standby of {app!r} shares node {placed.node} with its primary"

    def miscounted(self) -> Iterator[str]:
        for name, app in self._apps.items():
            primaries = sum(p.role is Role.PRIMARY for p in self._placements[name])
            if primaries > app.replicas:
                yield f"app {name!r} has {primaries} primaries, more than its {app.replicas}"
            if primaries == 0 and name not in self._plan.unplaced:
                yield f"app {name!r} has no primary, and the plan doesn't say why"

    def overfull(self, added_mb: dict[str, float], lost: frozenset[str], when: str) -> Iterator[str]:
        for name, node in self._nodes.items():
            needed_mb = self._used_mb[name] + added_mb.get(name, 0.0)
            if name not in lost and needed_mb > node.memory_mb * (1 + SLACK):
                yield f"node {name} needs {needed_mb:.1f} MB {when}, and has {node.memory_mb:.1f} MB"

    # what happens in a failure

    def outcome(self, app: AppVersion, failure: str, lost: frozenset[str]) -> Outcome:
        primaries = [p for p in self._placements[app.app] if p.role is Role.PRIMARY]
        left = [p for p in self._placements[app.app] if p.node not in lost]
        best = min(left, key=lambda p: (app.rank(p.variant), p.role is not Role.PRIMARY), default=None)
        if best is not None:
            if primaries and all(p.node not in lost for p in primaries):
                best = min(primaries, key=lambda p: app.rank(p.variant))
                how, recovery_ms = "unaffected", 0.0
            else:
                how, recovery_ms = "warm", WARM_MS
            accuracy = _accuracy(app, best.variant)
            return Outcome(failure, app.app, how, best.variant, best.node, accuracy, recovery_ms)
        contingency = self._acting(app, failure, lost)
        if contingency is not None:
            first, accuracy = app.variant(contingency.first), _accuracy(app, contingency.variant)
            recovery_ms = COLD_MS + (load_ms(first) if first else 0.0)
            return Outcome(
                failure, app.app, "cold", contingency.variant, contingency.node, accuracy, recovery_ms
            )
        how = "none" if app.static is None else "static"
        return Outcome(failure, app.app, how, None, None, 0.0, 0.0)

    def _acting(self, app: AppVersion, failure: str, lost: frozenset[str]) -> Contingency | None:
        """The contingency that brings `app` back, if it can act and `app` needs it."""
        if any(p.node not in lost for p in self._placements[app.app]):
            return None
        contingency = self._contingencies.get((app.app, failure))
        if contingency is None or contingency.node in lost or contingency.node not in self._nodes:
            return None
        return contingency if self._variant(contingency) is not None else None

    def violations_in(self, failure: str, lost: frozenset[str]) -> Iterator[str]:
        during_mb: dict[str, float] = defaultdict(float)
        after_mb: dict[str, float] = defaultdict(float)
        silent = []
        for app in self._apps.values():
            contingency = self._acting(app, failure, lost)
            if contingency is not None:
                both = {contingency.first, contingency.variant}
                during_mb[contingency.node] += self._memory_mb(app, both)
                after_mb[contingency.node] += self._memory_mb(app, {contingency.variant})
            elif self._placements[app.app] and all(p.node in lost for p in self._placements[app.app]):
                silent.append(app)
        yield from self.overfull(during_mb, lost, f"while contingencies for {failure} swap variants")
        yield from self.overfull(after_mb, lost, f"after {failure}")
        yield from self._needless_silence(silent, failure, lost, during_mb)

    def _needless_silence(
        self, silent: list[AppVersion], failure: str, lost: frozenset[str], during_mb: dict[str, float]
    ) -> Iterator[str]:
        for contingency in self._plan.contingencies:
            if contingency.failure == failure and contingency.node in lost:
                yield f"contingency {contingency.key} acts on node {contingency.node}, which is lost itself"
        for app in silent:
            needed_mb = min(replica_mb(variant) for variant in app.variants)
            for name, node in self._nodes.items():
                free_mb = node.memory_mb - self._used_mb[name] - during_mb[name]
                if name not in lost and free_mb > needed_mb + node.memory_mb * SLACK:
                    yield (
                        f"app {app.app!r} has no contingency for {failure}, although node {name} has "
                        f"{free_mb:.1f} MB of room and its smallest variant needs {needed_mb:.1f} MB"
                    )
                    break


def _accuracy(app: AppVersion, variant: str) -> float:
    found = app.variant(variant)
    return found.accuracy if found is not None else 0.0
