"""The controller's shell under virtual time. What it stored survives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from understudy.core.controller import events as ev
from understudy.core.controller.machine import ControllerMachine
from understudy.core.controller.stored import Save, recall
from understudy.sim.clock import Process
from understudy.sim.network import End
from understudy.wire.messages import Heartbeat, Hello, NodeState

if TYPE_CHECKING:
    from understudy.sim.world import World

HOST = "c1"
PLAN_S = 0.05  # mean time that planning takes


class Controller:
    """One life of it. `world.store` is its disk."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.process = Process(world.clock, HOST)
        self._links: dict[tuple[str, str], End] = {}
        memory = recall(sorted(world.store.items()))
        self.machine = ControllerMachine(world.config, memory, world.clock.now)

    def begin(self) -> None:
        self.step(ev.Started())
        interval_s = self.world.config.controller.reconcile_interval_ms / 1000
        self.process.every(lambda: interval_s, lambda _: self.step(ev.Tick()))

    def step(self, event: ev.Event) -> None:
        for effect in self.machine.step(event, self.world.clock.now):
            match effect:
                case Save(puts, deletes):
                    self.world.save(puts, deletes)
                case ev.Note(kind, message, app, node):
                    self.world.tell("controller", kind, message, app=app, node=node)
                case ev.SendTarget(node, target):
                    self._send(("agent", node), target)
                case ev.SendRoutes(table, gateway):
                    for role, name in list(self._links):
                        if role == "gateway" and gateway in ("", name):
                            self._send((role, name), table)
                case ev.MakePlan():
                    self._plan(effect)
                case _:
                    assert_never(effect)

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
                if former is not None and former is not end:
                    former.close()
                end.owner = message.role, message.name
                self._links[end.owner] = end
                if message.role == "agent":
                    self.step(ev.AgentHello(message))
                else:
                    self.step(ev.GatewayHello(message.name, message.revision))
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
