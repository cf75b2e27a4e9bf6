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
from collections.abc import Iterable, Sequence

from understudy.core.controller.drafts import LIVE, STARTING, NodeDraft, TargetFacts, observed_on, without
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
        """Standbys that don't run yet wait while something that is kept is in their place.

        Unless that is what the plan gave up for them, or for less.
        """
        if not draft.kept and not draft.activated:
            return
        for placed in draft.waiting():
            if placed.role is not Role.PRIMARY and self._excess_mb(draft) > 0:
                gone = [r for r in (*draft.kept, *draft.activated) if self._yields(r, placed)]
                if not gone or not self._fits(placed, gone, draft):
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
        waiting = draft.waiting()
        surplus = self._surplus(draft)
        for replica in surplus:
            if self._excess_mb(draft) <= 0:
                return
            app = self._facts.apps[replica.app]
            if self._on_its_way(app) or self._bridge(app):
                continue
            rivals = [r for r in waiting if self._yields(replica, r)]
            if any(self._fits(r, [k for k in surplus if self._yields(k, r)], draft) for r in rivals):
                draft.take_away(replica)
            elif not self._moving and self._swap(replica, draft):
                return  # one at a time; and while something is being loaded, that may make room without it

    def _yields(self, replica: ReplicaState, placed: TargetReplica) -> bool:
        """Whether the last replica of an app goes for this part of the plan, if that is of use to it."""
        if placed.app not in self._facts.apps or self._rank(placed.app) < self._rank(replica.app):
            return False
        silent = placed.role is Role.PRIMARY and placed.app not in self._answered
        return silent or replica.app not in self._planned

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
            if standbys is None:
                continue
            for standby in standbys:
                draft.give_up(standby)
            draft.bridges.append(TargetReplica(app.app, app.version, smallest.name, Role.STANDBY))
            return True
        return False

    def _dispensable(self, draft: NodeDraft, needed_mb: float) -> list[TargetReplica] | None:
        """Which running standbys may go for a while so that `needed_mb` fit; None if that isn't enough."""
        running = without(draft.planned, draft.waiting())
        standbys = [r for r in running if r.app in self._facts.apps and r.role is not Role.PRIMARY]
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
        """Have what is planned here loaded in place of `replica`, if its app is back before anybody minds.

        In its place comes its own successor, or those of others whose going makes room for it elsewhere.
        """
        app = self._facts.apps[replica.app]
        pause_ms, here = self._pause(replica, draft)
        if pause_ms > SWAP_FRACTION * app.deadline_ms:
            return False
        draft.take_away(replica)
        draft.planned = without(draft.planned, without(draft.waiting(), here))
        return True

    def _pause(self, replica: ReplicaState, draft: NodeDraft) -> tuple[float, list[TargetReplica]]:
        """How long nobody would answer for its app, in ms, and what would be loaded here first.

        Round by round: what fits then is loaded, and what its apps ran on before goes.
        """
        gone = draft.together(replica)
        stays = [without(other.stays, gone) for other in self._drafts]
        used_mb = [self._memory_mb(running) for running in stays]
        waiting = [
            (n, placed)
            for n, other in enumerate(self._drafts)
            for placed in other.waiting()
            if placed.role is Role.PRIMARY and self._load_ms(placed, other) < math.inf
        ]
        waiting.sort(key=lambda where: where[1].app != replica.app)
        pause_ms, first = 0.0, None
        while True:
            round_: list[tuple[int, TargetReplica]] = []
            for n, placed in waiting:
                if used_mb[n] + self._facts.memory_mb(placed) <= self._drafts[n].node.info.memory_mb:
                    used_mb[n] += self._facts.memory_mb(placed)
                    round_.append((n, placed))
            if first is None:
                first = [placed for n, placed in round_ if self._drafts[n] is draft]
            if not round_:
                return math.inf, first
            pause_ms += max(self._load_ms(placed, self._drafts[n]) for n, placed in round_)
            came = {placed.app for _, placed in round_}
            if replica.app in came:
                return pause_ms, first
            waiting = [where for where in waiting if where not in round_]
            for n, other in enumerate(self._drafts):
                left = [r for r in without(stays[n], other.running) if r.app in came]
                used_mb[n] -= self._memory_mb(left)
                stays[n] = without(stays[n], left)

    def _load_ms(self, placed: TargetReplica, draft: NodeDraft) -> float:
        """Infinity where it can't be loaded at once."""
        variant = self._facts.variant(placed)
        return load_ms(variant) if variant is not None and _can_start(variant, draft) else math.inf

    def _fits(self, placed: TargetReplica, instead: Sequence[ReplicaState], draft: NodeDraft) -> bool:
        """Whether it can be loaded beside what runs there, once `instead` has gone."""
        gone = [r for replica in instead for r in draft.together(replica)]
        return self._memory_mb([*without(draft.stays, gone), placed]) <= draft.node.info.memory_mb

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
        kept_mb = self._memory_mb(r for r in (*draft.kept, *draft.activated) if r.state in LIVE)
        return kept_mb + self._memory_mb([*draft.planned, *draft.bridges]) - draft.node.info.memory_mb

    def _memory_mb(self, replicas: Iterable[TargetReplica | ReplicaState]) -> float:
        return sum(self._facts.memory_mb(replica) for replica in replicas)

    def _rank(self, app: str) -> tuple[int, float]:
        spec = self._facts.apps[app]
        return RANKS[spec.criticality], spec.weight


def _can_start(variant: Variant, draft: NodeDraft) -> bool:
    """Whether its node can load it at once, given the room."""
    node = draft.node
    if node.state != NodePhase.READY or node.observed is None or node.observed.trouble:
        return False
    return is_ready(variant.environment_key, node) and variant.artifact.digest in node.observed.staged
