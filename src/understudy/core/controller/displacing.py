"""Room for what is planned, where a node can't hold it beside what answers now. Pure.

Room is made in this order, until it fits: standbys that don't run yet wait; kept replicas go whose app has
another one ready; where somebody is silent, what is planned for others waits; the only replica of an app gets
a bridge, its smallest variant on a node with room or in the place of a standby that isn't needed now, and
goes when that is ready. The only replica of an app goes without a bridge if the plan gave the app up for
what is worth as much, for an app that nobody answers for and that is worth as much, and, when nothing else
moves any more, if its successor is loaded so well within the app's deadline that requests can wait for it.
So a plan is carried out however little room there is, if its models load quickly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from understudy.core.controller.drafts import LIVE, STARTING, NodeDraft, TargetFacts, observed_on
from understudy.core.controller.environments import is_ready
from understudy.core.lifecycle import NodePhase, ReplicaPhase
from understudy.core.planning.footprint import load_ms, replica_mb
from understudy.wire.messages import ReplicaState, TargetReplica
from understudy.wire.records import AppVersion, Criticality, Role, Variant

RANKS = {Criticality.BEST_EFFORT: 0, Criticality.STANDARD: 1, Criticality.CRITICAL: 2}
SWAP_FRACTION = 0.25  # of an app's deadline, which a successor may take to load while nobody answers


class Displacement:
    """On all nodes at once."""

    def __init__(self, drafts: Sequence[NodeDraft], facts: TargetFacts) -> None:
        self._drafts = drafts
        self._facts = facts
        self._planned = {placed.app for placed in facts.plan.placements}
        reported = [r for n in facts.nodes.values() if n.state != NodePhase.DEAD for r in observed_on(n)]
        self._answered = {r.app for r in reported if r.state == ReplicaPhase.READY}  # also where in doubt
        self._moving = any(r.state in STARTING for r in reported)

    def make(self) -> None:
        for draft in self._drafts:
            self._defer_standbys(draft)
        for draft in self._drafts:
            self._take_spare(draft)
        for draft in self._drafts:
            if self._excess_mb(draft) > 0:
                self._serve_silent_first(draft)
            if self._excess_mb(draft) > 0:
                self._make_way(draft)

    def _defer_standbys(self, draft: NodeDraft) -> None:
        """Standbys that don't run yet wait while something that is kept is in their place."""
        if not draft.kept and not draft.activated:
            return
        for placed in draft.waiting():
            if placed.role is not Role.PRIMARY and self._excess_mb(draft) > 0:
                draft.postpone(placed)

    def _take_spare(self, draft: NodeDraft) -> None:
        """What doesn't answer, or isn't the only one that does."""
        for replica in self._surplus(draft):
            goes = sum(r.state == ReplicaPhase.READY for r in draft.together(replica))
            stays = sum(other.has_ready(replica.app) for other in self._drafts) - goes
            if self._excess_mb(draft) > 0 and (not goes or stays > 0):
                draft.take_away(replica)

    def _serve_silent_first(self, draft: NodeDraft) -> None:
        """Where those of whom nobody answers fit if the others wait, nothing has to go yet."""
        waiting = [r for r in draft.waiting() if r.role is Role.PRIMARY]
        others = [r for r in waiting if r.app in self._answered]
        if len(others) < len(waiting):
            planned = draft.planned
            for placed in others:
                draft.postpone(placed)
            if self._excess_mb(draft) > 0:
                draft.planned = planned

    def _make_way(self, draft: NodeDraft) -> None:
        """Only replicas that are the last of their app are left in the way."""
        waiting = [r for r in draft.waiting() if r.role is Role.PRIMARY and r.app in self._facts.apps]
        for replica in self._surplus(draft):
            if self._excess_mb(draft) <= 0:
                return
            app = self._facts.apps[replica.app]
            if self._on_its_way(app) or self._bridge(app):
                continue
            given_up = app.app not in self._planned
            rivals = [self._rank(r.app) for r in waiting if given_up or r.app not in self._answered]
            if rivals and max(rivals) >= self._rank(app.app):
                draft.take_away(replica)
            elif not self._moving and self._swap(replica, draft):
                return  # one at a time; and while something is being loaded, that may make room without it

    # Bridges

    def _on_its_way(self, app: AppVersion) -> bool:
        """Whether another replica of `app` is being started where there is room for it."""
        for draft in self._drafts:
            coming = {r.app for r in (*draft.kept, *draft.activated) if r.state in STARTING}
            coming |= {r.app for r in draft.bridges}
            if self._excess_mb(draft) <= 0:
                coming |= {r.app for r in draft.planned}
            if app.app in coming:
                return True
        return False

    def _bridge(self, app: AppVersion) -> bool:
        """Have the smallest variant of `app` started where there is most room. False: it fits nowhere."""
        quarantined = self._facts.quarantined
        variants = [v for v in app.variants if (app.app, app.version, v.name) not in quarantined]
        if not variants:
            return False
        smallest = min(variants, key=replica_mb)
        for draft in sorted(self._drafts, key=self._excess_mb):
            standbys = self._dispensable(draft, replica_mb(smallest)) if _can_start(smallest, draft) else None
            if standbys is not None:
                for standby in standbys:
                    draft.give_up(standby)
                draft.bridges.append(TargetReplica(app.app, app.version, smallest.name, Role.STANDBY))
                return True
        return False

    def _dispensable(self, draft: NodeDraft, needed_mb: float) -> list[TargetReplica] | None:
        """Which running standbys may go for a while so that `needed_mb` fit; None if that isn't enough."""
        waiting = draft.waiting()
        running = [r for r in draft.planned if r.app in self._facts.apps and not any(r is w for w in waiting)]
        standbys = [r for r in running if r.role is not Role.PRIMARY]
        found: list[TargetReplica] = []
        lacking_mb = needed_mb + self._excess_mb(draft)
        for standby in sorted(standbys, key=lambda r: (self._rank(r.app), -self._facts.memory_mb(r))):
            elsewhere = any(other.has_ready(standby.app) for other in self._drafts if other is not draft)
            if lacking_mb > 0 and elsewhere:
                found.append(standby)
                lacking_mb -= self._facts.memory_mb(standby)
        return found if lacking_mb <= 0 else None

    # Swaps

    def _swap(self, replica: ReplicaState, draft: NodeDraft) -> bool:
        """Have what is planned here loaded in place of `replica`, if that is back so soon that requests wait.

        In its place comes its own successor; or that of another one whose place is where `replica` goes.
        """
        app = self._facts.apps[replica.app]
        for other in self._drafts:
            for goes in [replica] if other is draft else (*other.kept, *other.activated):
                here, there = _waits(goes.app, draft), _waits(app.app, other)
                if here is None or there is None:
                    continue
                pause_ms = self._load_ms(here, draft)
                pause_ms += self._load_ms(there, other) if other is not draft else 0.0
                fits = self._fits(here, replica, draft) and self._fits(there, goes, other)
                if fits and pause_ms <= SWAP_FRACTION * app.deadline_ms:
                    draft.take_away(replica)
                    for placed in draft.waiting():
                        if placed is not here:
                            draft.postpone(placed)
                    return True
        return False

    def _load_ms(self, placed: TargetReplica, draft: NodeDraft) -> float:
        """Infinity where it can't be loaded at once."""
        variant = self._facts.variant(placed)
        return load_ms(variant) if variant is not None and _can_start(variant, draft) else math.inf

    def _fits(self, placed: TargetReplica, instead: ReplicaState, draft: NodeDraft) -> bool:
        gone = draft.together(instead)
        stays = (r for r in draft.stays if not any(r is other for other in gone))
        used_mb = sum(self._facts.memory_mb(r) for r in stays)
        return used_mb + self._facts.memory_mb(placed) <= draft.node.info.memory_mb

    # What it costs, and what it is worth

    def _surplus(self, draft: NodeDraft) -> list[ReplicaState]:
        """What could be taken away, the most expendable first; an activation as that of it which answers."""
        ready_first = sorted(draft.kept + draft.activated, key=lambda r: r.state != ReplicaPhase.READY)
        found = {r.activation or r.id: r for r in reversed(ready_first)}
        return sorted(
            found.values(),
            key=lambda r: (
                r.state == ReplicaPhase.READY,
                self._rank(r.app),
                -self._facts.memory_mb(r),
                r.id,
            ),
        )

    def _excess_mb(self, draft: NodeDraft) -> float:
        """Memory that the draft needs beyond what its node has; negative: that much is free."""
        memory_mb = self._facts.memory_mb
        kept_mb = sum(memory_mb(r) for r in (*draft.kept, *draft.activated) if r.state in LIVE)
        ordered_mb = sum(memory_mb(r) for r in (*draft.planned, *draft.bridges))
        return kept_mb + ordered_mb - draft.node.info.memory_mb

    def _rank(self, app: str) -> tuple[int, float]:
        spec = self._facts.apps[app]
        return RANKS[spec.criticality], spec.weight


def _waits(app: str, draft: NodeDraft) -> TargetReplica | None:
    """The primary of `app` that is to run on this node, and doesn't yet."""
    return next((r for r in draft.waiting() if r.app == app and r.role is Role.PRIMARY), None)


def _can_start(variant: Variant, draft: NodeDraft) -> bool:
    """Whether its node can load it at once, given the room."""
    node = draft.node
    if node.state != NodePhase.READY or node.observed is None or node.observed.trouble:
        return False
    return is_ready(variant.environment_key, node) and variant.artifact.digest in node.observed.staged
