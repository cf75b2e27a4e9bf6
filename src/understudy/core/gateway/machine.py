"""The gateway's machine: what it knows of nodes, apps and replicas, and what follows from it.

`step(event, now) -> effects` for everything but requests, which go through `dispatch` directly. Needs no
controller, no store and no majority: route table, heartbeats and broken connections are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, assert_never

import msgspec

from understudy.core.gateway import outliers
from understudy.core.gateway.activation import PendingActivation, choose, gives_way, load_ms_max
from understudy.core.gateway.dispatch import Dispatcher
from understudy.core.gateway.lifecycles import CONNECTED, Seen, reported, seen
from understudy.core.gateway.nodes import KnownNode
from understudy.core.gateway.rotation import App, PlannedPlaces, Replica, Request
from understudy.core.gateway.statics import usable
from understudy.core.gateway.suspicion import HeartbeatDetector, SelfDoubt
from understudy.core.gateway.tables import completed
from understudy.settings.gateway import GatewayTuning
from understudy.wire.messages import Activated, Heartbeat, NodeState, ReplicaState
from understudy.wire.records import Contingency, NodeInfo, Role, RouteTable

HEARTBEAT_S_DEFAULT = 0.05  # until the first heartbeat tells
RETUNE_S = 0.1
PING_S = 0.1
START_GRACE_S = 1.0  # an app that was never seen ready is given this long before anybody is asked to load it
HOPELESS_RETRY_S = 0.5
LATE_TICKS = 2.0  # a tick that is this many ticks late accuses nobody


# Events


class RoutesReceived(msgspec.Struct, frozen=True):
    table: RouteTable


class NodeStateReceived(msgspec.Struct, frozen=True):
    state: NodeState


class HeartbeatReceived(msgspec.Struct, frozen=True):
    heartbeat: Heartbeat


class AgentConnected(msgspec.Struct, frozen=True):
    node: str


class AgentDisconnected(msgspec.Struct, frozen=True):
    node: str


class ActivatedReceived(msgspec.Struct, frozen=True):
    node: str
    answer: Activated


class WorkerConnected(msgspec.Struct, frozen=True):
    replica: str


class WorkerLost(msgspec.Struct, frozen=True):
    replica: str


class Ticked(msgspec.Struct, frozen=True):
    late_s: float = 0.0


GatewayEvent = (
    RoutesReceived | NodeStateReceived | HeartbeatReceived | AgentConnected | AgentDisconnected
    | ActivatedReceived | WorkerConnected | WorkerLost | Ticked
)  # fmt: skip


# Effects


class SaveTable(msgspec.Struct, frozen=True):
    table: RouteTable


class FollowNodes(msgspec.Struct, frozen=True):
    """Keep a link to the agent of each of these nodes and of no other."""

    nodes: tuple[NodeInfo, ...]


class ConnectWorker(msgspec.Struct, frozen=True):
    replica: Replica


class DropWorker(msgspec.Struct, frozen=True):
    replica: Replica


class SendActivate(msgspec.Struct, frozen=True):
    node: str
    contingency: Contingency
    revision: int


class SendExcuse(msgspec.Struct, frozen=True):
    """The ends of these workers of a node were a request's fault."""

    node: str
    workers: tuple[str, ...]


class PingWorker(msgspec.Struct, frozen=True):
    replica: Replica


class GatewayNote(msgspec.Struct, frozen=True):
    """Something for the event log. `kind` is listed in `registry.EVENTS`."""

    kind: str
    message: str
    app: str = ""
    node: str = ""
    replica: str = ""
    request_id: str = ""
    data: dict[str, Any] = {}


GatewayEffect = (
    SaveTable
    | FollowNodes
    | ConnectWorker
    | DropWorker
    | SendActivate
    | SendExcuse
    | PingWorker
    | GatewayNote
)


