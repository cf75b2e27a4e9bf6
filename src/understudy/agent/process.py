"""The agent process: loop, timer, signals and files around `core.agent.machine`."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import assert_never

import msgspec
import structlog
import uvloop

from understudy.adapters import descriptors, logs
from understudy.adapters.artifacts import DirectoryStore, LocalArtifacts
from understudy.adapters.claims import claim
from understudy.adapters.crash_policy import CrashPolicy
from understudy.adapters.parents import need_handles
from understudy.adapters.places import meeting_place
from understudy.adapters.sandbox.trial import BestTier
from understudy.adapters.task_groups import ungrouped
from understudy.agent.disk import NodeDisk
from understudy.agent.environments import Environments
from understudy.agent.kept_environments import KeptEnvironments
from understudy.agent.limits import Groups
from understudy.agent.peers import Peers
from understudy.agent.remembered import Remembered
from understudy.agent.rooms import Rooms, common_walls, tier_here
from understudy.agent.staging import AnswerPart, Staging
from understudy.agent.workers import Workers
from understudy.core.agent import events as ev
from understudy.core.agent.machine import AgentMachine
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import ConfigError, UnderstudyError
from understudy.wire.messages import Hello, ReadArtifact
from understudy.wire.records import Device, Environment, Event

STOP_GRACE_S = 1.0  # beyond the drain timeout, before workers are left to SIGKILL


class AgentProcess:
    """Drives one `AgentMachine`: the world in as events, effects out to the world."""

    def __init__(self, config: ClusterConfig, name: str, sandbox: BestTier) -> None:
        self._config = config
        self._name = name
        self._node = config.node(name)
        self._log = structlog.get_logger()
        self._loop = asyncio.get_running_loop()
        self._state_dir = config.role_dir("agent", name)
        self._claim = claim(self._state_dir, f"agent {name!r}: another agent of this node is running")
        self._memory = Remembered(self._state_dir / "state")
        saved, incarnation = self._memory.saved, self._memory.incarnation
        self._machine = AgentMachine(name, self._node.memory_mb, incarnation, config.agent, saved)
        self._groups = Groups(cgroup_name(self._state_dir, name), config.agent.sandbox.tasks_max)
        sandbox = msgspec.structs.replace(sandbox, lacking=(*sandbox.lacking, *self._groups.lacking))
        hello = Hello(
            role="agent",
            name=name,
            incarnation=incarnation,
            address=config.agent_address(name),
            site=self._node.site,
            memory_mb=self._node.memory_mb,
            cores=self._node.cores,
            devices=tuple(Device(d.name, d.memory_mb, d.cores) for d in self._node.devices),
            revision=saved.target.revision if saved.target else 0,
            sandbox=str(sandbox),
        )
        self._peers = Peers(
            config, hello, self.step, lambda: self._memory.saved.target, self._read_artifact, self._prepare
        )
        self._log.info("sandbox.chosen", tier=sandbox.tier, lacking=sandbox.lacking)
        store = DirectoryStore(Path(config.artifacts_dir))
        artifacts = LocalArtifacts(
            self._state_dir / "artifacts", store, config.agent.stage_bytes_max, config.disk
        )
        rooms = Rooms(self._state_dir, common_walls(config, sandbox.tier), sandbox.of_environments)
        kept = KeptEnvironments(self._state_dir / "environments", self.step)
        self._staging = Staging(
            artifacts,
            rooms,
            self.step,
            self._tell,
            spare=kept.drop_oldest,
        )
        self._environments = Environments(
            kept, self._staging, rooms, self._groups, config.agent, self.step, self._tell
        )
        self._workers = Workers(
            config,
            self._node,
            self._groups,
            self._staging,
            rooms,
            self._environments,
            self.step,
            self._spawn,
        )
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._crashes = CrashPolicy()
        if self._memory.problem:
            self._tell("state.discarded", self._memory.problem)

    async def run(self) -> None:
        self._crashes.watch(self._loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopping.set)
        self._loop.add_signal_handler(signal.SIGHUP, logs.reopen)
        async with asyncio.TaskGroup() as self._tasks:
            await self._begin()
            await self._peers.listen()
            self._spawn(self._staging.run())
            self._spawn(self._environments.run())
            disk = NodeDisk(self._state_dir, self._config.disk, self._staging, self.step, self._tell)
            self._spawn(disk.run())
            self._spawn(self._workers.prints.run())
            self._spawn(self._workers.keep_doors())
            self._spawn(self._peers.beat())
            self._spawn(self._peers.keep_listening(lambda what: self._tell("socket.restored", what)))
            self._spawn(self._memory.keep(self._tell))
            for address in self._config.controller_addresses():
                self._spawn(self._peers.follow_controller(address))
            self._log.info(
                "agent.started",
                incarnation=self._memory.incarnation,
                limits=self._groups.held,
                pid=os.getpid(),
            )
            await self._stopping.wait()
            await self._end()

    async def _begin(self) -> None:
        self._workers.zygotes.start()
        for key in self._environments.kept.find():
            self.step(ev.EnvironmentChanged(key, ""))
        for digest in self._staging.find():
            self.step(ev.ArtifactStaged(digest))
        await self._workers.adopt()
        self.step(ev.Started())
        self._peers.publish(self._machine.state)
        gc.freeze()  # what is alive now stays alive: later collections needn't look at it

    async def _end(self) -> None:
        self._claim.leave()
        self.step(ev.StopAsked())
        try:
            async with asyncio.timeout(self._config.agent.drain_timeout_ms / 1000 + STOP_GRACE_S):
                await self._stopped.wait()
        except TimeoutError:
            self._log.warning("agent.stop_timed_out")
        for task in list(self._running):
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        await self._workers.close()
        self._peers.close()
        try:
            self._memory.write()
        except OSError as error:
            self._log.error("state.unsaved", reason=str(error))
        await asyncio.to_thread(self._staging.clear_all)
        _unlink_socket(self._config.agent_address(self._name))
        self._claim.close()
        self._log.info("agent.stopped")

    # events and effects

    def step(self, event: ev.Event) -> None:
        try:
            for effect in self._machine.step(event, self._loop.time()):
                self._carry_out(effect)
        except BaseException as error:
            # A step half done: the workers serve on, and the next agent adopts them.
            self._crashes.broken("a step of the agent", error)
            raise
        due_s = self._machine.due_s
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self.step, ev.Tick()) if due_s < float("inf") else None

    def _carry_out(self, effect: ev.Effect) -> None:
        match effect:
            case ev.LoadWorker():
                self._workers.load(effect)
            case ev.ForkWorker(worker, environment):
                self._workers.fork(worker, environment)
            case ev.ProbeWorker():
                self._workers.probe(effect)
            case ev.CheckBlank(worker):
                self._workers.check(worker)
            case ev.EndBatching(worker, reason):
                self._workers.end_batching(worker, reason)
            case ev.DrainWorker():
                self._workers.drain(effect)
            case ev.KillWorker(worker):
                self._workers.kill(worker)
            case ev.StageArtifacts(artifacts, keep):
                self._staging.want(artifacts, keep)
            case ev.HaveEnvironments(environments):
                self._environments.want(environments)
            case ev.KeepZygotes(pools):
                self._workers.zygotes.keep(pools)
            case ev.AnswerActivate(token, activated):
                self._peers.answer(token, activated)
            case ev.AnswerMeasure(token, measured):
                self._peers.answer(token, measured)
            case ev.RefuseMeasure(token, code, message, traceback):
                refusal = UnderstudyError(code, message)
                refusal.traceback = traceback
                self._peers.refuse(token, refusal)
            case ev.Publish(state):
                self._peers.publish(state)
            case ev.Tell(kind, message, app, replica, data):
                self._tell(kind, message, app, replica, data)
            case ev.Save(saved):
                self._memory.take(saved)
            case ev.Stopped():
                self._stopped.set()
            case _:
                assert_never(effect)

    def _prepare(self, environment: Environment, done: Callable[[UnderstudyError | None], None]) -> None:
        async def have() -> None:
            try:
                await self._environments.have(environment)
            except UnderstudyError as error:
                done(error)
            else:
                done(None)

        self._spawn(have())

    def _tell(
        self, kind: str, message: str, app: str = "", replica: str = "", data: dict[str, object] | None = None
    ) -> None:
        self._log.info(kind, message=message, app=app, replica=replica)
        event = Event(
            kind=kind,
            at_unix_ms=time.time_ns() // 1_000_000,
            source=f"agent:{self._name}",
            message=message,
            app=app,
            node=self._name,
            replica=replica,
            data=data or {},
        )
        self._peers.report(event)

    def _read_artifact(self, asked: ReadArtifact, answer: AnswerPart) -> None:
        self._spawn(self._staging.read(asked, answer))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)


def cgroup_name(state_dir: Path, node: str) -> str:
    """Nodes of several clusters on one machine may have the same name, but never the same directory."""
    return f"understudy-{node}-{hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:8]}"


def run_agent(config: ClusterConfig, name: str) -> None:
    """Run until SIGTERM or SIGINT, then drain. Raises `ConfigError` if it can't start."""
    logs.configure("agent", name)
    need_handles()
    descriptors.raise_limit()  # what a model of our user has sent counts against ours
    config.node(name)
    meeting_place(Path(config.run_dir))
    sandbox = tier_here(config, name)

    async def main() -> None:
        await AgentProcess(config, name, sandbox).run()

    with ungrouped(ConfigError):
        uvloop.run(main())


def _unlink_socket(address: str) -> None:
    if address.startswith("unix:"):
        Path(address.removeprefix("unix:")).unlink(missing_ok=True)
