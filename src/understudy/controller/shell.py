"""The controller as a running thing: links to agents and gateways around the machine.

Lives here: who is connected, carrying out effects in order, what the HTTP API asks for. Does not live here:
decisions (`core.controller.machine`), the documents of the API (`api`, `status`).
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import assert_never

import msgspec
import structlog

from understudy.adapters.artifacts import DirectoryStore
from understudy.adapters.links import FrameLink
from understudy.adapters.store import Store
from understudy.controller.bookkeeping import Bookkeeper
from understudy.controller.collecting import Collector
from understudy.controller.deployments import Deployments
from understudy.controller.nodes_asked import NodesAsked
from understudy.controller.preparing import Preparer
from understudy.controller.profiling import Profiler
from understudy.controller.questions import Questions
from understudy.controller.recovery import informed
from understudy.controller.solver import Solver
from understudy.controller.status import ClusterStatus, cluster_status
from understudy.controller.traffic import Traffic
from understudy.core.controller import events as ev
from understudy.core.controller.machine import ControllerMachine
from understudy.core.controller.stored import Memory, Save
from understudy.core.controller.unsent import Unsent
from understudy.settings import Name
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import Code, ProtocolError, UnderstudyError
from understudy.wire.frames import Frame
from understudy.wire.messages import (
    PROTOCOL,
    GatewayStats,
    Heartbeat,
    Hello,
    NodeState,
    Report,
    Target,
    decode_message,
)
from understudy.wire.records import Event, RouteTable
from understudy.wire.senders import check_sender

Peer = tuple[str, str]  # (role, name)

log = structlog.get_logger()

INCARNATION_MAX = 1 << 62


class Controller:
    """One per process. Methods are called on the loop; `run` drives it."""

    def __init__(
        self,
        config: ClusterConfig,
        name: str,
        store: Store,
        memory: Memory,
        meta_revision: int,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._config = config
        self._name = name
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._solver = Solver()
        self._incarnation = time.time_ns() // 1_000_000
        self._links: dict[Peer, FrameLink] = {}
        self._incarnations: dict[Peer, int] = {}
        self._unsent = Unsent()
        self._outbox = asyncio.Event()
        self.store = store
        self.artifacts = DirectoryStore(Path(config.artifacts_dir))
        self.traffic = Traffic()
        self.problems: tuple[str, ...] = ()  # what `up` could not do, in its words
        self.machine = ControllerMachine(config, memory, self._loop.time())
        self.bookkeeper = Bookkeeper(store, meta_revision, config.controller)
        asked = NodesAsked(config, self.machine, self._links)
        self._profiler = Profiler(asked.ready, asked.measure, config.controller)
        self.deployments = Deployments(
            config,
            self.machine,
            self.step,
            self._note,
            self.bookkeeper,
            self._profiler,
            Preparer(asked.ready, asked.prepare),
            self.artifacts,
            tasks.create_task,
        )
        self.questions = Questions(config, name, self.machine, self.traffic)
        notes = self._note, asked.read
        self._collector = Collector(config, self.machine, self.deployments, self.artifacts, *notes)
        self.step(ev.Started())
        self.deployments.recall(memory, self._loop.time())

    async def run(self) -> None:
        """Tick, publish and keep the books until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.bookkeeper.run())
            tasks.create_task(self._publish())
            tasks.create_task(self._tick())
            tasks.create_task(self._collector.run())

    def accept(self) -> FrameLink:
        """A link for a peer that just connected."""
        return FrameLink(self._on_frame, self._on_lost)

    def disconnect(self) -> None:
        for link in list(self._links.values()):
            link.close()

    def status(self) -> ClusterStatus:
        whose = self._config.name, self._name, self._loop.time()
        status = cluster_status(self.machine, self.traffic, self.bookkeeper.status, *whose)
        status.warnings += [*self.problems, *self._collector.problems]
        return status

    async def remove(self, app: str) -> None:
        """Raises NOT_FOUND, CONFLICT while it is being deployed, STORE_UNAVAILABLE."""
        await informed(self.machine)
        if app not in self.machine.apps:
            raise UnderstudyError(Code.NOT_FOUND, f"no app {app!r}")
        if self.deployments.running(app) is not None:
            raise UnderstudyError(Code.CONFLICT, f"{app} is being deployed; remove it afterwards")
        await self.bookkeeper.commit(*self.machine.removal_records(app))
        self.traffic.forget(app)
        self.step(ev.Removed(app))

    def drain(self, node: str, *, drained: bool) -> None:
        """Raises NOT_FOUND."""
        if node not in self.machine.nodes.by_name:
            raise UnderstudyError(Code.NOT_FOUND, f"no node {node!r}")
        self.step(ev.DrainAsked(node) if drained else ev.UndrainAsked(node))

    def clear_quarantine(self, app: str, variant: str) -> None:
        """Raises NOT_FOUND."""
        if not any(key[0] == app and key[2] == variant for key in self.machine.quarantined):
            raise UnderstudyError(Code.NOT_FOUND, f"{variant!r} of {app!r} is not in quarantine")
        self.step(ev.QuarantineCleared(app, variant))

    # The machine

    def step(self, event: ev.Event) -> None:
        effects = self.machine.step(event, self._loop.time())
        for effect in effects:
            match effect:
                case Save(puts, deletes):
                    self.bookkeeper.save(puts, deletes)
                case ev.Note():
                    self._note(effect)
                case ev.SendTarget() | ev.SendRoutes():
                    self._unsent.add(effect)
                    self._outbox.set()
                case ev.MakePlan():
                    self._tasks.create_task(self._plan(effect))
                case _:
                    assert_never(effect)
        if effects or isinstance(event, ev.Tick):
            self.deployments.observe(self._loop.time())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._config.controller.reconcile_interval_ms / 1000)
            self.step(ev.Tick())

    async def _plan(self, asked: ev.MakePlan) -> None:
        log.info("plan.started", revision=asked.revision, reason=asked.reason)
        try:
            plan = await self._solver.solve(asked.input, asked.revision, asked.reason)
        except Exception as error:
            # The plan in force goes on protecting; the machine asks again after a while.
            log.exception("plan.failed", revision=asked.revision)
            self.step(ev.PlanningFailed(f"{type(error).__name__}: {error}"))
        else:
            self.step(ev.Planned(plan, asked.facts))

    async def _publish(self) -> None:
        """Send what is newest, after the store has it or has failed."""
        while True:
            await self._outbox.wait()
            self._outbox.clear()
            targets, routes = self._unsent.take()
            await self.bookkeeper.settle()
            for order in targets:
                link = self._links.get(("agent", order.node))
                if link is not None:
                    link.send(order.target)
                    revision = order.target.revision
                    log.info("target.sent", node=order.node, revision=revision, reason=order.reason)
            for sending in routes:
                for (role, name), link in self._links.items():
                    unheard = self.machine.hearing.waits_for((role, name))
                    if role == "gateway" and sending.gateway in ("", name) and not unheard:
                        link.send(sending.table)
                log.info(
                    "routes.sent",
                    gateway=sending.gateway or "all",
                    revision=sending.table.revision,
                    reason=sending.reason,
                )

    def _note(self, note: ev.Note) -> None:
        log.info(note.kind, message=note.message, app=note.app, node=note.node)
        source = f"controller:{self._name}"
        now_ms = time.time_ns() // 1_000_000
        self.bookkeeper.note(
            Event(note.kind, now_ms, source, note.message, note.app, note.node, data=note.data)
        )

    # Links

    def _on_frame(self, link: FrameLink, frame: Frame) -> None:
        message = decode_message(frame)
        if isinstance(message, Hello):
            self._on_hello(link, frame.stream, message)
            return
        if link.peer is None:
            raise ProtocolError("the first message has to be a Hello")
        role, name = link.peer
        check_sender(role, "controller", message)
        match message:
            case Heartbeat() if message.node == name:
                self.step(ev.HeartbeatHeard(message))
            case NodeState() if message.node == name:
                self.step(ev.StateReported(message))
                self._profiler.notice()
            case RouteTable() | Target():
                self.step(ev.HeldTold(role, name, message))
            case GatewayStats():
                self.traffic.reported(name, message)
            case Report():
                for event in message.events:  # each speaks for itself
                    self.bookkeeper.note(msgspec.structs.replace(event, source=f"{role}:{name}"))
            case _:
                pass  # of a newer version, or a late reply to a call that was given up

    def _on_hello(self, link: FrameLink, stream: int, hello: Hello) -> None:
        _check_hello(hello)
        peer = (hello.role, hello.name)
        if link.peer not in (None, peer):
            raise ProtocolError("a peer can't become another one")
        former = self._links.get(peer)
        if former is not None and former is not link and hello.incarnation < self._incarnations[peer]:
            raise ProtocolError(f"a newer {hello.role} of the name {hello.name!r} is connected")
        link.peer = peer
        self._links[peer], self._incarnations[peer] = link, hello.incarnation
        if former is not None and former is not link:
            former.close()  # the peer restarted, and we see its new connection first
        table = self.machine.table
        link.send(
            Hello(
                "controller",
                self._name,
                incarnation=self._incarnation,
                revision=table.revision if table else 0,
            ),
            stream,
        )
        log.info("peer.connected", role=hello.role, name=hello.name)
        if hello.role == "agent":
            self.step(ev.AgentHello(hello))
            self._profiler.notice()
        else:
            self.traffic.connected(hello.name)
            self.step(ev.GatewayHello(hello.name, hello.revision))

    def _on_lost(self, link: FrameLink, error: Exception | None) -> None:
        peer: Peer | None = link.peer
        if peer is None:
            if error is not None:
                log.warning("peer.refused", reason=str(error))
            return
        if self._links.get(peer) is not link:
            return  # replaced by a newer connection
        del self._links[peer], self._incarnations[peer]
        role, name = peer
        log.info("peer.disconnected", role=role, name=name, reason=str(error or "closed"))
        if role == "agent":
            self.step(ev.AgentLost(name))
        else:
            self.traffic.disconnected(name)


def _check_hello(hello: Hello) -> None:
    """Raises `ProtocolError` for a peer that we can't know by its name."""
    if hello.role not in ("agent", "gateway"):
        raise ProtocolError(f"a controller doesn't talk to the role {hello.role!r}")
    if hello.protocol != PROTOCOL:
        log.warning("protocol.mixed", role=hello.role, name=hello.name, protocol=hello.protocol)
    if not 0 <= hello.incarnation < INCARNATION_MAX:
        raise ProtocolError(f"{hello.incarnation} can't be an incarnation")
    try:
        msgspec.convert(hello.name, Name)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"{hello.name!r} is no name: {error}") from error
