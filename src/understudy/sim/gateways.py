"""A gateway's shell under virtual time, and the requests of its clients. Its disk survives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from understudy.core.gateway import machine as core
from understudy.core.gateway.lifecycles import REACHABLE, BreakerState
from understudy.core.gateway.rotation import App, Replica, Request, Source
from understudy.sim.clock import Process, SimHost
from understudy.sim.disks import Disk, SimStateFile
from understudy.sim.network import RECONNECT_S, End
from understudy.sim.scenario import BAD_CLIENT, BAD_DATA
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.frames import Buffer, Frame, FrameDecoder
from understudy.wire.messages import (
    Activate,
    Activated,
    Excuse,
    Failure,
    Heartbeat,
    Hello,
    Kind,
    NodeState,
    Ping,
    Result,
    decode_answer,
    encode_message,
)
from understudy.wire.records import NodeInfo, RouteTable
from understudy.wire.statics import Static

if TYPE_CHECKING:
    from understudy.sim.world import World

IDLE_TICK_S = 0.02
RESTART_S = 0.1
LESS = 0.1
REFUSED = frozenset({Code.BUSY, Code.DRAINING, Code.UNAVAILABLE, Code.TIMEOUT})  # nothing ran


class ClientRequest(Request):
    """Knows how it ended, and that it did so once."""

    __slots__ = ("failed_at", "outcome", "phase", "world")

    def __init__(self, world: World, app: App, arrived: float, deadline: float, bad: bool) -> None:
        client = BAD_CLIENT if bad else "good"
        super().__init__(app, (BAD_DATA if bad else b"") + b"%r" % arrived, arrived, deadline, client=client)
        self.world = world
        self.phase = world.phase  # of the run, when it was asked
        self.outcome = ""
        self.failed_at: list[Replica] = []

    def answered(self, source: Source, result: Result, body: Buffer) -> None:
        for replica in self.failed_at:
            if isinstance(source, Replica) and isinstance(replica.link, WorkerLink):
                replica.link.put_to_shame(replica.equals(source))
        self._end("degraded" if source.degraded else "ok")

    def failed(self, error: UnderstudyError) -> None:
        self._end(str(error.code))

    def answered_static(self, static: Static) -> None:
        self._end("static")

    def _end(self, outcome: str) -> None:
        self.world.checks.ended(self, outcome)
        self.outcome = outcome


class WorkerLink:
    """What the machine writes to a worker: frames, as on the wire."""

    def __init__(self, gateway: SimGateway, replica: Replica, end: End) -> None:
        self.end = end
        self.last_heard_s = gateway.process.now
        self.full = False
        self.failures = 0.0  # in a row, of requests that another replica answered
        self.failed_s = 0.0  # when it did so last
        self._gateway, self._replica = gateway, replica

    def write(self, data: bytes, payload: Buffer = b"") -> None:
        if data[8] == Kind.INFER:
            self._gateway.world.checks.sent(self._replica, self._gateway.process.now)
        self.end.send((data, payload))

    def heard(self, frame: Frame, now: float) -> None:
        """In the checks' own words, whether this replica is well."""
        self.last_heard_s = now
        if frame.stream not in self._replica.outstanding:
            return
        if frame.kind == Kind.RESULT:
            self.failures = 0
            return
        answer = decode_answer(frame)
        if isinstance(answer, Failure) and answer.code not in REFUSED:
            if self._replica.breaker.state is not BreakerState.OPEN:  # else it was sent before that
                self.failed_s = now
            request = self._replica.outstanding[frame.stream].request
            assert isinstance(request, ClientRequest)
            request.failed_at.append(self._replica)

    def put_to_shame(self, by_equal: bool) -> None:
        """Another replica answered what this one failed; by another variant it says less."""
        self.failures += 1 if by_equal else LESS


class GatewayHost:
    """What survives a gateway: its machine with its disk."""

    def __init__(self, world: World, host: SimHost) -> None:
        self.world, self.host = world, host
        self.disk = Disk()
        self.gateway: SimGateway | None = None

    def start(self) -> None:
        if self.gateway is None:
            self.gateway = SimGateway(self)
            self.gateway.begin()

    def kill(self, *, power_lost: bool) -> None:
        if self.gateway is not None:
            gateway, self.gateway = self.gateway, None
            gateway.process.kill(power_lost=power_lost)
            self.world.after(RESTART_S, self.start)
            if power_lost:
                self.host.boot()


class SimGateway:
    """One life of it."""

    def __init__(self, at: GatewayHost) -> None:
        self.world, self.name = at.world, at.host.name
        self.process = Process(at.host)
        self.machine = core.Gateway(self.world.config.gateway, self.world.random.random, self.process.now)
        self._file = SimStateFile(at.disk, self.process, "routes")
        self._agents: dict[str, End | None] = {}
        self._dialing: set[str] = set()

    def begin(self) -> None:
        table = self._file.load()
        if table is not None:
            self.step(core.RoutesReceived(table))
        self.process.every(self._pause_s, lambda late_s: self.step(core.Ticked(late_s)))
        self._dial_controller()

    def _pause_s(self) -> float:
        busy = self.machine.dispatcher.inflight
        return self.world.config.gateway.tick_ms / 1000 if busy else IDLE_TICK_S

    def submit(self, app: str, *, bad: bool = False) -> ClientRequest | None:
        """A client asks. None: nobody takes its connection, or the app isn't known yet."""
        now = self.process.now
        known = self.machine.apps.get(app)
        if known is None or not self.process.alive or self.process.paused:
            return None
        request = ClientRequest(self.world, known, now, now + known.spec.deadline_ms / 1000, bad)
        self.world.checks.asked(request, self.process)
        self.machine.dispatcher.submit(request, now)
        self.world.checks.queues(known)
        return request

    # events and effects

    def step(self, event: core.GatewayEvent) -> None:
        for effect in self.machine.step(event, self.process.now):
            match effect:
                case core.SaveTable(table):
                    self._file.save(table)
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
                case core.SendExcuse(node, workers):
                    end = self._agents.get(node)
                    if end is not None:
                        end.send(Excuse(workers))
                case core.PingWorker(replica):
                    if replica.link is not None:
                        replica.link.write(encode_message(Ping()))
                case core.GatewayNote(kind, message, app, node, replica_id):
                    self.world.tell(
                        f"gateway:{self.name}", kind, message, app=app, node=node, replica=replica_id
                    )
                case _:
                    assert_never(effect)

    # links to workers

    def _dial_worker(self, replica: Replica) -> None:
        if replica.state not in REACHABLE or replica.id not in self.machine.replicas:
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
            now = self.process.now
            for frame in decoder.feed(data):
                link.heard(frame, now)
                app, retried = replica.app, replica.app.traffic.stats.retried
                probing = frame.stream == replica.breaker.probe
                self.machine.dispatcher.frame_received(replica, frame, now)
                if app.traffic.stats.retried > retried and not probing:
                    self.world.checks.retried(app, now)

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
            self.step(core.AgentDisconnected(name))
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
        ours.received = self._heard_controller
        ours.lost = lambda: self.process.after(RECONNECT_S, self._dial_controller)
        ours.send(Hello("gateway", self.name, revision=max(self.machine.table.revision, 0)))
        if self.machine.table.revision > 0:
            ours.send(self.machine.table)

    def _heard_controller(self, message: object) -> None:
        if isinstance(message, RouteTable):
            self.world.checks.order(self.name, self.machine.table.revision, message.revision)
            self.world.checks.whole(self.name, self.machine.table, message)
            self.step(core.RoutesReceived(message))
