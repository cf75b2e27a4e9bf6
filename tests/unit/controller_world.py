"""A world for the controller's machine: virtual time, nodes that do as they are told, a planner by hand."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from understudy.core.controller import events as ev
from understudy.core.controller.machine import ControllerMachine
from understudy.core.controller.stored import Release, Save, encode, recall
from understudy.core.planning.footprint import replica_mb
from understudy.core.planning.plan import PlanInput
from understudy.settings.cluster import ClusterConfig, NodeConfig
from understudy.settings.controller import ControllerTuning
from understudy.wire.messages import Heartbeat, Hello, NodeState, ReplicaState, Target
from understudy.wire.records import (
    AppVersion,
    ArtifactRef,
    Contingency,
    Criticality,
    Placement,
    Plan,
    Profile,
    Role,
    Variant,
)

E = TypeVar("E")
Placing = Callable[[PlanInput], list[Placement]]


def variant(name: str, mb: float) -> Variant:
    return Variant(
        name, "onnx", ArtifactRef(f"digest-{name}", 1000, name), 0.9, profile=Profile(40, mb - 40, 10, 1)
    )


def app(
    name: str = "digits",
    version: int = 1,
    full_mb: float = 100,
    small_mb: float = 50,
    criticality: Criticality = Criticality.STANDARD,
) -> AppVersion:
    return AppVersion(name, version, (variant("full", full_mb), variant("small", small_mb)), criticality)


def primary(app: AppVersion, node: str, variant: str = "full", role: Role = Role.PRIMARY) -> Placement:
    return Placement(app.app, app.version, variant, node, role)


def one_each(facts: PlanInput) -> list[Placement]:
    """Each app's full-size variant where it is, or on the first node in turn."""
    kept = {p.app: p.node for p in (facts.current.placements if facts.current else ())}
    names = [node.name for node in facts.nodes]
    return [
        primary(app, kept[app.app] if kept.get(app.app) in names else names[index % len(names)])
        for index, app in enumerate(facts.apps)
    ]


class FakeNode:
    """An agent that carries out its target at once, as far as its memory permits."""

    _ids = itertools.count(1)

    def __init__(self, name: str, memory_mb: float, incarnation: int) -> None:
        self.name = name
        self.memory_mb = memory_mb
        self.incarnation = incarnation
        self.serial = 0
        self.alive = True  # False: says nothing
        self.loads = True  # False: replicas stay `loading`
        self.target = Target(0)
        self.replicas: list[ReplicaState] = []
        self.quarantined: tuple[tuple[str, int, str], ...] = ()  # until a target lifts it
        self.crashes: set[tuple[str, int, str]] = set()  # what crashes again and again when it is started
        self.trouble: tuple[str, ...] = ()

    def take(self, target: Target) -> None:
        if target.revision < self.target.revision:
            raise AssertionError("the revision of a target went back")
        lifted = set(self.target.quarantined) - set(target.quarantined)
        self.quarantined = tuple(key for key in self.quarantined if key not in lifted)
        self.target = target
        wanted = Counter((r.app, r.version, r.variant) for r in target.replicas)
        running, self.replicas = [r for r in self.replicas if r.state not in ("backoff", "quarantined")], []
        for replica in sorted(running, key=lambda r: bool(r.activation)):
            what = (replica.app, replica.version, replica.variant)
            if wanted[what] > 0:
                wanted[what] -= 1
                role = next(r.role for r in target.replicas if (r.app, r.version, r.variant) == what)
                self.replicas.append(msgspec.structs.replace(replica, role=role, activation=""))
            elif replica.activation and replica.activation not in target.released:
                self.replicas.append(replica)
        apps = {(a.app, a.version): a for a in target.apps}
        for (name, version, variant_name), count in sorted(wanted.items()):
            found = apps[(name, version)].variant(variant_name)
            assert found is not None
            role = next(r.role for r in target.replicas if r.variant == variant_name and r.app == name)
            for _ in range(count):
                self.start(name, version, found, role)

    def start(self, name: str, version: int, what: Variant, role: Role, activation: str = "") -> None:
        used_mb = sum(r.memory_mb for r in self.replicas if r.state != "backoff")
        state, detail = "ready" if self.loads else "loading", ""
        if used_mb + replica_mb(what) > self.memory_mb:
            state, detail = "backoff", "memory: refused"
        if (name, version, what.name) in (*self.crashes, *self.quarantined):
            state = "quarantined"
            self.quarantined = tuple({*self.quarantined, (name, version, what.name)})
        memory_mb = 0.0 if state in ("backoff", "quarantined") else replica_mb(what)
        self.replicas.append(
            ReplicaState(
                f"r{next(self._ids)}", name, version, what.name, role, state,
                memory_mb=memory_mb, activation=activation, detail=detail,
            )
        )  # fmt: skip

    def retry(self) -> None:
        """Its own pauses are over: what doesn't crash any more runs."""
        self.quarantined = tuple(key for key in self.quarantined if key in self.crashes)
        self.take(self.target)

    def finish_loading(self) -> None:
        self.loads = True
        self.replicas = [
            msgspec.structs.replace(r, state="ready") if r.state == "loading" else r for r in self.replicas
        ]

    def report(self) -> NodeState:
        self.serial += 1
        return NodeState(
            self.name,
            self.incarnation,
            self.serial,
            self.target.revision,
            tuple(self.replicas),
            staged=tuple(ref.digest for ref in self.target.stage),
            quarantined=self.quarantined,
            memory_used_mb=sum(r.memory_mb for r in self.replicas),
            trouble=self.trouble,
        )

    def running(self) -> list[str]:
        return sorted(f"{r.app}/{r.version}/{r.variant}" for r in self.replicas if r.state == "ready")


