"""What gateways and agents are told: the route table and each node's target, in revisions that only grow.

Revisions grow over restarts: each start of the controller has its own range of numbers, and jumps ahead of
any number that a peer holds already (a start whose number could not be stored).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from understudy.core.controller import events as ev
from understudy.core.controller.catalog import Catalog
from understudy.core.controller.drafts import TargetFacts
from understudy.core.controller.learning import NUMBER_MAX, Hearing
from understudy.core.controller.nodes import Nodes
from understudy.core.controller.quarantine import Quarantine
from understudy.core.controller.targets import make_targets
from understudy.wire.messages import Target
from understudy.wire.records import AppVersion, Plan, Removal, RouteTable

REVISIONS_PER_EPOCH = 1_000_000


class Publications:
    def __init__(
        self,
        cluster: str,
        epoch: int,
        hearing: Hearing,
        nodes: Nodes,
        catalog: Catalog,
        quarantine: Quarantine,
    ) -> None:
        self.epoch = epoch
        self.revision = self.epoch * REVISIONS_PER_EPOCH
        self.table: RouteTable | None = None
        self._sent: dict[str, Target] = {}  # by node, with revision 0: what its target says
        self._cluster = cluster
        self._hearing = hearing
        self._nodes = nodes
        self._catalog = catalog
        self._quarantine = quarantine

    def jump_ahead(self, revision: int) -> bool:
        """Whether it had to: to behind the numbers of a life that we don't remember."""
        if not self.revision < revision <= NUMBER_MAX:
            return False
        self.epoch = max(self.epoch, revision // REVISIONS_PER_EPOCH + 1)
        self.revision = self.epoch * REVISIONS_PER_EPOCH
        return True

    def forget(self, node: str) -> None:
        """It may hold nothing of what it was sent."""
        self._sent.pop(node, None)

    def publish(
        self, published: Mapping[str, AppVersion], plan: Plan | None, stable: frozenset[str], reason: str
    ) -> list[ev.Effect]:
        """Whatever is news to somebody. All of it has the same, next revision."""
        revision = self.revision + 1
        previous, removed = self._catalog.previous(published), self._catalog.removals
        effects = self._publish_table(published, previous, removed, plan or Plan(0), revision, reason)
        if plan is not None:
            effects += self._publish_targets(published, previous, removed, plan, stable, revision, reason)
        return effects

    def welcome(self, gateway: str) -> ev.Effect | None:
        """What it is sent because it connected."""
        if self.table is None:
            return None
        if self._hearing.revisions.get(("gateway", gateway), 0) > self.table.revision:
            self.revision += 1
            self.table = msgspec.structs.replace(self.table, revision=self.revision)
        return ev.SendRoutes(self.table, gateway, f"gateway {gateway} connected")

    def _publish_table(
        self,
        published: Mapping[str, AppVersion],
        previous: Mapping[str, AppVersion],
        removed: tuple[Removal, ...],
        plan: Plan,
        revision: int,
        reason: str,
    ) -> list[ev.Effect]:
        infos = (node.info for node in self._nodes.by_name.values())
        versions = {(app.app, app.version) for app in published.values()}
        table = RouteTable(
            revision=self.table.revision if self.table else 0,
            nodes=tuple(sorted(infos, key=lambda info: info.name)),
            apps=tuple(published.values()),
            contingencies=tuple(c for c in plan.contingencies if (c.app, c.version) in versions),
            placements=tuple(p for p in plan.placements if (p.app, p.version) in versions),
            quarantined=tuple(sorted(self._quarantine.keys)),
            cluster=self._cluster,
            previous=tuple(previous.values()),
            removed=removed,
            plan_revision=plan.revision,
        )
        if table == self.table:
            return []
        self.revision = revision
        self.table = msgspec.structs.replace(table, revision=revision)
        return [ev.SendRoutes(self.table, "", reason)]

    def _publish_targets(
        self,
        published: Mapping[str, AppVersion],
        previous: Mapping[str, AppVersion],
        removed: tuple[Removal, ...],
        plan: Plan,
        stable: frozenset[str],
        revision: int,
        reason: str,
    ) -> list[ev.Effect]:
        facts = TargetFacts(
            plan=plan,
            apps=published,
            versions={key: release.app for key, release in self._catalog.releases.items()},
            nodes=self._nodes.by_name,
            stable=stable,
            quarantined=self._quarantine.keys,
            asked=self._quarantine.asked,
            previous=previous,
        )
        effects: list[ev.Effect] = []
        for node, target in make_targets(facts).items():
            target.removed = removed
            if self._sent.get(node) == target or self._hearing.waits_for(("agent", node)):
                continue
            self._sent[node] = target
            self.revision = revision
            effects.append(ev.SendTarget(node, msgspec.structs.replace(target, revision=revision), reason))
        return effects
