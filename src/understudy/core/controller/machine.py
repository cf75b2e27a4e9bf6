"""The controller's decisions: which nodes are there, when to plan, what to tell whom.

A machine: `step(event, now)` takes one event and returns the effects to carry out, in order. It compares
what a plan was made from with what holds now, so that a plan is made when something changed and never
otherwise: not after a restart either. Not here: links, the store, threads, HTTP (`controller`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import msgspec

from understudy.core.controller import events as ev
from understudy.core.controller import learning, stored
from understudy.core.controller.catalog import Catalog
from understudy.core.controller.nodes import Nodes, Transition
from understudy.core.controller.planning import Planning
from understudy.core.controller.publications import Publications
from understudy.core.controller.quarantine import Facts, Quarantine
from understudy.core.controller.reasons import moves, why
from understudy.core.controller.settling import Settling
from understudy.core.controller.stored import (
    PlanFacts,
    Quarantined,
    Release,
    Save,
    StoredPlan,
)
from understudy.core.controller.unbatched import changed_releases
from understudy.settings.cluster import ClusterConfig
from understudy.wire.messages import NodeState
from understudy.wire.records import AppVersion, Plan, RouteTable, VariantKey


class ControllerMachine:
    """All that the controller knows. What is public may be read, never written, by the shell."""

    def __init__(self, config: ClusterConfig, memory: stored.Memory, now: float) -> None:
        self.hearing = learning.Hearing(config, now)
        self.unreadable = memory.unreadable
        tuning = config.controller
        self.nodes = Nodes(tuning, memory.nodes, frozenset(node.name for node in config.nodes), now)
        self.quarantine = Quarantine(tuning)
        self.catalog = Catalog(memory, self.quarantine, tuning)
        live = self.catalog.live
        known = [record for key, record in memory.quarantined.items() if key[:2] in live]
        self.quarantine.recall(known, now)
        knowledge = self.nodes, self.catalog, self.quarantine
        self.planning = Planning(memory.plan, config.plan, *knowledge, now)
        self.publications = Publications(config.name, memory.meta.epoch + 1, self.hearing, *knowledge)
        self.settling = Settling(tuning.release_after_s)
        self._effects: list[ev.Effect] = []

    def step(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """Take in `event` at monotonic time `now` (seconds); the effects, to be carried out in order."""
        if self._handle(event, now):
            self._reconcile(event, now)
        effects, self._effects = self._effects, []
        return effects

    def _handle(self, event: ev.Event, now: float) -> bool:
        """Whether anything may have changed."""
        match event:
            case ev.HeartbeatHeard(beat):
                return self._node_changes(self.nodes.heartbeat(beat, now))
            case ev.Tick():
                for peer in self.hearing.tick(now):
                    self._welcome(peer)
                self._node_changes(self.nodes.tick(now))
                if self.quarantine.cases:
                    self._judge(now)
                if self.hearing.over and (asked := self.planning.consider(now)) is not None:
                    self._effects.append(asked)
            case ev.StateReported(state):
                self._node_changes(self.nodes.reported(state, now))
                self._jump_ahead(state.target_revision)
                if state.quarantined or self.quarantine.cases:
                    self._judge(now)
                self._take_unbatched(state)
            case ev.AgentHello(hello):
                self._node_changes(self.nodes.hello(hello, now))
                self.hearing.hello(("agent", hello.name), hello.revision, now)
                self._jump_ahead(hello.revision)
                self.publications.forget(hello.name)
            case ev.AgentLost(node):
                self._node_changes(self.nodes.link_lost(node, now))
            case ev.GatewayHello(name, revision):
                self.hearing.hello(("gateway", name), revision, now)
                self._jump_ahead(revision)
                self._welcome(("gateway", name))
            case ev.HeldTold(role, name, held):
                self._take_held(held, name, now)
                self.hearing.told((role, name))
                self._welcome((role, name))
            case ev.Deployed(release):
                self._deploy(release)
            case ev.Removed(app):
                self._remove(app)
            case ev.ManifestNoted(app, manifests):
                current = msgspec.structs.replace(self.catalog.currents[app], manifests=manifests)
                self.catalog.currents[app] = current
                self._save({stored.current_key(app): current}, reason="another manifest brings it")
            case ev.DrainAsked(node):
                self._node_changes(self.nodes.drain(node, now))
            case ev.UndrainAsked(node):
                self._node_changes(self.nodes.undrain(node, now))
            case ev.QuarantineCleared(app, variant):
                self._lift_quarantine(app, variant)
            case ev.Planned(plan, facts):
                self._take_plan(plan, facts)
            case ev.PlanningFailed(message):
                self.planning.failed(message, now)
                self._note("plan.failed", message)
            case ev.Started():
                self._save({stored.META: stored.Meta(self.publications.epoch)}, reason="controller started")
                self._note("controller.started", f"start number {self.publications.epoch}")
                for key, problem in self.unreadable.items():
                    self._note("record.unreadable", f"{key}: {problem}")
            case _:
                assert_never(event)
        return True

    # Facts that others may ask for

    @property
    def apps(self) -> dict[str, AppVersion]:
        """The current version of each app."""
        return self.catalog.apps

    @property
    def plan(self) -> StoredPlan | None:
        """The one in force."""
        return self.planning.plan

    @property
    def table(self) -> RouteTable | None:
        """As published last."""
        return self.publications.table

    @property
    def quarantined(self) -> frozenset[VariantKey]:
        """Variants of current versions that are kept off all nodes."""
        return self.quarantine.keys

    @property
    def settled(self) -> frozenset[str]:
        """Apps whose planned primaries are all ready; an app with a newer version than planned is not."""
        planned = dict(self.planning.versions)
        currents = self.catalog.currents
        return frozenset(app for app in self.settling.settled if planned.get(app) == currents[app].version)

    def release_records(self, release: Release) -> tuple[dict[str, msgspec.Struct], tuple[str, ...]]:
        """What to put and to delete to make `release` the current version; store it before `Deployed`."""
        return self.catalog.release_records(release, self.planning.versions)

    def removal_records(self, app: str) -> tuple[dict[str, msgspec.Struct], tuple[str, ...]]:
        """What to put and to delete to remove `app`; store it before `Removed`."""
        return self.catalog.removal_records(app, self.publications.revision)

    # Nodes

    def _node_changes(self, changes: list[Transition]) -> bool:
        for change in changes:
            self._note(change.kind, change.reason, node=change.node)
        return bool(changes)

    def _judge(self, now: float) -> None:
        """Take in what crashes on the nodes."""
        versions = {(app.app, app.version): app for app in self.apps.values()}
        facts = Facts(self.nodes.by_name, versions, self.publications.revision + 1)
        for change in self.quarantine.look(facts, now):
            self._note(change.kind, change.message, app=change.key[0])
            key = stored.quarantine_key(*change.key)
            if change.record is not None:
                self._save({key: change.record}, reason=change.message)
            elif change.kind == "quarantine.ended":
                self._save({}, (key,), change.message)

    def _take_unbatched(self, state: NodeState) -> None:
        for release, variant, reason in changed_releases(self.catalog.releases, state):
            key = release.app.app, release.app.version
            self.catalog.releases[key] = release
            self._save({stored.release_key(*key): release}, reason="batching changed an answer")
            message = f"{variant} of version {key[1]} runs one request at a time everywhere: {reason}"
            self._note("batching.recorded", message, app=key[0], node=state.node)

    def _lift_quarantine(self, app: str, variant: str) -> None:
        for key in sorted(key for key in self.quarantined if key[0] == app and key[2] == variant):
            self.quarantine.lift(key, self.publications.revision + 1)
            self._save({}, (stored.quarantine_key(*key),), "quarantine lifted by an operator")
            self._note("quarantine.cleared", f"{variant} may be placed again", app=app)

    # Apps

    def _deploy(self, release: Release) -> None:
        app = release.app
        self.catalog.deploy(release, self.planning.versions)
        names = ", ".join(variant.name for variant in app.variants)
        self._note("app.deployed", f"version {app.version}: {names}", app=app.app)

    def _remove(self, app: str) -> None:
        self.catalog.remove(app, self.publications.revision)
        self._note("app.removed", "removed by an operator", app=app)

    # Planning and publishing

    def _take_plan(self, plan: Plan, facts: PlanFacts) -> None:
        former = self.plan.plan.placements if self.plan else ()
        obstacle = self.planning.take(plan, facts)
        if obstacle:
            self._note("plan.discarded", f"{obstacle} while it was made; planning again")
            return
        self.settling.restart()
        self._save({stored.PLAN: StoredPlan(plan, facts)}, reason=f"plan {plan.revision}: {plan.reason}")
        data = moves(former, plan.placements)
        message = f"revision {plan.revision}: {plan.reason}; {data['starts']} start, {data['stops']} stop"
        self._note("plan.published", message, data={"revision": plan.revision, **data})

    def _reconcile(self, event: ev.Event, now: float) -> None:
        for node, record in self.nodes.unrecorded():
            name = node.info.name
            self._save({stored.node_key(name): record}, reason=f"node {name} is {node.state}")
        plan = self.plan.plan if self.plan else None
        live = {app for app, _ in self.catalog.live}
        self.settling.update(plan, self.nodes.by_name, live, now)
        if not self.hearing.over or self._knows_less:
            return
        published = self.catalog.in_versions(self.planning.versions)
        self._effects += self.publications.publish(published, plan, self.settling.stable, why(event))

    # Peers that may know more

    @property
    def _knows_less(self) -> bool:
        """We know of nothing, and somebody holds something that it couldn't tell."""
        held = any(self.hearing.revisions.values())
        return not self.catalog.currents and self.plan is None and held

    def _welcome(self, peer: learning.Peer) -> None:
        """Send a gateway what there is, as soon as it is known what it holds."""
        role, name = peer
        if role != "gateway" or self.hearing.waits_for(peer) or self._knows_less:
            return
        if (routes := self.publications.welcome(name)) is not None:
            self._effects.append(routes)

    def _take_held(self, held: learning.Held, source: str, now: float) -> None:
        self._jump_ahead(held.revision)
        learned, gone = self.catalog.learn(held, source, self.publications.revision)
        live = self.catalog.live
        for what in held.quarantined:
            if what[0] in learned.currents and what[:2] in live:
                record = Quarantined(*what, why=f"as {source} knows")
                self.quarantine.recall([record], now)
                self._save({stored.quarantine_key(*what): record}, reason=record.why)
        if self.plan is None:
            self.planning.plan = learning.taken_over(held)
        for kind, message, app in learned.notes:
            self._note(kind, message, app=app)
        records = learned.records()
        if records or gone:
            self._save(records, tuple(stored.release_key(*key) for key in gone), f"as {source} knows")
        for name in records:
            self.unreadable.pop(name, None)

    def _jump_ahead(self, revision: int) -> None:
        """Go on behind the numbers of a life that we don't remember, deployments' numbers too."""
        if not self.publications.jump_ahead(revision):
            return
        epoch = self.publications.epoch
        self._save({stored.META: stored.Meta(epoch)}, reason="a peer holds later numbers")
        self._note("controller.learned", f"a peer holds revision {revision}: this is start {epoch} now")

    # Effects

    def _note(
        self, kind: str, message: str, *, app: str = "", node: str = "", data: dict[str, Any] | None = None
    ) -> None:
        self._effects.append(ev.Note(kind, message, app, node, data or {}))

    def _save(
        self, puts: Mapping[str, msgspec.Struct], deletes: tuple[str, ...] = (), reason: str = ""
    ) -> None:
        self._effects.append(Save(puts, deletes, reason))