class Gateway:
    """State and decisions of one gateway."""

    def __init__(self, settings: GatewayTuning, random: Callable[[], float], now: float) -> None:
        self.settings = settings
        self.table = RouteTable(revision=-1)
        self.apps: dict[str, App] = {}
        self.nodes: dict[str, KnownNode] = {}
        self.replicas: dict[str, Replica] = {}
        self.doubt = SelfDoubt(settings.suspicion.self_lag_ms)
        self.dispatcher = Dispatcher(
            settings,
            self.apps,
            died_of_it=self._died_of_it,
            random=random,
            poisoned=self._note_poison,
            changed=self._refresh,
        )
        self._random = random
        self._effects: list[GatewayEffect] = []
        self._retune_at = now
        self._ping_at = now
        self._started_at = now
        self._was_late = False

    def step(self, event: GatewayEvent, now: float) -> list[GatewayEffect]:
        match event:
            case RoutesReceived(table):
                self._take_table(table, now)
            case NodeStateReceived(state):
                self._take_node_state(state, now)
            case HeartbeatReceived(heartbeat):
                self._take_heartbeat(heartbeat, now)
            case AgentConnected(name):
                self._agent_connected(name, now)
            case AgentDisconnected(name):
                self._agent_lost(name, now)
            case ActivatedReceived(node, answer):
                self._take_activated(node, answer, now)
            case WorkerConnected(id_):
                self._worker_connected(id_, now)
            case WorkerLost(id_):
                self._worker_lost(id_, now)
            case Ticked(late_s):
                self._tick(late_s, now)
            case _:
                assert_never(event)
        return self.drain_effects()

    def drain_effects(self) -> list[GatewayEffect]:
        """Effects of what was decided since the last call, also by the dispatcher."""
        effects, self._effects = self._effects, []
        return effects

    # Facts

    def _take_table(self, table: RouteTable, now: float) -> None:
        if table.revision < self.table.revision:
            return
        table, sent = completed(table, self.table), table
        if table is not sent:
            kept = ", ".join(app.app for app in table.apps[len(sent.apps) :])
            self._note("table.incomplete", f"it lacks {kept}, which nobody removed: served on")
        changed = table != self.table
        apps, mistakes = usable(table, self.table)
        self.table = table
        specs = {spec.app: spec for spec in apps}
        previous = {spec.app: spec for spec in table.previous}
        for name in [n for n in self.apps if n not in specs]:
            app = self.apps.pop(name)
            for replica in list(app.replicas.values()):
                self._forget(replica, now)
            self.dispatcher.waiting_room.give_up_waiting(app)  # those too that a replica was working on
        new = specs.keys() - self.apps.keys()
        for name, spec in specs.items():
            app = self.apps.get(name) or App(spec, self.settings, now)
            app.describe(spec)
            app.way_back.recall.previous = previous.get(name)
            app.planned = PlannedPlaces()
            if name not in self.apps:
                self.apps[name] = app
        self._spread(table)
        infos = {node.name: node for node in table.nodes}
        for name in [n for n in self.nodes if n not in infos]:
            self._agent_lost(name, now)
            del self.nodes[name]
        for name, info in infos.items():
            if name in self.nodes:
                self.nodes[name].info = info
            else:
                detector = HeartbeatDetector(self.settings.suspicion, HEARTBEAT_S_DEFAULT, now)
                self.nodes[name] = KnownNode(info, detector)
        for node in self.nodes.values():  # an agent may have told of an app before the controller did
            for report in node.reported if node.connected else ():
                if report.app in new and report.id not in self.replicas:
                    self._take_replica(report, self.apps[report.app], node, now)
        for app in self.apps.values():
            self._refresh(app, now)
        self._effects.append(FollowNodes(table.nodes))
        for name, why in mistakes.items():
            self._note("static.discarded", f"version {specs[name].version}: {why}", app=name)
        if changed:
            self._effects.append(SaveTable(table))

    def _spread(self, table: RouteTable) -> None:
        """Tell each app what the table says of it."""
        for placed in table.placements:
            if (app := self.apps.get(placed.app)) is not None:
                app.planned.hosts |= {placed.node}
                if placed.role is Role.PRIMARY:
                    app.planned.variants |= {placed.variant}
        for contingency in table.contingencies:
            if (app := self.apps.get(contingency.app)) is not None:
                app.planned.contingencies += (contingency,)

    def _take_node_state(self, state: NodeState, now: float) -> None:
        node = self.nodes.get(state.node)
        if node is None or (state.incarnation, state.serial) < (node.incarnation, node.serial):
            return
        node.incarnation, node.serial, node.killed = state.incarnation, state.serial, frozenset(state.killed)
        touched: dict[str, App] = {}
        seen: set[str] = set()
        node.reported = state.replicas
        for report in state.replicas:
            app = self.apps.get(report.app)
            if app is None:
                continue
            seen.add(report.id)
            self._take_replica(report, app, node, now)
            if report.id in state.proven_ago_s:
                self.replicas[report.id].signs.proven_at = now - state.proven_ago_s[report.id]
            touched[app.name] = app
        for id_ in sorted(node.replicas - seen):
            replica = self.replicas[id_]
            touched[replica.app.name] = replica.app
            self._forget(replica, now)
        for app in touched.values():
            self._refresh(app, now)
        self._look_after_activations(node, {report.app for report in state.replicas}, now)

    def _look_after_activations(self, node: KnownNode, running: Set[str], now: float) -> None:
        """What it had accepted and runs no more was taken from it by the controller: ask somebody else."""
        for app in self.apps.values():
            pending = app.way_back.activation
            asked = pending is not None and pending.accepted and pending.contingency.node == node.info.name
            if asked and app.name not in running:
                self._refused(app, node.info.name, "it was released there", now)

    def _take_replica(self, report: ReplicaState, app: App, node: KnownNode, now: float) -> None:
        replica = self.replicas.get(report.id)
        if replica is None:
            replica = Replica(report, app, node.info.name, now, self.settings.breaker)
            self.replicas[report.id] = app.replicas[report.id] = replica
        if report.id not in node.replicas:  # new, or its node was out of the table for a while
            node.replicas.add(report.id)
            replica.node_suspect = node.detector.suspect
        replica.state, replica.role, replica.pid = reported(report.state), report.role, report.pid
        replica.address, replica.restarts = report.address, report.restarts
        if replica.link is None and replica.state in CONNECTED and replica.address:
            self._effects.append(ConnectWorker(replica))

    def _forget(self, replica: Replica, now: float) -> None:
        self.replicas.pop(replica.id, None)
        replica.app.replicas.pop(replica.id, None)
        if replica.node in self.nodes:
            self.nodes[replica.node].replicas.discard(replica.id)
        replica.state = Seen.STOPPED
        replica.app.refresh(now)  # what it had goes to those that stay
        self.dispatcher.link_lost(replica, now)
        self._effects.append(DropWorker(replica))

    def _take_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        node = self.nodes.get(heartbeat.node)
        if node is None or not node.connected:
            return  # what a connection said that broke clears nobody
        if node.detector.heartbeat(heartbeat.interval_ms / 1000, now):
            self._set_node_suspect(node, False, now)
            self._note("node.cleared", f"node {node.info.name} is heard on time again", node=node.info.name)

    def _agent_connected(self, name: str, now: float) -> None:
        if name in self.nodes:
            self.nodes[name].reconnected(now)

    def _agent_lost(self, name: str, now: float) -> None:
        """The agent is gone, which says nothing of its workers: they have links of their own."""
        node = self.nodes.get(name)
        if node is None:
            return
        node.connected = False
        if any(self.replicas[id_].state is Seen.LOST for id_ in node.replicas):
            self._lost_whole(node, now)
        for app in self.apps.values():
            pending = app.way_back.activation
            if pending is not None and pending.contingency.node == name:
                self._refused(app, name, "its agent is gone", now)

    def _worker_connected(self, id_: str, now: float) -> None:
        replica = self.replicas.get(id_)
        if replica is not None:
            if replica.state is Seen.LOST:
                replica.state = seen(replica.state, "link_made")  # the connection broke, the worker didn't
                replica.breaker.heard(now)
            self._refresh(replica.app, now)

    def _worker_lost(self, id_: str, now: float) -> None:
        replica = self.replicas.get(id_)
        if replica is None:
            return
        was_ready = replica.state is Seen.READY
        replica.link = None
        replica.suspect = False
        replica.signs.outrun_at = 0.0
        if was_ready:
            replica.state = seen(
                replica.state, "link_broke"
            )  # until its agent says otherwise, or it can be reached again
            self._effects.append(ConnectWorker(replica))
            self._note(
                "replica.lost", f"connection to {replica.variant} on {replica.node} broke", replica=replica
            )
        self._refresh(replica.app, now)
        self.dispatcher.link_lost(replica, now)
        node = self.nodes.get(replica.node)
        if was_ready and node is not None and not node.connected:
            self._lost_whole(node, now)

    def _lost_whole(self, node: KnownNode, now: float) -> None:
        """Agent and a worker went together, so the node did.

        Not all its links broke yet: the kernel closes a large process's sockets after freeing its memory.
        """
        if node.detector.suspect:
            return
        node.detector.accuse()
        self._note("node.suspected", "its agent and a worker broke off together", node=node.info.name)
        self._set_node_suspect(node, True, now)

    def _set_node_suspect(self, node: KnownNode, suspect: bool, now: float) -> None:
        for id_ in sorted(node.replicas):
            replica = self.replicas[id_]
            replica.node_suspect = suspect
            self._refresh(replica.app, now)
            if suspect:
                self.dispatcher.vigil.copy_elsewhere(replica, now)

    # Rotation and activation

    def _refresh(self, app: App, now: float) -> None:
        was_ready = app.ready
        app.refresh(now)
        if app.ready:
            if not was_ready:
                self.dispatcher.waiting_room.release(app, now)
        elif self._loss_is_real(app, now):
            self._starved(app, now)
        if app.way_back.untrusted and app.way_back.unhealthy_since is not None:
            self._recall(app, now)

    def _recall(self, app: App, now: float) -> None:
        """The current version fails its users: have the previous one loaded, if that may answer."""
        choice = app.way_back.recall.next(
            now - (app.way_back.unhealthy_since or now),
            self.table.nodes,
            self._living,
            now,
            self.settings.activation.ready_timeout_ms / 1000,
        )
        if choice is not None:
            self._effects.append(SendActivate(choice.node, choice, self.table.revision))
            message = (
                f"version {app.spec.version} fails: {choice.node} loads {choice.variant} of {choice.version}"
            )
            self._note("version.recalled", message, app=app.name, node=choice.node)

    @property
    def _living(self) -> set[str]:
        """Nodes that could load something now."""
        return {name for name, node in self.nodes.items() if node.alive}

    def _loss_is_real(self, app: App, now: float) -> bool:
        """Should somebody be asked to load the app, or is it just not up yet?"""
        if app.way_back.was_ready:
            return True
        if any(name in self.nodes and self.nodes[name].alive for name in app.planned.hosts):
            return False  # its planned node lives and is loading it
        return now - max(app.way_back.known_since, self._started_at) >= START_GRACE_S

    def _starved(self, app: App, now: float) -> None:
        """No replica may get a request: have a contingency carried out."""
        way_back = app.way_back
        pending = way_back.activation
        if pending is not None:
            limits = self.settings.activation
            ready_ms = max(limits.ready_timeout_ms, load_ms_max(app.spec, pending.contingency))
            limit_ms = ready_ms if pending.accepted else limits.timeout_ms
            if now - pending.asked_at < limit_ms / 1000 * self.doubt.factor(now):
                return
            way_back.refused[pending.contingency.node] = now
            way_back.activation = None
        for node in [n for n, at in way_back.refused.items() if now - at >= HOPELESS_RETRY_S]:
            del way_back.refused[node]
        planned, living = app.planned, self._living
        # Where one is ready, its agent has nothing to do, whatever is thought of it here.
        useless = {r.node for r in app.replicas.values() if r.state is Seen.READY} | way_back.refused.keys()
        choice = choose(app.spec, planned.contingencies, self.table.nodes, living, planned.hosts, useless)
        if choice is None:
            coming = any(r.coming and r.node in living for r in app.replicas.values())
            way_back.hopeless = not coming and bool(self.nodes) and now - self._started_at >= START_GRACE_S
            if way_back.hopeless:
                self.dispatcher.waiting_room.panic(app, now)
            return
        way_back.hopeless = False
        pending_ones = (a.way_back.activation for a in self.apps.values())
        if gives_way(choice, pending_ones, way_back.unhealthy_since or now, now):
            return  # until the rotation is next worked out
        way_back.activation = PendingActivation(contingency=choice, asked_at=now)
        self._effects.append(SendActivate(choice.node, choice, self.table.revision))
        self._note(
            "contingency.activated",
            f"no ready replica ({choice.failure}): {choice.node} loads {choice.first}, then {choice.variant}",
            app=app.name,
            node=choice.node,
        )

    def _take_activated(self, node: str, answer: Activated, now: float) -> None:
        for app in self.apps.values():
            recall = app.way_back.recall.pending
            if recall is not None and recall.contingency.key == answer.key and not answer.accepted:
                app.way_back.recall.refuse(node, now)
                self._note("contingency.refused", f"{node}: {answer.reason}", app=app.name, node=node)
                continue
            pending = app.way_back.activation
            if pending is None or pending.contingency.key != answer.key or pending.contingency.node != node:
                continue
            if answer.accepted:
                pending.accepted = True
                pending.asked_at = now
            else:
                self._refused(app, node, answer.reason, now)

    def _refused(self, app: App, node: str, why: str, now: float) -> None:
        app.way_back.refused[node] = now
        app.way_back.activation = None
        self._note("contingency.refused", f"{node} can't load it: {why}", app=app.name, node=node)
        if not app.ready:
            self._starved(app, now)

    # Time

    def _tick(self, late_s: float, now: float) -> None:
        self.doubt.ticked(late_s, now)
        self.dispatcher.gate.observe(late_s)
        doubt = self.doubt.factor(now)
        late = self.doubt.just_late(late_s)
        if not late:
            # After a late tick heartbeats may lie unread in the sockets: look again next time.
            for node in self.nodes.values():
                if node.connected and node.detector.expired(now, doubt):
                    silent_ms = node.detector.silent_for_s(now) * 1000
                    self._note("node.suspected", f"silent for {silent_ms:.0f} ms", node=node.info.name)
                    self._set_node_suspect(node, True, now)
        if not late or self._was_late:  # ticks that are all late must not keep requests for ever
            punctual = late_s < LATE_TICKS * self.settings.tick_ms / 1000
            self.dispatcher.tick(list(self.apps.values()), now, doubt, punctual)
        self._was_late = late
        if now >= self._retune_at:
            self._retune_at = now + RETUNE_S
            for app in self.apps.values():
                app.retune(now)
                self._retune_admission(app, now)
                self._tell_health(app, now)
                if app.patience.asked_lately:
                    self._eject_outlier(app, now)
                if not app.ready or app.ramping or any(not r.breaker.closed for r in app.replicas.values()):
                    self._refresh(app, now)
            self.dispatcher.gate.retune(self.apps.values(), self.dispatcher.inflight)
        if now >= self._ping_at:
            self._ping_at = now + PING_S
            self._effects.extend(PingWorker(r) for r in self.replicas.values() if r.suspect and r.link)

    def _eject_outlier(self, app: App, now: float) -> None:
        found = outliers.find(app, self.settings.breaker)
        if found is not None:
            found.replica.breaker.eject(now, self._random(), found.limit_s)
            what = f"{found.replica.variant} on {found.replica.node}"
            self._note("replica.ejected", f"{what}: {found.reason}", replica=found.replica)

    def _retune_admission(self, app: App, now: float) -> None:
        if not app.retune_admission(now):
            return
        self._refresh(app, now)
        if app.allowance.brownout.on:
            names = ", ".join(sorted({r.variant for r in app.stand_ins()}))
            self._note("brownout.started", f"overloaded: {names} answers what is too much", app=app.name)
        else:
            self._note("brownout.ended", "the full-size variant answers alone again", app=app.name)

    def _died_of_it(self, replica: Replica) -> bool:
        """Whether a request may be to blame for this worker's end.

        Its app wasn't removed, and its node lives and didn't kill it.
        """
        node = self.nodes.get(replica.node)
        served = self.apps.get(replica.app.name) is replica.app
        return served and node is not None and node.alive and replica.id not in node.killed

    def _tell_health(self, app: App, now: float) -> None:
        event = app.health.judge(app, now)
        if event:
            self._note(event, app.health.failing or "its users are answered again", app=app.name)
        for failure in app.health.news():
            message = f"{failure.code}: {failure.message}"
            data = {"client": failure.client, "traceback": failure.traceback}
            self._effects.append(
                GatewayNote(
                    "request.failed",
                    message,
                    app.name,
                    failure.node,
                    failure.replica,
                    failure.request_id,
                    {name: value for name, value in data.items() if value},
                )
            )

    def _note_poison(self, request: Request) -> None:
        ended = (*request.beside, *request.kills)
        for node in {replica.node for replica in ended}:
            self._effects.append(SendExcuse(node, tuple(r.id for r in ended if r.node == node)))
        message = f"took down workers on {', '.join(replica.node for replica in request.kills)}"
        self._effects.append(
            GatewayNote("request.poisoned", message, request.app.name, request_id=request.id)
        )

    def _note(
        self, kind: str, message: str, *, app: str = "", node: str = "", replica: Replica | None = None
    ) -> None:
        if replica is not None:
            app, node = replica.app.name, replica.node
        self._effects.append(GatewayNote(kind, message, app, node, replica.id if replica else ""))
