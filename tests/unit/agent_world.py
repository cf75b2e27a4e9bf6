"""A world for the agent's machine: virtual time, and workers that do as they are told, or don't."""

from __future__ import annotations

import itertools
from typing import TypeVar

from understudy.core.agent import events as ev
from understudy.core.agent.machine import AgentMachine
from understudy.settings.agent import AgentTuning
from understudy.wire.errors import Code
from understudy.wire.messages import Activate, Loaded, Measure, ReplicaState, Target, TargetReplica
from understudy.wire.records import AppVersion, ArtifactRef, Contingency, Profile, Role, Variant

E = TypeVar("E")


def variant(name: str, replica_mb: float = 50.0, load_ms: float = 10.0, *, measured: bool = True) -> Variant:
    artifact = ArtifactRef(f"digest-of-{name}", int(replica_mb * 1e6), f"{name}.onnx")
    profile = Profile(40.0, replica_mb - 40.0, load_ms, 1.0) if measured else None
    return Variant(name, "onnx", artifact, 0.9, profile=profile)


def app(name: str = "digits", version: int = 1, variants: tuple[Variant, ...] = ()) -> AppVersion:
    return AppVersion(name, version, variants or (variant("full", 100.0, 80.0), variant("small", 45.0, 8.0)))


def contingency(
    name: str = "digits",
    version: int = 1,
    failure: str = "node:n2",
    first: str = "small",
    final: str = "full",
) -> Contingency:
    return Contingency(name, version, failure, "n1", first, final)


class World:
    """Drives one machine. Forks and loads succeed at once unless `forks` or `loads` is switched off."""

    def __init__(
        self,
        memory_mb: float = 1000.0,
        tuning: AgentTuning | None = None,
        saved: ev.Saved | None = None,
        node: str = "n1",
    ) -> None:
        self.now = 100.0
        self.tuning = tuning or AgentTuning()
        self.machine = AgentMachine(node, memory_mb, 7, self.tuning, saved or ev.Saved())
        self.effects: list[ev.Effect] = []  # everything that was ever asked for
        self.forks = True
        self.loads = True
        self.exits = True  # killed and drained workers end
        self._pids = itertools.count(1000)

    def start(self) -> World:
        self.step(ev.Started())
        return self

    def step(self, event: ev.Event) -> list[ev.Effect]:
        """Step, and let the world react to the effects, until it has nothing more to say."""
        produced = self.machine.step(event, self.now)
        self.effects += produced
        for effect in list(produced):
            for reaction in self._react(effect):
                produced += self.step(reaction)
        return produced

    def _react(self, effect: ev.Effect) -> list[ev.Event]:
        match effect:
            case ev.ForkWorker(worker) if self.forks:
                return [ev.WorkerBlank(worker, next(self._pids), f"unix:/run/w-{worker}")]
            case ev.LoadWorker(worker) if self.loads:
                return [loaded(worker)]
            case ev.KillWorker(worker) | ev.DrainWorker(worker) if self.exits:
                return [ev.WorkerExited(worker, "told to")]
            case _:
                return []

    def advance(self, seconds: float) -> list[ev.Effect]:
        """Let time pass, with a tick whenever one is due."""
        end_s = self.now + seconds
        produced: list[ev.Effect] = []
        while self.machine.due_s <= end_s:
            self.now = max(self.now, self.machine.due_s)
            produced += self.step(ev.Tick())
        self.now = end_s
        return produced

    def target(
        self,
        *replicas: TargetReplica,
        apps: tuple[AppVersion, ...] | None = None,
        revision: int = 1,
        released: tuple[str, ...] = (),
        quarantined: tuple[tuple[str, int, str], ...] = (),
    ) -> list[ev.Effect]:
        apps = (app(),) if apps is None else apps
        stage = tuple({v.artifact.digest: v.artifact for a in apps for v in a.variants}.values())
        target = Target(revision, apps, replicas, (), stage, released, quarantined)
        return self.step(ev.TargetReceived(target))

    def stage(self, *names: str) -> None:
        for name in names or ("full", "small"):
            self.step(ev.ArtifactStaged(f"digest-of-{name}"))

    def activate(self, wanted: Contingency | None = None, token: int = 1) -> list[ev.Effect]:
        return self.step(ev.ActivateAsked(Activate(wanted or contingency(), 1), token))

    def measure(self, name: str = "full", token: int = 5) -> list[ev.Effect]:
        return self.step(ev.MeasureAsked(Measure(app(), name), token))

    @property
    def replicas(self) -> tuple[ReplicaState, ...]:
        """As the newest published state has them."""
        return self.machine.state.replicas

    def states(self) -> dict[str, str]:
        return {replica.variant: replica.state for replica in self.replicas}

    def only(self) -> ReplicaState:
        (replica,) = self.replicas
        return replica

    def told(self) -> list[str]:
        return [effect.kind for effect in self.effects if isinstance(effect, ev.Tell)]


def wanted(
    name: str = "full", app_name: str = "digits", version: int = 1, role: Role = Role.PRIMARY
) -> TargetReplica:
    return TargetReplica(app_name, version, name, role)


def loaded(worker: str) -> ev.LoadDone:
    return ev.LoadDone(worker, Loaded(12.0, 2.0, 1.0, 40.0, 60.0, (), ()))


def crashed(worker: str, jitter: float = 0.0) -> ev.WorkerExited:
    return ev.WorkerExited(worker, "killed by SIGKILL", jitter=jitter)


def load_failed(worker: str, code: Code = Code.LOAD_FAILED) -> ev.LoadFailed:
    return ev.LoadFailed(worker, code, "bad model")


def of(kind: type[E], effects: list[ev.Effect]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]
