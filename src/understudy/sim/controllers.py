"""The controller's shell under virtual time. What it stored survives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import msgspec

from understudy.core.controller import events as ev
from understudy.core.controller.machine import ControllerMachine
from understudy.core.controller.stored import Save, encode, recall
from understudy.core.controller.unsent import Unsent
from understudy.core.lifecycle import NodePhase
from understudy.sim.clock import Act, Process
from understudy.sim.network import End
from understudy.wire.messages import Heartbeat, Hello, NodeState, Target
from understudy.wire.records import RouteTable

if TYPE_CHECKING:
    from understudy.sim.world import World

PLAN_S = 0.05  # mean time that planning takes
STORE_RETRY_S = 0.1, 2.0  # first and longest pause, as `controller.bookkeeping` has them


class Books:
    """What `controller.bookkeeping` does: in order, merged, retried. Nobody waits for the store for long."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._waiting: dict[str, bytes | None] = {}
        self._settling: list[Act] = []
        self._writing = False
        self._retry_s = STORE_RETRY_S[0]

    def save(self, records: dict[str, msgspec.Struct | None]) -> None:
        for key, record in records.items():
            self._waiting[key] = None if record is None else encode(record)
        if not self._writing:
            self._write()

    def settled(self, act: Act) -> None:
        """Once all is written, the store fails, or its time is over."""
        if not self._waiting:
            act()
            return
        self._settling.append(act)

        def overdue() -> None:
            if act in self._settling:
                self._settling.remove(act)
                act()

        self._process.after(self._world.config.controller.store_timeout_s, overdue)

    def _write(self) -> None:
        self._writing = True
        records = dict(self._waiting)
        self._world.store.write(self._process, records, lambda written: self._wrote(records, written))

    def _wrote(self, records: dict[str, bytes | None], written: bool) -> None:
        self._writing = False
        if written:
            self._retry_s = STORE_RETRY_S[0]
            self._waiting = {k: v for k, v in self._waiting.items() if records.get(k, b"") is not v}
            if self._waiting:
                self._write()
        else:
            self._writing = True
            self._process.after(self._retry_s, self._write)
            self._retry_s = min(2 * self._retry_s, STORE_RETRY_S[1])
        if not self._waiting or not written:
            settling, self._settling = self._settling, []
            for act in settling:
                act()


class SimController:
    """One life of it. `world.store` is its disk."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.process = Process(world.hosts["c1"])
        self.books = Books(world, self.process)
        self._links: dict[tuple[str, str], End] = {}
        self._unsent = Unsent()
        memory = recall(sorted(world.store.files.items()))
        self.machine = ControllerMachine(world.config, memory, self.process.now)

    def begin(self) -> None:
        self.step(ev.Started())
        interval_s = self.world.config.controller.reconcile_interval_ms / 1000
        self.process.every(lambda: interval_s, lambda _: self.step(ev.Tick()))

    def step(self, event: ev.Event) -> None:
        before = self.machine.quarantined
        self._carry_out(event)
        for what in sorted(self.machine.quarantined - before):
            asked = [node for node in self.machine.nodes.by_name.values() if node.state == NodePhase.READY]
            self.world.checks.quarantined(what, len(asked))

    def _carry_out(self, event: ev.Event) -> None:
        for effect in self.machine.step(event, self.process.now):
            match effect:
                case Save(puts, deletes):
                    self.books.save({**dict.fromkeys(deletes), **puts})
                case ev.Note(kind, message, app, node):
                    self.world.tell("controller", kind, message, app=app, node=node)
                case ev.SendTarget() | ev.SendRoutes():
                    self._publish_later()
                    self._unsent.add(effect)
                case ev.MakePlan():
                    self._plan(effect)
                case _:
                    assert_never(effect)

    def _publish_later(self) -> None:
        if not self._unsent:
            self.process.after(0.0, lambda: self.books.settled(self._publish))

    def _publish(self) -> None:
        """What is newest, after the store has it or has failed."""
        targets, routes = self._unsent.take()
        for order in targets:
            self._send(("agent", order.node), order.target)
        for sending in routes:
            for role, name in list(self._links):
                unknown = self.machine.hearing.waits_for((role, name))
                if role == "gateway" and sending.gateway in ("", name) and not unknown:
                    self._send((role, name), sending.table)

    def _plan(self, asked: ev.MakePlan) -> None:
        plan = self.world.plan(asked.input, asked.revision, asked.reason)
        delay_s = PLAN_S * 2 * self.world.random.random()
        self.process.after(delay_s, lambda: self.step(ev.Planned(plan, asked.facts)))

    def _send(self, peer: tuple[str, str], message: object) -> None:
        if peer in self._links:
            self._links[peer].send(message)

    def accept(self, end: End) -> None:
        end.received = lambda message: self._received(end, message)
        end.lost = lambda: self._lost(end)

    def _received(self, end: End, message: object) -> None:
        match message:
            case Hello():
                former = self._links.get((message.role, message.name))
                end.owner = message.role, message.name
                self._links[end.owner] = end
                if former is not None and former is not end:
                    former.close()
                if message.role == "agent":
                    self.step(ev.AgentHello(message))
                else:
                    self.step(ev.GatewayHello(message.name, message.revision))
            case RouteTable() | Target() if end.owner is not None:
                self.step(ev.HeldTold(end.owner[0], end.owner[1], message))
            case Heartbeat():
                self.step(ev.HeartbeatHeard(message))
            case NodeState():
                self.step(ev.StateReported(message))
            case _:
                raise AssertionError(f"not for a controller: {message}")

    def _lost(self, end: End) -> None:
        if end.owner is not None and self._links.get(end.owner) is end:
            del self._links[end.owner]
            if end.owner[0] == "agent":
                self.step(ev.AgentLost(end.owner[1]))