class World:
    """Drives one machine through time; what it asks for is done, in order."""

    def __init__(
        self, tuning: ControllerTuning | None = None, names: tuple[str, ...] = ("n1", "n2", "n3")
    ) -> None:
        self.now = 1000.0
        self.tuning = tuning or ControllerTuning()
        self.config = ClusterConfig(
            nodes=tuple(NodeConfig(name, 1000) for name in names), gateways=(), controller=self.tuning
        )
        self.stored: dict[str, bytes] = {}
        self.nodes: dict[str, FakeNode] = {}
        self.placing: Placing = one_each
        self.contingencies: tuple[Contingency, ...] = ()
        self.answer_plans = True
        self.effects: list[ev.Effect] = []
        self.machine = self._started()

    def _started(self) -> ControllerMachine:
        machine = ControllerMachine(self.config, recall(self.stored.items()), self.now)
        self.machine = machine
        self.step(ev.Started())
        return machine

    def restart_controller(self, away_s: float = 0.0) -> None:
        """Kill it, start another one on what is stored; nodes that live connect again."""
        self.now += away_s
        self.effects.clear()
        self._started()
        for node in self.nodes.values():
            if node.alive:
                self.connect(node.name)

    # What nodes do

    def join(self, *names: str, memory_mb: float = 1000.0) -> None:
        for name in names:
            incarnation = self.nodes[name].incarnation + 1 if name in self.nodes else 1
            self.nodes[name] = FakeNode(name, memory_mb, incarnation)
            self.connect(name)

    def connect(self, name: str) -> None:
        node = self.nodes[name]
        node.alive = True
        self.step(
            ev.AgentHello(Hello("agent", name, memory_mb=node.memory_mb, revision=node.target.revision))
        )
        if node.target.revision:
            self.step(ev.HeldTold("agent", name, node.target))
        self.report(name)

    def report(self, name: str) -> None:
        self.step(ev.StateReported(self.nodes[name].report()))

    def kill(self, name: str) -> None:
        """The kernel lives: the connection is closed at once."""
        self.nodes[name].alive = False
        self.nodes[name].replicas.clear()
        self.step(ev.AgentLost(name))

    # What happens

    def step(self, event: ev.Event) -> list[ev.Effect]:
        effects = self.machine.step(event, self.now)
        self.effects += effects
        for effect in effects:
            if isinstance(effect, Save):
                self._store(effect.puts, effect.deletes)
        told = [e for e in effects if isinstance(e, ev.SendTarget) and self.nodes[e.node].alive]
        for sent in told:
            self.nodes[sent.node].take(sent.target)
        for sent in told:
            self.report(sent.node)
        for effect in effects:
            if isinstance(effect, ev.MakePlan) and self.answer_plans:
                self.answer(effect)
        return effects

    def answer(self, asked: ev.MakePlan) -> None:
        placements = tuple(self.placing(asked.input))
        plan = Plan(asked.revision, placements, self.contingencies, reason=asked.reason)
        self.step(ev.Planned(plan, asked.facts))

    def run(self, duration_s: float) -> None:
        """Let time pass: heartbeats, ticks."""
        end_s = self.now + duration_s
        while self.now < end_s:
            self.now += self.tuning.reconcile_interval_ms / 1000
            for node in self.nodes.values():
                if node.alive:
                    self.step(ev.HeartbeatHeard(Heartbeat(node.name, node.incarnation, node.serial, 50.0)))
            self.step(ev.Tick())

    def deploy(self, *apps: AppVersion) -> None:
        for app in apps:
            release = Release(app)
            self._store(*self.machine.release_records(release))
            self.step(ev.Deployed(release))

    def remove(self, app: str) -> None:
        self._store(*self.machine.removal_records(app))
        self.step(ev.Removed(app))

    def _store(self, puts: Mapping[str, msgspec.Struct], deletes: tuple[str, ...]) -> None:
        self.stored |= {key: encode(record) for key, record in puts.items()}
        for key in deletes:
            self.stored.pop(key, None)

    # What can be seen

    def seen(self, type_: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, type_)]

    def kinds(self) -> list[str]:
        return [note.kind for note in self.seen(ev.Note)]

    def plans(self) -> list[ev.MakePlan]:
        return self.seen(ev.MakePlan)

    def state(self, node: str) -> str:
        return self.machine.nodes.by_name[node].state
