"""What the targets of nodes are made from, and one node's target in the making. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from understudy.core.controller.nodes import ANSWERING, Node
from understudy.core.lifecycle import ReplicaPhase
from understudy.core.planning.footprint import replica_mb
from understudy.wire.messages import ReplicaState, TargetReplica
from understudy.wire.records import AppVersion, Plan, Variant, VariantKey

T = TypeVar("T")
STARTING = (ReplicaPhase.STARTING, ReplicaPhase.LOADING)
LIVE = (*STARTING, ReplicaPhase.READY, ReplicaPhase.FAILING)  # answers, or is about to


class TargetFacts(msgspec.Struct):
    plan: Plan
    apps: Mapping[str, AppVersion]  # the version of each app that the plan is about
    versions: Mapping[tuple[str, int], AppVersion]  # every version that may still run
    nodes: Mapping[str, Node]
    stable: frozenset[str] = frozenset()  # apps whose planned primaries have been ready for long enough
    quarantined: frozenset[VariantKey] = frozenset()
    asked: Mapping[str, tuple[VariantKey, ...]] = msgspec.field(default_factory=dict)  # to be tried, by node
    previous: Mapping[str, AppVersion] = msgspec.field(default_factory=dict)  # may be called back by gateways

    def is_planned(self, app: str, version: int) -> bool:
        """False for what the plan says of an app that was removed, or removed and deployed anew, since."""
        return app in self.apps and self.apps[app].version == version

    def variant(self, replica: TargetReplica | ReplicaState) -> Variant | None:
        app = self.versions.get((replica.app, replica.version))
        return app.variant(replica.variant) if app else None

    def memory_mb(self, replica: TargetReplica | ReplicaState) -> float:
        """As the agent counts it."""
        variant = self.variant(replica)
        if variant is not None:
            return replica_mb(variant)
        return replica.memory_mb if isinstance(replica, ReplicaState) else 0.0


@dataclass(slots=True)
class NodeDraft:
    """One node's target in the making. Every observed replica that stays is in exactly one list."""

    node: Node
    planned: list[TargetReplica]
    running: list[ReplicaState] = field(default_factory=list)  # what carries out `planned` already
    kept: list[ReplicaState] = field(default_factory=list)
    activated: list[ReplicaState] = field(default_factory=list)  # by gateways, and still needed
    released: set[str] = field(default_factory=set)
    bridges: list[TargetReplica] = field(default_factory=list)

    @property
    def stays(self) -> list[ReplicaState]:
        """What runs here and goes on running; activations that wait for room don't."""
        return [*self.running, *self.kept, *(r for r in self.activated if r.state in LIVE)]

    def has_ready(self, app: str) -> int:
        """How many ready replicas of `app` stay here. A node in doubt counts for nothing."""
        if self.node.state not in ANSWERING:
            return 0
        return sum(replica.app == app and replica.state == ReplicaPhase.READY for replica in self.stays)

    def waiting(self) -> list[TargetReplica]:
        """What is planned here and doesn't run yet."""
        running = Counter(r.key for r in self.running)
        found = []
        for placed in self.planned:
            running[placed.key] -= 1
            if running[placed.key] < 0:
                found.append(placed)
        return found

    def postpone(self, placed: TargetReplica) -> None:
        self.planned = without(self.planned, [placed])

    def give_up(self, placed: TargetReplica) -> None:
        """Of what is planned here and runs."""
        self.postpone(placed)
        self.running.remove(next(r for r in self.running if r.key == placed.key))

    def together(self, replica: ReplicaState) -> list[ReplicaState]:
        """What goes with `replica`: an activation may run two variants, on its way to the better one."""
        if not replica.activation:
            return [replica]
        return [r for r in self.activated if r.activation == replica.activation]

    def take_away(self, replica: ReplicaState) -> None:
        if not replica.activation:
            self.kept.remove(replica)
            return
        self.activated = [r for r in self.activated if r.activation != replica.activation]
        self.released.add(replica.activation)


def without(replicas: Iterable[T], gone: Iterable[object]) -> list[T]:
    """By identity: two replicas that are planned on one node may be equal."""
    ids = {id(replica) for replica in gone}
    return [replica for replica in replicas if id(replica) not in ids]


def observed_on(node: Node) -> tuple[ReplicaState, ...]:
    return node.observed.replicas if node.observed is not None else ()
