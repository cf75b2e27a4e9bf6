"""An agent, a controller and a gateway that have a cluster behind them, for what one link says to them.

Links are the real ones, over a transport that only remembers; the machines are the real ones too, in virtual
time. Whatever they then want stored, sent or shown must be fit for that.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import msgspec

sys.path.append(str(Path(__file__).parents[1] / "unit"))

import agent_world
import gateway_world

from understudy.adapters.links import FrameLink
from understudy.adapters.store import MemoryStore
from understudy.agent.peers import GATEWAY, Peers
from understudy.controller.shell import Controller
from understudy.core.agent import events as agent_events
from understudy.core.controller import events as controller_events
from understudy.core.controller import stored
from understudy.core.controller.profiles import without_disturbance
from understudy.core.controller.promises import check_promises
from understudy.core.controller.signature import common_signature
from understudy.core.controller.stored import CurrentVersion, Memory, Release, StoredNode
from understudy.core.gateway import machine as gateway_core
from understudy.gateway.pages import _app_status, failure_records, model_metadata
from understudy.gateway.triton import configuration
from understudy.settings.cluster import ClusterConfig, NodeConfig
from understudy.settings.controller import ControllerTuning
from understudy.settings.gateway import GatewayConfig
from understudy.wire.errors import ProtocolError, UnderstudyError
from understudy.wire.frames import Frame, FrameDecoder
from understudy.wire.messages import (
    Activate,
    Activated,
    BatchingEnded,
    Excuse,
    Failure,
    Heartbeat,
    Hello,
    Loaded,
    Measure,
    Measured,
    NodeState,
    Report,
    Target,
    WorkerStats,
    decode_message,
    encode_message,
)
from understudy.wire.records import Event, NodeInfo, RouteTable
from understudy.wire.senders import check_sender

PLANNED_SHARE = 200  # of inputs that ask for a plan, one is planned: that takes long
TICKS_MAX = 2000  # of an agent in a few seconds
WORKER = "worker"


class Loop(asyncio.SelectorEventLoop):
    """On which time can be passed without waiting."""

    passed_s = 0.0

    def time(self) -> float:
        return super().time() + self.passed_s


class Transport:
    """Remembers what is written, and whether it was closed."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        return None

    def pause_reading(self) -> None:
        """For the rest of a large frame, which never comes."""
        self.closed = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        return None

    def resume_reading(self) -> None:
        return None


class Linked:
    """A link of a receiver's, with the fuzz at its other end."""

    def __init__(self, link: FrameLink) -> None:
        self.link = link
        self._transport = Transport()
        link.connection_made(self._transport)

    @property
    def closed(self) -> bool:
        return self._transport.closed

    def say(self, *frames: bytes) -> None:
        for frame in frames:
            if not self.closed:
                self.link.data_received(frame)

    async def end(self) -> None:
        """What was sent can be read; then the link goes."""
        await asyncio.sleep(0)
        for frame in FrameDecoder().feed(b"".join(self._transport.written)):
            assert decode_message(frame) is not None
        self.link.connection_lost(None)


class Receiver(Protocol):
    async def hear(self, sender: str, frames: list[bytes]) -> bool:
        """Whether the link was still open at the end."""
        ...


