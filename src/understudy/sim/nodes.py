"""A node: its agent's shell under virtual time, its workers, and what its disk holds."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, assert_never

from understudy.core.agent import events as ev
from understudy.core.agent.machine import AgentMachine
from understudy.core.planning.footprint import replica_mb
from understudy.sim.clock import Process, SimHost
from understudy.sim.disks import Disk, SimStateFile
from understudy.sim.network import RECONNECT_S, End
from understudy.sim.probing import Probing
from understudy.sim.workers import SimWorker
from understudy.wire.errors import Code
from understudy.wire.messages import (
    Activate,
    Excuse,
    Heartbeat,
    Hello,
    Loaded,
    NodeState,
    Target,
    WorkerStats,
)

if TYPE_CHECKING:
    from understudy.sim.world import World

FORK_S = 0.015
EXIT_S = 0.002
STAGE_S = 0.02
PING_S = 0.001
TIMER_S = 0.0001  # a timer comes late by up to so much, never early


class SimNode:
    """What survives its processes: the machine with its disk, and the workers that are left."""

    def __init__(self, world: World, host: SimHost, site: str, memory_mb: float) -> None:
        self.world = world
        self.host = host
        self.name, self.site, self.memory_mb = host.name, site, memory_mb
        self.workers: dict[str, SimWorker] = {}
        self.disk = Disk()
        self.staged: set[str] = set()
        self.agent: Agent | None = None

    def start(self) -> None:
        if self.agent is None:
            self.agent = Agent(self)
            self.agent.begin()

    def kill(self, *, power_lost: bool) -> None:
        """All its processes at once; and, if so, its kernel before it could say a word."""
        agent, self.agent = self.agent, None
        if agent is not None:
            agent.process.kill(power_lost=power_lost)
        for worker in list(self.workers.values()):
            worker.process.kill(power_lost=power_lost)
        self.workers.clear()
        if power_lost:
            self.host.boot()

    def kill_agent(self) -> None:
        if self.agent is not None:
            agent, self.agent = self.agent, None
            agent.process.kill()


class Agent:
    """One life of a node's agent."""

    def __init__(self, node: SimNode) -> None:
        self.node, self.world = node, node.world
        self.process = Process(node.host)
        self.tuning = self.world.config.agent
        self._random = self.world.random
        self._file = SimStateFile(node.disk, self.process, "state")
        incarnation, saved = self._file.load() or (0, ev.Saved())
        self.incarnation = max(incarnation + 1, node.host.wall_ms)  # as `agent.process` has it
        self.saved = saved
        self.machine = AgentMachine(node.name, node.memory_mb, self.incarnation, self.tuning, saved)
        self._file.save((self.incarnation, saved))
        self._links: dict[End, None] = {}  # in the order of their greeting
        self._controller: End | None = None
        self._askers: dict[int, End] = {}
        self._tokens = 0
        self._timer_s = math.inf

    def begin(self) -> None:
        node = self.node
        for digest in sorted(node.staged):
            self.step(ev.ArtifactStaged(digest))
        for worker in list(node.workers.values()):
            self._adopt(worker)
        self.step(ev.Started())
        self.process.every(lambda: self.tuning.heartbeat_interval_ms / 1000, self._beat)
        self._dial()

    def _adopt(self, worker: SimWorker) -> None:
        self._watch(worker)
        if worker.process.paused:
            worker.process.kill()  # it doesn't answer
            return
        variant = worker.variant.name if worker.variant is not None else ""
        stats = WorkerStats(
            1, worker.state, worker.name, worker.app, worker.version, variant, pss_mb=worker.memory_mb
        )
        self.step(ev.WorkerFound(worker.name, f"sim:{worker.name}", stats))

    # events and effects

    def step(self, event: ev.Event) -> None:
        now = self.process.now
        for effect in self.machine.step(event, now):
            self._carry_out(effect)
        due_s = self.machine.due_s
        if due_s < self._timer_s:
            self._timer_s = due_s
            self.process.after(due_s - now + TIMER_S, partial(self._tick, due_s))

    def _tick(self, due_s: float) -> None:
        if due_s == self._timer_s:
            self._timer_s = math.inf
            self.step(ev.Tick())

    def _carry_out(self, effect: ev.Effect) -> None:
        match effect:
            case ev.HaveEnvironments() | ev.KeepZygotes():
                pass  # no app of a simulation has packages of its own
            case ev.ForkWorker(name):
                self.process.after(FORK_S * (0.5 + self._random.random()), lambda: self._forked(name))
            case ev.LoadWorker():
                self._load(effect)
            case ev.ProbeWorker(name, inference):
                if name in self.node.workers:
                    Probing(self, self.node.workers[name], inference)
            case ev.CheckBlank(name):
                self._check_blank(name)
            case ev.DrainWorker(name, timeout_ms):
                if name in self.node.workers:
                    worker = self.node.workers[name]
                    worker.process.post(partial(worker.drain, timeout_ms / 1000))
            case ev.KillWorker(name):
                if name in self.node.workers:
                    self.world.checks.killed(self.node.workers[name])
                    self.node.workers[name].process.kill()
            case ev.StageArtifacts(artifacts, _):
                for artifact in artifacts:
                    self._stage(artifact.digest)
            case ev.AnswerActivate(token, activated):
                self._askers.pop(token).send((self.node.name, activated))
            case ev.Publish(state):
                for link in self._links:
                    link.send(state)
            case ev.Tell(kind, message, app, replica, _):
                self.world.tell(f"agent:{self.node.name}", kind, message, app=app, replica=replica)
            case ev.Save(saved):
                self.saved = saved
                self._file.save((self.incarnation, saved))
            case ev.EndBatching() | ev.AnswerMeasure() | ev.RefuseMeasure() | ev.Stopped():
                raise AssertionError(f"nobody asked for {effect}")
            case _:
                assert_never(effect)

    # workers

    def _forked(self, name: str) -> None:
        process = Process(self.node.host)
        worker = SimWorker(name, process, self._random, self.world.config.worker.queue_rows_max)
        self.node.workers[name] = worker
        self._watch(worker)
        self.step(ev.WorkerBlank(name, 1, f"sim:{name}"))

    def _watch(self, worker: SimWorker) -> None:
        def gone(power_lost: bool) -> None:
            if worker.variant is not None:
                self.world.checks.died(self.node, (worker.app, worker.version, worker.variant.name))
            self.node.workers.pop(worker.name, None)
            jitter = 2 * self._random.random() - 1
            exited = ev.WorkerExited(worker.name, "killed", jitter=jitter)
            self.process.after(EXIT_S, lambda: self.step(exited))

        worker.process.at_death(gone)

    def _load(self, effect: ev.LoadWorker) -> None:
        worker = self.node.workers.get(effect.worker)
        if worker is None:
            return

        def done(took_ms: float) -> None:
            size_mb = replica_mb(effect.variant)
            loaded = Loaded(took_ms, 1.0, 1.0, 40.0, size_mb, (), ())
            self.process.post(lambda: self.step(ev.LoadDone(worker.name, loaded)))

        if self.node.disk.fails:  # there is no room to unpack it
            failed = ev.LoadFailed(worker.name, Code.UNAVAILABLE, "no space left", self._random.random())
            self.process.post(lambda: self.step(failed))
            return
        worker.load(effect.app, effect.variant, done)
        self.world.checks.memory(self.node)

    def _check_blank(self, name: str) -> None:
        """Ask for a sign of life."""
        worker, answered, began_s = self.node.workers.get(name), False, self.process.now
        if worker is None:
            return

        def pong() -> None:
            nonlocal answered
            answered = True
            self.step(ev.ProbePassed(name))

        def timed_out() -> None:
            if not answered and name in self.node.workers:
                self.step(ev.ProbeFailed(name, "no sign of life", self.process.now - began_s))

        worker.process.after(PING_S, lambda: self.process.post(pong))
        self.process.after(self.tuning.probe_timeout_ms / 1000, timed_out)

    def _stage(self, digest: str) -> None:
        if digest in self.node.staged:
            return

        def staged() -> None:
            if self.node.disk.fails:
                self.process.after(1.0, staged)
                return
            self.node.staged.add(digest)
            self.step(ev.ArtifactStaged(digest))

        self.process.after(STAGE_S * self.node.disk.slow, staged)

    # links

    def accept(self, end: End) -> None:
        """A gateway has dialled."""
        end.received = lambda message: self._received(end, message)
        end.lost = lambda: self._links.pop(end, None)

    def _dial(self) -> None:
        controller = self.world.controller
        if self._controller is None and controller is not None:
            ends = self.world.network.connect(self.process, controller.process)
            if ends is not None:
                self._controller, theirs = ends
                controller.accept(theirs)
                ours = self._controller
                ours.received = lambda message: self._received(ours, message)
                ours.lost = self._controller_lost
                self._greet(ours)
                if self.saved.target is not None and self.saved.target.revision > 0:
                    ours.send(self.saved.target)
                return
        self.process.after(RECONNECT_S, self._dial)

    def _controller_lost(self) -> None:
        assert self._controller is not None
        self._links.pop(self._controller, None)
        self._controller = None
        self.process.after(RECONNECT_S, self._dial)

    def _greet(self, end: End) -> None:
        node = self.node
        self._links[end] = None
        revision = self.machine.state.target_revision
        hello = Hello(
            "agent", node.name, incarnation=self.incarnation, address=f"sim:{node.name}", site=node.site,
            memory_mb=node.memory_mb, revision=revision,
        )  # fmt: skip
        end.send(hello)
        end.send(self.machine.state)

    def _received(self, end: End, message: object) -> None:
        match message:
            case Hello(role="gateway"):
                self._greet(end)
            case Activate():
                self._tokens += 1
                self._askers[self._tokens] = end
                self.step(ev.ActivateAsked(message, self._tokens))
            case Excuse(workers):
                self.step(ev.CrashesExcused(workers))
            case Target():
                self.world.checks.order(self.node.name, self.machine.state.target_revision, message.revision)
                self.step(ev.TargetReceived(message))
            case _:
                pass

    def _beat(self, late_s: float) -> None:
        state: NodeState = self.machine.state
        interval_ms = self.tuning.heartbeat_interval_ms
        beat = Heartbeat(self.node.name, self.incarnation, state.serial, interval_ms, late_s * 1000)
        for link in self._links:
            link.send(beat)
