"""The gateway process: sockets, links and timers around `core.gateway.machine`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, assert_never

import msgspec
import structlog
import uvloop

from understudy.adapters import descriptors, logs
from understudy.adapters.audit import AuditLog
from understudy.adapters.heap import keep_freed_memory
from understudy.adapters.links import FrameLink, dial, keep_connected
from understudy.adapters.operator_tokens import announce, operator_token
from understudy.adapters.state_file import StateFile
from understudy.adapters.task_groups import ungrouped
from understudy.core.gateway import machine as core
from understudy.core.gateway.lifecycles import REACHABLE
from understudy.core.gateway.rotation import Replica
from understudy.core.recent import RecentEvents
from understudy.gateway.api import Api
from understudy.gateway.door import Door
from understudy.gateway.handshakes import TlsListener
from understudy.gateway.http import HttpConnection
from understudy.gateway.secured import Secured
from understudy.invariants import InvariantBroken
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import ConfigError, ProtocolError, UnderstudyError
from understudy.wire.frames import Frame
from understudy.wire.messages import (
    Activate,
    Activated,
    AppStats,
    Excuse,
    GatewayStats,
    Heartbeat,
    Hello,
    NodeState,
    Ping,
    Report,
    decode_message,
)
from understudy.wire.records import Event, NodeInfo, RouteTable
from understudy.wire.senders import check_sender

if TYPE_CHECKING:
    from understudy.gateway.grpc import GrpcServer

IDLE_TICK_S = 0.01  # while nothing is in flight
SWEEP_S = 0.5
CONNECT_RETRY_S = 0.02
CONNECT_RETRY_S_MAX = 1.0
PULSE = b"."  # a process that accepts connections says so; before that it says START
START = b"s"
TAKEOVER_WAIT_S = 3.0  # for replicas, before it accepts connections in the place of a gateway that serves
DRAIN_IDLE_S = 0.5  # a draining gateway closes a connection when its client sent nothing for this long
SAVE_RETRY_S = 2.0  # after the table could not be written
GC_THRESHOLD = 50_000  # requests leave no cycles behind, so collections find little; have few of them


@dataclass
class Seat:
    """What a serving process is given by its parent: `pulse` is a pipe to say that it lives."""

    name: str
    sockets: list[socket.socket]
    pulse: int
    gateway: str  # whose process it is
    taking_over: bool = False
    grpc: str = ""  # address, if it shall serve that too


class GatewayProcess:
    """Drives one `core.gateway.machine.Gateway`."""

    def __init__(self, config: ClusterConfig, seat: Seat) -> None:
        self.config = config
        self.seat = seat
        self.name = name = seat.name
        host, port = seat.sockets[0].getsockname()[:2]
        self.http_address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.settings = config.gateway
        self.log = structlog.get_logger()
        self.gateway = core.Gateway(self.settings, random.random, monotonic())
        self.api = Api(self.gateway, self.settings)
        self.api.connections.limit = descriptors.clients_max(
            self.settings.http.connections_max, ports=2 if seat.grpc else 1
        )
        self.table_file = StateFile(config.role_dir("gateway", name) / "routes.bin", RouteTable)
        self.incarnation = time.time_ns()
        self.events = RecentEvents(self.settings.events_max)
        self.controllers: set[FrameLink] = set()
        self.secured = Secured(
            config, seat.gateway, name, lambda kind, message: self._note(core.GatewayNote(kind, message))
        )
        self.api.authenticator = self.secured.authenticator
        me = config.gateway_named(seat.gateway)
        # Where keys say who is an operator, they alone do.
        token = "" if self.api.authenticator else operator_token(Path(config.data_dir))
        self.api.door = Door(me, self.api.cors, token)
        self.api.audit = AuditLog(config.role_dir("gateway", name), config.logs)
        if token:
            announce(token, [me.http])
        self._agents: dict[str, tuple[str, asyncio.Task[None], list[FrameLink]]] = {}
        self._dialing: set[str] = set()
        self._unsaved: RouteTable | None = None
        self._unsaved_set = asyncio.Event()
        self.accepting = False
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Drain, then let `run` return. As SIGTERM does."""
        self._stopping.set()

    def _reload(self) -> None:
        logs.reopen()
        if self.secured.in_use:
            self.secured.reload()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        async with asyncio.TaskGroup() as self.tasks:
            table, problem = self.table_file.load()
            if problem:
                self.log.warning("table.discarded", reason=problem)
            if table is not None:
                self.log.info("table.restored", revision=table.revision, apps=len(table.apps))
                self.step(core.RoutesReceived(table))
            background = [self.tasks.create_task(self._tick()), self.tasks.create_task(self._sweep())]
            background.append(self.tasks.create_task(self._pulse()))
            background.append(self.tasks.create_task(self._save_tables()))
            loop.add_signal_handler(signal.SIGHUP, self._reload)
            if self.secured.in_use:
                background.append(self.tasks.create_task(self.secured.run()))
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD)
            if self.seat.taking_over:  # by the former gateway's table: to a controller there is one of a name
                await self._replicas()
            background.append(self.tasks.create_task(self._report()))
            controllers = [
                self.tasks.create_task(self._follow_controller(address))
                for address in self.config.controller_addresses()
            ]
            servers = [await self._listen(listener) for listener in self.seat.sockets]
            grpc = await self._listen_grpc() if self.seat.grpc else None
            self.accepting = True
            self.log.info("gateway.started", http=self.http_address, grpc=self.seat.grpc)
            await self._stopping.wait()
            for task in controllers:
                task.cancel()
            await self._drain(servers, grpc)
            for task in background:
                task.cancel()
            for _, task, _ in self._agents.values():
                task.cancel()
        self.log.info("gateway.stopped")

    async def _listen(self, listener: socket.socket) -> asyncio.Server | TlsListener:
        limits = self.settings.http
        if self.secured.context is not None:
            return TlsListener(listener, self.secured.context, self.api, limits, self.tasks)
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: HttpConnection(self.api, limits), sock=listener)

    async def _replicas(self) -> None:
        """Return when every app that can be answered is, or has had its time."""
        due = monotonic() + TAKEOVER_WAIT_S
        apps = self.gateway.apps
        while monotonic() < due and not (apps and all(app.ready for app in apps.values())):  # noqa: ASYNC110
            await asyncio.sleep(IDLE_TICK_S)  # readiness of all apps is no event

    async def _listen_grpc(self) -> GrpcServer:
        grpc = grpc_server()(self.api, self.settings)
        await grpc.start(self.seat.grpc, self.secured.context)
        return grpc

    async def _drain(self, servers: list[asyncio.Server | TlsListener], grpc: GrpcServer | None) -> None:
        """Take no new connections, answer what is in flight and what clients send on the ones they have."""
        self.api.draining = True
        for server in servers:
            server.close()
        async with asyncio.TaskGroup() as drains:
            drains.create_task(self._drain_http())
            if grpc is not None:
                drains.create_task(grpc.stop(self.settings.http.drain_timeout_s))

    async def _drain_http(self) -> None:
        """Closing a connection under a client that is about to use it again would cost it a request, so the
        client is told first: `Connection: close`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.http.drain_timeout_s):
                while self.api.connections or self.api.handshakes:
                    idle_since = monotonic() - DRAIN_IDLE_S
                    for connection in list(self.api.connections):
                        connection.drain(idle_since)
                    await asyncio.sleep(IDLE_TICK_S)
        for handshake in self.api.handshakes:
            handshake.cancel()
        for connection in list(self.api.connections):
            connection.abort()

    # events and effects

    def step(self, event: core.GatewayEvent) -> None:
        try:
            self._carry_out(self.gateway.step(event, monotonic()))
        except (Exception, InvariantBroken) as error:  # half of a decision
            self.api.crashes.broken(type(event).__name__, error)

    def _carry_out(self, effects: list[core.GatewayEffect]) -> None:
        for effect in effects:
            match effect:
                case core.SaveTable(table):
                    self._unsaved = table
                    self._unsaved_set.set()
                    self.api.routes_changed()
                    self.log.info("table.received", revision=table.revision)
                case core.FollowNodes(nodes):
                    self._follow_agents(nodes)
                case core.ConnectWorker(replica):
                    if replica.id not in self._dialing:
                        self._dialing.add(replica.id)
                        self.tasks.create_task(self._connect_worker(replica))
                case core.DropWorker(replica):
                    if isinstance(replica.link, FrameLink):
                        replica.link.close()
                case core.SendActivate(node, contingency, revision):
                    for link in self._agents[node][2] if node in self._agents else []:
                        link.send(Activate(contingency, revision))
                case core.SendExcuse(node, workers):
                    for link in self._agents[node][2] if node in self._agents else []:
                        link.send(Excuse(workers))
                case core.PingWorker(replica):
                    if isinstance(replica.link, FrameLink):
                        replica.link.send(Ping())
                case core.GatewayNote():
                    self._note(effect)
                case _:
                    assert_never(effect)

    def _note(self, note: core.GatewayNote) -> None:
        at = time.time_ns() // 1_000_000
        source = f"gateway:{self.name}"
        data = {"request_id": note.request_id, **note.data} if note.request_id else note.data
        event = Event(note.kind, at, source, note.message, note.app, note.node, note.replica, data)
        self.log.info(note.kind, message=note.message, app=note.app, node=note.node, **data)
        self.events.add(event)
        self._send_events()

    def _send_events(self) -> None:
        if self.controllers and self.events:
            next(iter(self.controllers)).send(Report(tuple(self.events.take())))

    # links to workers

    async def _connect_worker(self, replica: Replica) -> None:
        """Dial until it answers or its agent no longer reports it."""

        received = self.gateway.dispatcher.frame_received

        def on_frame(link: FrameLink, frame: Frame) -> None:
            received(replica, frame, link.last_heard_s)

        def on_lost(link: FrameLink, error: Exception | None) -> None:
            if replica.link is link:
                replica.link = None
                self.step(core.WorkerLost(replica.id))

        def make() -> FrameLink:
            full_bytes = self.settings.link_buffer_bytes_max
            frame_bytes_max = self.config.worker.frame_bytes_max
            return FrameLink(
                on_frame,
                on_lost,
                frame_bytes_max=frame_bytes_max,
                buffer_bytes_max=2 * (full_bytes + frame_bytes_max),  # a busy worker isn't a lost one
                full_bytes=full_bytes,
            )

        pause_s = CONNECT_RETRY_S
        try:
            while replica.state in REACHABLE and not self._stopping.is_set():
                try:
                    link = await dial(replica.address, make, timeout_s=1.0)
                except UnderstudyError:
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, CONNECT_RETRY_S_MAX)
                    continue
                if not link.closed:
                    replica.link = link
                    self.step(core.WorkerConnected(replica.id))
                    return
        finally:
            self._dialing.discard(replica.id)

    # links to agents

    def _follow_agents(self, nodes: tuple[NodeInfo, ...]) -> None:
        wanted = {node.name: node.address for node in nodes}
        for name, (address, task, _) in list(self._agents.items()):
            if wanted.get(name) != address:
                task.cancel()
                del self._agents[name]
        for name, address in wanted.items():
            if name not in self._agents:
                links: list[FrameLink] = []
                task = self.tasks.create_task(self._follow_agent(name, address, links))
                self._agents[name] = (address, task, links)

    async def _follow_agent(self, node: str, address: str, links: list[FrameLink]) -> None:
        def on_frame(link: FrameLink, frame: Frame) -> None:
            message = decode_message(frame)
            check_sender("agent", "gateway", message)
            if isinstance(message, Heartbeat | NodeState) and message.node != node:
                raise ProtocolError(f"node {node!r} speaks for {message.node!r}")
            if isinstance(message, Heartbeat):
                self.step(core.HeartbeatReceived(message))
            elif isinstance(message, NodeState):
                self.step(core.NodeStateReceived(message))
            elif isinstance(message, Activated):
                self.step(core.ActivatedReceived(node, message))

        async def serve(link: FrameLink) -> None:
            links[:] = [link]
            self.step(core.AgentConnected(node))
            link.send(self._hello())
            try:
                await link.wait_closed()
            finally:
                links.clear()
                self.step(core.AgentDisconnected(node))

        try:
            await keep_connected(address, lambda: FrameLink(on_frame), serve)
        except (
            UnderstudyError
        ) as error:  # an address of one node that can't be: no reason to leave the others
            self.api.crashes.contain("link", error)

    # links to controllers

    async def _follow_controller(self, address: str) -> None:
        def on_frame(link: FrameLink, frame: Frame) -> None:
            message = decode_message(frame)
            check_sender("controller", "gateway", message)
            if isinstance(message, RouteTable):
                self.step(core.RoutesReceived(message))
                if self.gateway.table.apps != message.apps:
                    link.send(self.gateway.table)  # it lacks something that nobody removed

        async def serve(link: FrameLink) -> None:
            link.send(self._hello())
            if self.gateway.table.revision > 0:
                link.send(self.gateway.table)  # it may know less
            self.controllers.add(link)
            self._send_events()
            self.log.info("controller.connected", address=address)
            try:
                await link.wait_closed()
            finally:
                self.controllers.discard(link)
                self.log.info("controller.disconnected", address=address)

        await keep_connected(address, lambda: FrameLink(on_frame), serve)

    def _hello(self) -> Hello:
        revision = self.gateway.table.revision
        return Hello("gateway", self.name, incarnation=self.incarnation, revision=max(revision, 0))

    # timers

    async def _tick(self) -> None:
        """Hedges, deadlines and suspicion. Its own lateness is what self-doubt is made of."""
        tick_s = self.settings.tick_ms / 1000
        while True:
            pause_s = tick_s if self.gateway.dispatcher.inflight else IDLE_TICK_S
            due = monotonic() + pause_s
            await asyncio.sleep(pause_s)
            self.step(core.Ticked(monotonic() - due))

    async def _pulse(self) -> None:
        while True:
            try:
                os.write(self.seat.pulse, PULSE if self.accepting else START)
            except BlockingIOError:
                pass  # a parent that is stopped reads later
            except BrokenPipeError:
                self.stop()  # it is dead: what is in flight is answered as if it had asked us to end
                return
            await asyncio.sleep(self.settings.pulse_ms / 1000)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = monotonic()
            for connection in list(self.api.connections):
                connection.sweep(now)

    async def _save_tables(self) -> None:
        failed = False
        while True:
            await self._unsaved_set.wait()
            self._unsaved_set.clear()
            table = self._unsaved
            if table is None:
                continue
            try:
                await asyncio.to_thread(self.table_file.save, table)
            except OSError as error:
                # Serving goes on; only a restart without a controller would miss this revision.
                if not failed:
                    self.log.warning("table.save_failed", path=str(self.table_file.path), error=str(error))
                failed = True
                self._unsaved_set.set()
                await asyncio.sleep(SAVE_RETRY_S)
            else:
                failed = False

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self.settings.stats_interval_ms / 1000)
            stats = {name: self._app_stats(name) for name in self.gateway.apps}
            suspects = tuple(n for n, node in self.gateway.nodes.items() if node.detector.suspect)
            revision = self.gateway.table.revision
            address = f"{'https://' if self.secured.context else ''}{self.http_address}"
            message = GatewayStats(self.name, revision, stats, suspects, address)
            for link in self.controllers:
                link.send(message)
            self._send_events()

    def _app_stats(self, name: str) -> AppStats:
        """Counters since the previous report; the totals keep their sum."""
        app = self.gateway.apps[name]
        p50_s, p99_s = app.patience.digest.quantile(0.5), app.patience.digest.quantile(0.99)
        return msgspec.structs.replace(
            app.traffic.report(),
            p50_ms=(p50_s or 0.0) * 1000,
            p99_ms=(p99_s or 0.0) * 1000,
            serving=app.ranked[0].variant if app.ranked else "",
            ready=app.ready,
            failing=app.health.failing,
        )


def run_process(config: ClusterConfig, seat: Seat) -> None:
    """Serve until SIGTERM. Raises `ConfigError` if the start can't succeed."""
    logs.configure("gateway", seat.name)
    keep_freed_memory()

    async def main() -> None:
        process = GatewayProcess(config, seat)
        process.api.crashes.watch(asyncio.get_running_loop())
        await process.run()

    with ungrouped(ConfigError):
        uvloop.run(main())


def grpc_server() -> type[GrpcServer]:
    """Slow the first time, so a parent calls it before it forks. Raises `ConfigError` without the extra."""
    try:
        from understudy.gateway.grpc import GrpcServer
    except ModuleNotFoundError as error:
        raise ConfigError(f"gateways: grpc: needs 'understudy[grpc]' installed: {error}") from error
    return GrpcServer