class AgentReceiver:
    """Node n1, which runs what its target says. Workers do as they are told."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._digests = {v.artifact.digest for app in target.apps for v in app.variants}
        self._config = ClusterConfig((NodeConfig("n1", 1000.0),))

    async def hear(self, sender: str, frames: list[bytes]) -> bool:
        world = agent_world.World(saved=agent_events.Saved(self._target))
        world.loads = sender != WORKER
        world.start()
        for digest in self._digests:
            world.step(agent_events.ArtifactStaged(digest))
        if sender == WORKER:
            return _told_agent(world, self._target, frames)
        hello = Hello("agent", "n1", incarnation=7, address="unix:/x", memory_mb=1000.0)
        peers = Peers(self._config, hello, world.step, lambda: world.machine._orders.target, _read, _prepare)
        linked = Linked(FrameLink(peers._received, peers._lost))
        if sender == "controller":
            peers._controllers.add(linked.link)
        elif sender == GATEWAY:
            linked.say(encode_message(Hello(GATEWAY, "g1")))
        linked.say(*frames)
        stayed = not linked.closed
        for effect in world.effects:
            _assert_carried_out(effect, peers)
        await linked.end()
        asked = len(world.effects)
        world.advance(3.0)
        assert len(world.effects) - asked < TICKS_MAX, "it never comes to rest"
        for effect in world.effects[asked:]:
            _assert_carried_out(effect, peers)
        assert not math.isnan(world.machine.due_s)
        return stayed


def _told_agent(world: agent_world.World, target: Target, frames: list[bytes]) -> bool:
    """What workers answer: one that loads, one that is measured, one of a former life."""
    world.step(agent_events.MeasureAsked(Measure(target.apps[0], target.apps[0].variants[-1].name), 5))
    stayed = True
    for frame in frames:
        try:
            for each in FrameDecoder().feed(frame):
                message = decode_message(each)
                loading = [e.worker for e in world.effects if isinstance(e, agent_events.LoadWorker)]
                for worker in loading:
                    _worker_said(world, worker, message)
        except ProtocolError:
            stayed = False
            break
    world.advance(3.0)
    for effect in world.effects:
        if isinstance(effect, agent_events.AnswerMeasure):
            _assert_readable(effect.measured)
            _assert_deployed(effect.measured, target)
        elif not isinstance(effect, agent_events.RefuseMeasure):
            _assert_carried_out(effect, None)
    assert len(world.effects) < TICKS_MAX, "it never comes to rest"
    return stayed


def _worker_said(world: agent_world.World, worker: str, message: Any) -> None:
    match message:
        case Loaded():
            world.step(agent_events.LoadDone(worker, message))
        case Failure(code, text, _, traceback):
            world.step(agent_events.LoadFailed(worker, code, text, 0.0, traceback))
        case BatchingEnded(reason):
            world.step(agent_events.BatchingEndedAt(worker, reason))
        case WorkerStats():
            world.step(agent_events.WorkerFound(f"{worker}-former", "unix:/x", message))


def _assert_deployed(measured: Measured, target: Target) -> None:
    """A deployment goes on with it, or is refused."""
    app = target.apps[0]
    variants = [
        msgspec.structs.replace(v, profile=measured.profile, verdict=measured.verdict) for v in app.variants
    ]
    try:
        inputs, outputs = common_signature({v.name: measured for v in variants})
        app = msgspec.structs.replace(
            app, variants=without_disturbance(variants), inputs=inputs, outputs=outputs
        )
        check_promises(app)
    except UnderstudyError:
        return
    _assert_readable(RouteTable(1, apps=(app,)))
    msgspec.json.encode((model_metadata(app), configuration(app)))


def _read(asked: Any, answer: Callable[[Any], None]) -> None:
    assert isinstance(asked.digest, str)


def _prepare(environment: Any, answer: Callable[[Any], None]) -> None:
    answer(None)


def _assert_carried_out(effect: agent_events.Effect, peers: Peers | None) -> None:
    match effect:
        case agent_events.AnswerActivate(token, answer) | agent_events.AnswerMeasure(token, answer):
            peers.answer(token, answer)
        case agent_events.RefuseMeasure(token, code, message):
            peers.refuse(token, UnderstudyError(code, message))
        case agent_events.Publish(state):
            _assert_readable(state)
        case agent_events.Save(saved):
            msgspec.msgpack.decode(msgspec.msgpack.encode(saved), type=agent_events.Saved)
        case agent_events.Tell(kind, message, app, replica, data):
            _assert_told(Event(kind, 1, "agent:n1", message, app, "n1", replica, data or {}))
        case agent_events.LoadWorker():
            assert math.isfinite(effect.limit_mb), "no limit"
            assert effect.limit_mb > 0, "no limit"
        case agent_events.DrainWorker(_, timeout_ms):
            assert math.isfinite(timeout_ms)


class ControllerReceiver:
    """It knows two nodes, on one of which an app runs; n1 is connected."""

    def __init__(self, target: Target) -> None:
        self._release = Release(target.apps[0])
        self._config = ClusterConfig(
            nodes=(NodeConfig("n1", 1000.0), NodeConfig("n2", 1000.0)),
            gateways=(GatewayConfig("g1"),),
            controller=ControllerTuning(start_grace_ms=0.001, events_pending_max=50),
        )
        self._nodes = {
            name: StoredNode(NodeInfo(name, "default", "unix:/x", 1000.0)) for name in ("n1", "n2")
        }

    async def hear(self, sender: str, frames: list[bytes]) -> bool:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        app = self._release.app
        memory = Memory(
            currents={app.app: CurrentVersion(app.version, app.version)},
            releases={(app.app, app.version): self._release},
            nodes=dict(self._nodes),
        )
        plans = Plans(crc32(b"".join(frames)) % PLANNED_SHARE == 0)
        controller = Controller(self._config, "c1", MemoryStore(50), memory, 0, plans)
        standing = Linked(controller.accept())
        standing.say(encode_message(Hello("agent", "n1", incarnation=1, memory_mb=1000.0)))
        linked = Linked(controller.accept())
        linked.say(*frames)
        stayed = not linked.closed
        for _ in range(3):
            loop.passed_s += 0.2
            controller.step(controller_events.Tick())
            await plans.made()
        assert not controller.machine.planning.error, controller.machine.planning.error
        status = controller.status()
        msgspec.json.encode(status)
        targets, routes = controller._unsent.take()
        for sending in (*(order.target for order in targets), *(order.table for order in routes)):
            _assert_readable(sending)
        for event in controller.bookkeeper.unwritten_events:
            _assert_told(event)
        await controller.bookkeeper.flush()
        entries = [(entry.key, entry.value) for entry in await controller.store.range("")]
        assert not stored.recall(entries).unreadable
        await linked.end()
        await standing.end()
        return stayed


class Plans:
    """In the place of a task group: the few plans that are made are made at once."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._asked: list[Coroutine[Any, Any, None]] = []

    def create_task(self, work: Coroutine[Any, Any, None]) -> None:
        self._asked.append(work)

    async def made(self) -> None:
        asked, self._asked = self._asked, []
        for work in asked:
            if self._wanted:
                await work
            else:
                work.close()


