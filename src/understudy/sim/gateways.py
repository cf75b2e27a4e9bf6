"""A gateway's shell under virtual time, and the requests of its clients. Its route table survives it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

from understudy.core.gateway import machine as core
from understudy.core.gateway.rotation import App, Replica, Request, Source
from understudy.sim.clock import Process
from understudy.sim.network import RECONNECT_S, End
from understudy.wire.errors import UnderstudyError
from understudy.wire.frames import Buffer, FrameDecoder
from understudy.wire.messages import (
    Activate,
    Activated,
    Heartbeat,
    Hello,
    Kind,
    NodeState,
    Ping,
    Result,
    encode_message,
)
from understudy.wire.records import NodeInfo, RouteTable

if TYPE_CHECKING:
    from understudy.sim.world import World

IDLE_TICK_S = 0.02
SAVE_S = 0.005


class ClientRequest(Request):
    """Knows how it ended, and that it did so once."""

    __slots__ = ("outcome", "world")

    def __init__(self, world: World, app: App, arrived: float, deadline: float) -> None:
        super().__init__(app, b"%r" % arrived, arrived, deadline)
        self.world = world
        self.outcome = ""

    def answered(self, source: Source, result: Result, body: Buffer) -> None:
        self._end("degraded" if source.degraded else "ok")

    def failed(self, error: UnderstudyError) -> None:
        self._end(str(error.code))

    def answered_static(self, static: dict[str, Any]) -> None:
        self._end("static")

    def _end(self, outcome: str) -> None:
        self.world.check(not self.outcome, f"a request ended twice: {self.outcome}, then {outcome}")
        self.outcome = outcome
        self.world.ended(self)


class WorkerLink:
    """What the machine writes to a worker: frames, as on the wire."""

    def __init__(self, gateway: Gateway, replica: Replica, end: End) -> None:
        self.end = end
        self.last_heard_s = gateway.world.clock.now
        self._gateway, self._replica = gateway, replica

    def write(self, data: bytes, payload: Buffer = b"") -> None:
        if data[8] == Kind.INFER:
            self._gateway.check_choice(self._replica)
        self.end.send((data, payload))


class Gateway:
    """One life of it. `world.table` is its disk."""

    def __init__(self, world: World, name: str = "g1") -> None:
        self.world, self.name = world, name
        self.process = Process(world.clock, name)
        self.machine = core.Gateway(world.config.gateway, world.random.random, world.clock.now)
        self._agents: dict[str, End | None] = {}
        self._dialing: set[str] = set()

    def begin(self) -> None:
        if self.world.table is not None:
            self.step(core.RoutesReceived(self.world.table))
        self.process.every(self._pause_s, lambda late_s: self.step(core.Ticked(late_s)))
        self._dial_controller()

    def _pause_s(self) -> float:
        busy = self.machine.dispatcher.inflight
        return self.world.config.gateway.tick_ms / 1000 if busy else IDLE_TICK_S

    def submit(self, app: str) -> None:
        """A client asks."""
        now = self.world.clock.now
        known = self.machine.apps.get(app)
        if known is not None and self.process.alive and not self.process.paused:
            request = ClientRequest(self.world, known, now, now + known.spec.deadline_ms / 1000)
            self.world.asked(request)
            self.machine.dispatcher.submit(request, now)

    def check_choice(self, replica: Replica) -> None:
        """Of the request that is sent to it now. Only a copy may go to whoever is left."""
        if not _suspected(replica) or next(reversed(replica.outstanding.values())).request.attempts > 1:
            return
        now = self.world.clock.now
        ready = [r for r in replica.app.replicas.values() if r.state == "ready" and r.link is not None]
        better = [r.id for r in ready if not _suspected(r) and r.breaker.closed and r.has_room(now)]
        self.world.check(not better, f"a request went to {replica.id}, a suspect, beside {better}")

    # events and effects

    def step(self, event: core.GatewayEvent) -> None:
        for effect in self.machine.step(event, self.world.clock.now):
            match effect:
                case core.SaveTable(table):
                    self.world.check_revision(table.revision)
                    self.process.after(SAVE_S, partial(setattr, self.world, "table", table))
                case core.FollowNodes(nodes):
                    self._follow(nodes)
                case core.ConnectWorker(replica):
                    if replica.id not in self._dialing:
                        self._dialing.add(replica.id)
                        self._dial_worker(replica)
                case core.DropWorker(replica):
                    if isinstance(replica.link, WorkerLink):
                        replica.link.end.close()
                case core.SendActivate(node, contingency, revision):
                    end = self._agents.get(node)
                    if end is not None:
                        end.send(Activate(contingency, revision))
                case core.PingWorker(replica):
                    if replica.link is not None:
                        replica.link.write(encode_message(Ping()))
                case core.Note(kind, message, app, node, replica_id):
                    self.world.tell(
                        f"gateway:{self.name}", kind, message, app=app, node=node, replica=replica_id
                    )
                case _:
                    assert_never(effect)

    # links to workers

    def _dial_worker(self, replica: Replica) -> None:
        if replica.state not in ("ready", "failing", "lost") or replica.id not in self.machine.replicas:
            self._dialing.discard(replica.id)
            return
        worker = self.world.nodes[replica.node].workers.get(replica.id)
        ends = None if worker is None else self.world.network.connect(self.process, worker.process)
        if worker is None or ends is None:
            self.process.after(RECONNECT_S, lambda: self._dial_worker(replica))
            return
        self._dialing.discard(replica.id)
        ours, theirs = ends
        worker.accept(theirs)
        link, decoder = WorkerLink(self, replica, ours), FrameDecoder()

        def received(data: bytes) -> None:
            link.last_heard_s = self.world.clock.now
            for frame in decoder.feed(data):
                self.machine.dispatcher.frame_received(replica, frame, link.last_heard_s)

        def lost() -> None:
            if replica.link is link:
                replica.link = None
                self.step(core.WorkerLost(replica.id))

        ours.received, ours.lost = received, lost
        replica.link = link
        self.step(core.WorkerConnected(replica.id))

    # links to agents and the controller

    def _follow(self, nodes: tuple[NodeInfo, ...]) -> None:
        names = {node.name for node in nodes}
        for name in [name for name in self._agents if name not in names]:
            end = self._agents.pop(name)
            if end is not None:
                end.close()
        for name in sorted(names - self._agents.keys()):
            self._agents[name] = None
            self._dial_agent(name)

    def _dial_agent(self, name: str) -> None:
        if name not in self._agents or self._agents[name] is not None:
            return
        agent = self.world.nodes[name].agent
        ends = None if agent is None else self.world.network.connect(self.process, agent.process)
        if agent is None or ends is None:
            self.process.after(RECONNECT_S, lambda: self._dial_agent(name))
            return
        ours, theirs = ends
        agent.accept(theirs)
        self._agents[name] = ours
        ours.received = self._heard_agent
        ours.lost = lambda: self._agent_lost(name)
        self.step(core.AgentConnected(name))
        ours.send(Hello("gateway", self.name))

    def _agent_lost(self, name: str) -> None:
        if name in self._agents:
            self._agents[name] = None
            self.step(core.AgentLost(name))
            self.process.after(RECONNECT_S, lambda: self._dial_agent(name))

    def _heard_agent(self, message: object) -> None:
        match message:
            case Heartbeat():
                self.step(core.HeartbeatReceived(message))
            case NodeState():
                self.step(core.NodeStateReceived(message))
            case (str(node), Activated() as activated):
                self.step(core.ActivatedReceived(node, activated))
            case _:
                pass

    def _dial_controller(self) -> None:
        controller = self.world.controller
        ends = None if controller is None else self.world.network.connect(self.process, controller.process)
        if controller is None or ends is None:
            self.process.after(RECONNECT_S, self._dial_controller)
            return
        ours, theirs = ends
        controller.accept(theirs)
        ours.received = lambda message: (
            self.step(core.RoutesReceived(message)) if isinstance(message, RouteTable) else None
        )
        ours.lost = lambda: self.process.after(RECONNECT_S, self._dial_controller)
        ours.send(Hello("gateway", self.name, revision=max(self.machine.table.revision, 0)))


def _suspected(replica: Replica) -> bool:
    """In the checker's own words, so that a mistake in the gateway's isn't made here too."""
    return replica.suspect or replica.node_suspect
