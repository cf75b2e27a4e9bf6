"""The controller's decisions: which nodes are there, when to plan, what to tell whom.

A machine: `step(event, now)` takes one event and returns the effects to carry out, in order. It compares
what a plan was made from with what holds now, so that a plan is made when something changed and never
otherwise: not after a restart either. Not here: links, the store, threads, HTTP (`controller`).

Revisions of targets and route tables grow over restarts: each start of the controller has its own range of
numbers, and jumps ahead of any number that a peer holds already (a start whose number could not be stored).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import msgspec

from understudy.core.controller import events as ev
from understudy.core.controller import learning, stored
from understudy.core.controller.environments import lacking
from understudy.core.controller.nodes import Nodes, Transition
from understudy.core.controller.quarantine import Facts, Quarantine
from understudy.core.controller.reasons import moves, what_changed, why
from understudy.core.controller.stand_ins import mismatch
from understudy.core.controller.stored import (
    CurrentVersion,
    PlanFacts,
    Quarantined,
    Release,
    Save,
    StoredPlan,
)
from understudy.core.controller.targets import (
    ReleaseWait,
    TargetFacts,
    What,
    activated_replicas,
    make_targets,
    settled_apps,
)
from understudy.core.controller.unbatched import changed_releases
from understudy.core.planning.plan import PlanInput
from understudy.settings.cluster import ClusterConfig
from understudy.wire.messages import NodeState, Target
from understudy.wire.records import AppVersion, Plan, Removal, RouteTable

REVISIONS_PER_EPOCH = 1_000_000
PLANNING_RETRY_S = 1.0  # after the planner itself failed


class ControllerMachine:
    """All that the controller knows. What is public may be read, never written, by the shell."""

    def __init__(self, config: ClusterConfig, memory: stored.Memory, now: float) -> None:
        self._config = config
        self.epoch = memory.meta.epoch + 1
        self.hearing = learning.Hearing(config, now)
        self.unreadable = memory.unreadable
        self.recovered: set[str] = set()  # apps that the store knew less of than a peer, in this life
        self.nodes = Nodes(
            config.controller, memory.nodes, frozenset(node.name for node in config.nodes), now
        )
        self.currents = memory.currents
        self.releases = memory.releases
        self.plan = memory.plan
        self.quarantine = Quarantine(config.controller)
        known = [record for key, record in memory.quarantined.items() if self._is_current(*key[:2])]
        self.quarantine.recall(known, now)
        self.planning = False
        self.planning_error = ""
        self._plan_after_s = now
        self.revision = self.epoch * REVISIONS_PER_EPOCH
        self.table: RouteTable | None = None
        self._sent: dict[str, Target] = {}  # by node, with revision 0: what its target says
        self._recorded = {name: node.record() for name, node in self.nodes.by_name.items()}
        self._settled_since_s: dict[str, float] = {}
        self._stable: frozenset[str] = frozenset()
        self._activated: frozenset[tuple[str, str]] = frozenset()  # (app, replica), as reported last
        self._waits: dict[str, ReleaseWait] = {}  # of apps that gateways had something loaded for
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
                self._consider_planning(now)
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
                self._sent.pop(hello.name, None)
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
                self.currents[app] = msgspec.structs.replace(self.currents[app], manifests=manifests)
                self._save({stored.current_key(app): self.currents[app]}, reason="another manifest brings it")
            case ev.DrainAsked(node):
                self._node_changes(self.nodes.drain(node, now))
            case ev.UndrainAsked(node):
                self._node_changes(self.nodes.undrain(node, now))
            case ev.QuarantineCleared(app, variant):
                self._lift_quarantine(app, variant)
            case ev.Planned(plan, facts):
                self._take_plan(plan, facts)
            case ev.PlanningFailed(message):
                self.planning = False
                self.planning_error = message
                self._plan_after_s = now + PLANNING_RETRY_S
                self._note("plan.failed", message)
            case ev.Started():
                self._save({stored.META: stored.Meta(self.epoch)}, reason="controller started")
                self._note("controller.started", f"start number {self.epoch}")
                for key, problem in self.unreadable.items():
                    self._note("record.unreadable", f"{key}: {problem}")
            case _:
                assert_never(event)
        return True

    # Facts that others may ask for

    @property
    def apps(self) -> dict[str, AppVersion]:
        """The current version of each app."""
        return {
            app: self.releases[(app, current.version)].app
            for app, current in sorted(self.currents.items())
            if current.version and (app, current.version) in self.releases  # one may be unreadable
        }

    @property
    def quarantined(self) -> frozenset[What]:
        """Variants of current versions that are kept off all nodes."""
        return self.quarantine.keys

    @property
    def settled(self) -> frozenset[str]:
        """Apps whose planned primaries are all ready; an app with a newer version than planned is not."""
        planned = dict(self.plan.facts.apps) if self.plan else {}
        return frozenset(
            app for app in self._settled_since_s if planned.get(app) == self.currents[app].version
        )

    def next_version(self, app: str) -> int:
        current = self.currents.get(app)
        return current.newest + 1 if current else 1

    def release_records(self, release: Release) -> tuple[dict[str, msgspec.Struct], tuple[str, ...]]:
        """What to put and to delete to make `release` the current version; store it before `Deployed`."""
        app, version = release.app.app, release.app.version
        puts: dict[str, msgspec.Struct] = {
            stored.release_key(app, version): release,
            stored.current_key(app): CurrentVersion(version, version, manifests=release.app.manifests),
        }
        gone = [stored.release_key(*key) for key in self._outdated(app, version)]
        gone += [stored.quarantine_key(*key) for key in self.quarantined if key[0] == app]
        return puts, tuple(gone)

    def removal_records(self, app: str) -> tuple[dict[str, msgspec.Struct], tuple[str, ...]]:
        """What to put and to delete to remove `app`; store it before `Removed`."""
        gone = [stored.release_key(*key) for key in self.releases if key[0] == app]
        gone += [stored.quarantine_key(*key) for key in self.quarantined if key[0] == app]
        return {stored.current_key(app): self._removal(app)}, tuple(gone)

    def _removal(self, app: str) -> CurrentVersion:
        return msgspec.structs.replace(self.currents[app], version=0, removed_at=self.revision)

    # Nodes

    def _node_changes(self, changes: list[Transition]) -> bool:
        for change in changes:
            self._note(change.kind, change.reason, node=change.node)
        return bool(changes)

    def _judge(self, now: float) -> None:
        """Take in what crashes on the nodes."""
        versions = {(app.app, app.version): app for app in self.apps.values()}
        facts = Facts(self.nodes.by_name, versions, self.revision + 1)
        for change in self.quarantine.look(facts, now):
            self._note(change.kind, change.message, app=change.key[0])
            key = stored.quarantine_key(*change.key)
            if change.record is not None:
                self._save({key: change.record}, reason=change.message)
            elif change.kind == "quarantine.ended":
                self._save({}, (key,), change.message)

    def _take_unbatched(self, state: NodeState) -> None:
        for release, variant, reason in changed_releases(self.releases, state):
            key = release.app.app, release.app.version
            self.releases[key] = release
            self._save({stored.release_key(*key): release}, reason="batching changed an answer")
            message = f"{variant} of version {key[1]} runs one request at a time everywhere: {reason}"
            self._note("batching.recorded", message, app=key[0], node=state.node)

    def _lift_quarantine(self, app: str, variant: str) -> None:
        for key in sorted(key for key in self.quarantined if key[0] == app and key[2] == variant):
            self.quarantine.lift(key, self.revision + 1)
            self._save({}, (stored.quarantine_key(*key),), "quarantine lifted by an operator")
            self._note("quarantine.cleared", f"{variant} may be placed again", app=app)

    # Apps

    def _is_current(self, app: str, version: int) -> bool:
        current = self.currents.get(app)
        return current is not None and current.version == version

    def _deploy(self, release: Release) -> None:
        app = release.app
        self.releases[(app.app, app.version)] = release
        self.currents[app.app] = CurrentVersion(app.version, app.version, manifests=app.manifests)
        for key in self._outdated(app.app, app.version):
            del self.releases[key]
        self.quarantine.forget(app.app)
        names = ", ".join(variant.name for variant in app.variants)
        self._note("app.deployed", f"version {app.version}: {names}", app=app.app)

    def _outdated(self, app: str, newest: int) -> list[tuple[str, int]]:
        """Versions to forget when there is a `newest` one. What the plan is about may still be running."""
        oldest = newest - self._config.controller.versions_max
        planned = self.plan.facts.apps if self.plan else ()
        return [key for key in self.releases if key[0] == app and key[1] <= oldest and key not in planned]

    def _remove(self, app: str) -> None:
        self.currents[app] = self._removal(app)
        self.releases = {key: release for key, release in self.releases.items() if key[0] != app}
        self.quarantine.forget(app)
        self._note("app.removed", "removed by an operator", app=app)

    # Planning

    def _facts(self) -> PlanFacts:
        current = {(app, now.version) for app, now in self.currents.items() if now.version}
        infos = [node.info for node in self.nodes.by_name.values() if node.plannable]
        return PlanFacts(
            nodes=tuple(sorted((info.name, info.site, info.memory_mb) for info in infos)),
            apps=tuple(sorted(current)),
            quarantined=tuple(sorted(key for key in self.quarantined if key[:2] in current)),
            settings=self._config.plan,
            cores=tuple(sorted((i.name, i.cores, i.devices) for i in infos if i.cores or i.devices)),
            lacking=lacking(
                (node for node in self.nodes.by_name.values() if node.plannable),
                self.apps.values(),
                self.plan.facts if self.plan else PlanFacts(),
            ),
        )

    def planning_input(self) -> PlanInput:
        """What a plan would be made from now."""
        facts = self._facts()
        infos = [node.info for node in self.nodes.by_name.values() if node.plannable]
        return PlanInput(
            nodes=tuple(sorted(infos, key=lambda info: info.name)),
            apps=tuple(self.apps.values()),
            current=self.plan.plan if self.plan else None,
            quarantined=frozenset(facts.quarantined),
            settings=facts.settings,
            lacking=frozenset(facts.lacking),
        )

    def _consider_planning(self, now: float) -> None:
        if self.planning or now < self._plan_after_s or not self.hearing.over:
            return
        facts = self._facts()
        if self.plan is not None and facts == self.plan.facts:
            return
        # Without an app there is nothing to plan. Without a node the plan in force is as good as any, and
        # is right at once when its nodes come back.
        if not facts.nodes or (self.plan is None and not facts.apps):
            return
        reason = what_changed(self.plan.facts if self.plan else PlanFacts(settings=facts.settings), facts)
        self.planning = True
        revision = self.plan.plan.revision + 1 if self.plan else 1
        self._effects.append(ev.MakePlan(self.planning_input(), facts, revision, reason))

    def _take_plan(self, plan: Plan, facts: PlanFacts) -> None:
        self.planning = False
        self.planning_error = ""
        obstacle = self._obstacle(plan)
        if obstacle:
            self._note("plan.discarded", f"{obstacle} while it was made; planning again")
            return
        former = self.plan.plan.placements if self.plan else ()
        self.plan = StoredPlan(plan, facts)
        self._settled_since_s.clear()
        self._save({stored.PLAN: self.plan}, reason=f"plan {plan.revision}: {plan.reason}")
        data = moves(former, plan.placements)
        message = f"revision {plan.revision}: {plan.reason}; {data['starts']} start, {data['stops']} stop"
        self._note("plan.published", message, data={"revision": plan.revision, **data})

    def _obstacle(self, plan: Plan) -> str:
        """Why `plan` can't be used any more. It may miss the newest app or node: the next one has it."""
        now = self._facts()
        nodes = {name for name, _, _ in now.nodes}
        for p in plan.placements:
            if p.node not in nodes:
                return f"node {p.node} went away"
            if (p.app, p.version) not in now.apps:
                return f"{p.app} was changed"
            if (p.app, p.version, p.variant) in self.quarantined:
                return f"{p.variant} of {p.app} was quarantined"
        return ""

    # Publishing

    def _reconcile(self, event: ev.Event, now: float) -> None:
        self._record_nodes()
        published = self._published()
        self._update_stability(now)
        if not self.hearing.over or self._knows_less:
            return
        reason = why(event)
        revision = self.revision + 1
        self._publish_table(published, revision, reason)
        if self.plan is not None:
            self._publish_targets(published, self.plan.plan, revision, reason)

    def _record_nodes(self) -> None:
        for name, node in self.nodes.by_name.items():
            record = node.record()
            if self._recorded.get(name) != record:
                self._recorded[name] = record
                self._save({stored.node_key(name): record}, reason=f"node {name} is {node.state}")

    def _published(self) -> dict[str, AppVersion]:
        """Each app in the version that the plan is about, so that all of what is published fits together."""
        planned = self.plan.facts.apps if self.plan else ()
        apps = self.apps
        for app, version in planned:
            if app in apps and (app, version) in self.releases:
                apps[app] = self.releases[(app, version)].app
        return apps

    def _update_stability(self, now: float) -> None:
        settled = settled_apps(self.plan.plan, self.nodes.by_name) if self.plan else frozenset()
        settled &= {app for app, current in self.currents.items() if current.version}
        activated = activated_replicas(self.nodes.by_name)
        # A gateway that activates something knows of a loss that may not have been seen here yet.
        doubtful = {app for app, _ in activated - self._activated}
        self._activated = activated
        self._settled_since_s = {
            app: now if app in doubtful else self._settled_since_s.get(app, now) for app in settled
        }
        for app in doubtful & self._stable:  # what was loaded before has been released
            wait = self._waits.get(app, ReleaseWait())
            self._waits[app] = wait.after(now, self._config.controller.release_after_s)
        self._stable = frozenset(
            app for app, since_s in self._settled_since_s.items() if now - since_s >= self._wait_s(app)
        )

    def _wait_s(self, app: str) -> float:
        """How long primaries of `app` have to be ready before what gateways had loaded for it is released."""
        wait = self._waits.get(app)
        return wait.wait_s if wait is not None else self._config.controller.release_after_s

    def _publish_table(self, published: Mapping[str, AppVersion], revision: int, reason: str) -> None:
        plan = self.plan.plan if self.plan else Plan(0)
        infos = (node.info for node in self.nodes.by_name.values())
        versions = {(app.app, app.version) for app in published.values()}
        table = RouteTable(
            revision=self.table.revision if self.table else 0,
            nodes=tuple(sorted(infos, key=lambda info: info.name)),
            apps=tuple(published.values()),
            contingencies=tuple(c for c in plan.contingencies if (c.app, c.version) in versions),
            placements=tuple(p for p in plan.placements if (p.app, p.version) in versions),
            quarantined=tuple(sorted(self.quarantined)),
            cluster=self._config.name,
            previous=tuple(self._previous(published).values()),
            removed=self._removals(),
            plan_revision=plan.revision,
        )
        if table == self.table:
            return
        self.revision = revision
        self.table = msgspec.structs.replace(table, revision=revision)
        self._effects.append(ev.SendRoutes(self.table, "", reason))

    def _previous(self, published: Mapping[str, AppVersion]) -> dict[str, AppVersion]:
        """What may answer where the published version fails: the one before, if clients can't tell."""
        found = {}
        for name, app in published.items():
            older = [version for other, version in self.releases if other == name and version < app.version]
            if older and "previous-version" in app.fallback:
                previous = self.releases[(name, max(older))].app
                if not mismatch(app, previous):
                    found[name] = previous
        return found

    def _publish_targets(
        self, published: Mapping[str, AppVersion], plan: Plan, revision: int, reason: str
    ) -> None:
        facts = TargetFacts(
            plan=plan,
            apps=published,
            versions={key: release.app for key, release in self.releases.items()},
            nodes=self.nodes.by_name,
            stable=self._stable,
            quarantined=self.quarantined,
            asked=self.quarantine.asked,
            previous=self._previous(published),
        )
        removed = self._removals()
        for node, target in make_targets(facts).items():
            target.removed = removed
            if self._sent.get(node) == target or self.hearing.waits_for(("agent", node)):
                continue
            self._sent[node] = target
            self.revision = revision
            target = msgspec.structs.replace(target, revision=revision)
            self._effects.append(ev.SendTarget(node, target, reason))

    def _removals(self) -> tuple[Removal, ...]:
        return learning.removals(self.currents, self._config.controller.removals_max)

    # Peers that may know more

    @property
    def _knows_less(self) -> bool:
        """We know of nothing, and somebody holds something that it couldn't tell."""
        return not self.currents and self.plan is None and any(self.hearing.revisions.values())

    def _welcome(self, peer: learning.Peer) -> None:
        """Send a gateway what there is, as soon as it is known what it holds."""
        role, name = peer
        if role != "gateway" or self.table is None or self.hearing.waits_for(peer) or self._knows_less:
            return
        if self.hearing.revisions.get(peer, 0) > self.table.revision:
            self.revision += 1
            self.table = msgspec.structs.replace(self.table, revision=self.revision)
        self._effects.append(ev.SendRoutes(self.table, name, f"gateway {name} connected"))

    def _take_held(self, held: learning.Held, source: str, now: float) -> None:
        self._jump_ahead(held.revision)
        learned = learning.learn(self.currents, self.releases, held, source)
        self.currents |= learned.currents
        self.releases |= learned.releases
        self.recovered |= learned.currents.keys()
        removed = {app for app, current in learned.currents.items() if not current.version}
        gone = [key for key in self.releases if key[0] in removed]
        for key in gone:
            del self.releases[key]
        for app in learning.known_as_removed(held, self.currents):  # tell it, however long ago that was
            newest = msgspec.structs.replace(self.currents[app], removed_at=self.revision)
            self.currents[app] = learned.currents[app] = newest
        for what in held.quarantined:
            if what[0] in learned.currents and self._is_current(*what[:2]):
                record = Quarantined(*what, why=f"as {source} knows")
                self.quarantine.recall([record], now)
                self._save({stored.quarantine_key(*what): record}, reason=record.why)
        if self.plan is None:
            self.plan = learning.taken_over(held)
        for kind, message, app in learned.notes:
            self._note(kind, message, app=app)
        records = learned.records()
        if records or gone:
            self._save(records, tuple(stored.release_key(*key) for key in gone), f"as {source} knows")
        for name in records:
            self.unreadable.pop(name, None)

    def _jump_ahead(self, revision: int) -> None:
        """Go on behind the numbers of a life that we don't remember, deployments' numbers too."""
        if not self.revision < revision <= learning.NUMBER_MAX:
            return
        self.epoch = max(self.epoch, revision // REVISIONS_PER_EPOCH + 1)
        self.revision = self.epoch * REVISIONS_PER_EPOCH
        self._save({stored.META: stored.Meta(self.epoch)}, reason="a peer holds later numbers")
        self._note("controller.learned", f"a peer holds revision {revision}: this is start {self.epoch} now")

    # Effects

    def _note(
        self, kind: str, message: str, *, app: str = "", node: str = "", data: dict[str, Any] | None = None
    ) -> None:
        self._effects.append(ev.Note(kind, message, app, node, data or {}))

    def _save(
        self, puts: Mapping[str, msgspec.Struct], deletes: tuple[str, ...] = (), reason: str = ""
    ) -> None:
        self._effects.append(Save(puts, deletes, reason))