class GatewayReceiver:
    """Three nodes, an app on two of them, and a request that waits for its answer."""

    async def hear(self, sender: str, frames: list[bytes]) -> bool:
        world = gateway_world.World()
        request = world.request(timeout_s=0.5)
        stayed = True
        for frame in frames:
            try:
                for each in FrameDecoder().feed(frame):
                    _told_gateway(world, sender, each)
            except ProtocolError:
                stayed = False
                break
        gateway = world.gateway
        for _ in range(4):
            world.now += 0.2
            world.effects += gateway.step(gateway_core.Ticked(), world.now)
        assert hasattr(request, "outcome"), "a request without an end"
        for effect in world.effects:
            _assert_gateways(effect)
        for app in gateway.apps.values():
            msgspec.json.encode((_app_status(app), model_metadata(app.spec), configuration(app.spec)))
        msgspec.json.encode(failure_records([*gateway.apps.values()], world.now, 1.7e9))
        return stayed


def _told_gateway(world: gateway_world.World, sender: str, frame: Frame) -> None:
    """As its process does: what a worker says goes to the dispatcher, what others say by the table."""
    if sender == WORKER:
        replica = world.gateway.replicas["r1"]
        stream = next(iter(replica.outstanding), 0) if frame.stream % 2 else frame.stream
        world.links["r1"].last_heard_s = world.now
        answer = Frame(frame.kind, stream, frame.flags, frame.header, frame.payload)
        world.gateway.dispatcher.frame_received(replica, answer, world.now)
        return
    message = decode_message(frame)
    check_sender(sender, "gateway", message)
    if isinstance(message, Heartbeat | NodeState) and message.node != "n1":
        raise ProtocolError("it speaks for another node")
    match message:
        case Heartbeat():
            world.step(gateway_core.HeartbeatReceived(message))
        case NodeState():
            world.step(gateway_core.NodeStateReceived(message))
        case Activated():
            world.step(gateway_core.ActivatedReceived("n1", message))
        case RouteTable():
            world.step(gateway_core.RoutesReceived(message))


def _assert_gateways(effect: gateway_core.GatewayEffect) -> None:
    match effect:
        case gateway_core.SaveTable(table):
            _assert_readable(table)
        case gateway_core.SendActivate(_, contingency, revision):
            _assert_readable(Activate(contingency, revision))
        case gateway_core.SendExcuse(_, workers):
            _assert_readable(Excuse(workers))
        case gateway_core.GatewayNote():
            _assert_told(Event(effect.kind, 1, "gateway:g1", effect.message, effect.app, data=effect.data))


def _assert_readable(message: Any) -> None:
    """Others can read it. Raises `ProtocolError`."""
    (frame,) = FrameDecoder().feed(encode_message(message))
    assert decode_message(frame) is not None


def _assert_told(event: Event) -> None:
    """It can be sent, stored and shown."""
    _assert_readable(Report((event,)))
    msgspec.json.encode(event)
