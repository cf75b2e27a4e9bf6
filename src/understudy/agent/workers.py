"""Worker processes as the agent handles them: fork, connect, load, probe, drain, kill, bury, adopt.

Each process is watched through a pidfd, whether this agent had it forked or found it. A record of each on
disk lets a restarted agent find them. Outcomes go to the machine as events, never as return values.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

from understudy.adapters.links import FrameLink, dial
from understudy.adapters.processes import process_stat
from understudy.adapters.progress import progress_path
from understudy.agent import probing
from understudy.agent.environments import Environments
from understudy.agent.limits import MemoryLimits
from understudy.agent.prints import Prints
from understudy.agent.spawners import OWN, Parent, Spawners
from understudy.agent.staging import Staging
from understudy.agent.zygote import Fork
from understudy.core.agent import events as ev
from understudy.core.agent.replicas import load_timeout_s, request_memory_mb
from understudy.settings.cluster import ClusterConfig, NodeConfig
from understudy.settings.runtimes import RUNTIMES
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.frames import Frame
from understudy.wire.messages import (
    BatchingEnded,
    Drain,
    Kind,
    Load,
    Loaded,
    Rehearse,
    Rehearsed,
    Stats,
    WorkerStats,
    decode_message,
)
from understudy.wire.records import BatchingVerdict, Variant

CONNECT_TIMEOUT_S = 10.0  # from the fork to a worker that answers
CONNECT_RETRY_S = 0.001
CONNECT_RETRY_S_MAX = 0.02
KILL_TIMEOUT_S = 1.0
STATUS_WAIT_S = 0.1  # the zygote says at once why a process ended, unless it hangs
ADOPT_TIMEOUT_S = 0.5
MEASURE_LATENCY_RUNS = 20


class Record(msgspec.Struct, frozen=True):
    """What is on disk of a worker. `start_ticks` tells it from a later process of the same number."""

    worker: str
    pid: int
    start_ticks: int
    socket: str
    cgroup: str
    environment: str = ""  # key of what it runs in


@dataclass(slots=True, eq=False)
class _Handle:
    record: Record
    pidfd: int
    parent: Parent = (OWN, 0)  # 0 for one that was adopted
    link: FrameLink | None = None
    status: int | None = None  # as the zygote reported it
    gone: bool = False  # the pidfd says so
    rehearsing: bool = False
    unburied: bool = False  # it ended meanwhile


class Workers:
    """All worker processes of a node. `spawn` runs a coroutine as a child task of the agent."""

    def __init__(
        self,
        config: ClusterConfig,
        node: NodeConfig,
        limits: MemoryLimits,
        staging: Staging,
        environments: Environments,
        step: Callable[[ev.Event], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._config = config
        self._node = node
        self._tuning = config.agent
        self._limits = limits
        self._staging = staging
        self.prints = Prints(config.logs)
        self._step = step
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._log = structlog.get_logger()
        self._records = config.role_dir("agent", node.name) / "workers"
        self._records.mkdir(parents=True, exist_ok=True)
        self._handles: dict[str, _Handle] = {}
        self._by_pid: dict[int, _Handle] = {}
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._forking: dict[str, str] = {}  # worker -> key of its environment
        self.zygotes = Spawners(
            config.agent, environments, self._forked, self._not_forked, self._status_known, spawn
        )

    async def close(self) -> None:
        """Kill what is left, and wait for the kernel to be done with it."""
        for handle in list(self._handles.values()):
            _kill(handle)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await self._none_left.wait()
        await self.zygotes.close()
        if not self._limits.close():
            self._log.warning("cgroup.left_behind", path=str(self._limits.directory))

    # fork and connect

    def fork(self, worker: str, environment: str) -> None:
        path = Path(self._config.run_dir) / f"w-{worker}.sock"
        self._forking[worker] = environment
        request = Fork(worker, str(path), self._node.worker_host, self._config.worker)
        self.zygotes.fork(environment, request)

    def _forked(self, worker: str, pid: int) -> None:
        path = Path(self._config.run_dir) / f"w-{worker}.sock"
        environment = self._forking.pop(worker, OWN)
        try:
            pidfd = os.pidfd_open(pid)
            start_ticks = _start_ticks(pid)
        except OSError as error:
            # Not reaped before the zygote hears that it ended, so the number is still its own.
            os.kill(pid, signal.SIGKILL)
            self._step(ev.WorkerExited(worker, f"it can't be watched: {error}", jitter=_jitter()))
            return
        cgroup = self._limits.path(worker)
        handle = self._watch(Record(worker, pid, start_ticks, str(path), cgroup, environment), pidfd)
        handle.parent = self.zygotes.parent(environment)
        self._write(handle.record)
        self._spawn(self._connect_blank(handle))

    def _not_forked(self, worker: str, reason: str) -> None:
        self._forking.pop(worker, None)
        self._step(ev.WorkerExited(worker, reason, jitter=_jitter()))

    async def _connect_blank(self, handle: _Handle) -> None:
        # Moving a process into a cgroup takes the kernel milliseconds.
        await asyncio.to_thread(self._limits.admit, handle.record.cgroup, handle.record.pid)
        if handle.gone:
            self._limits.remove(handle.record.cgroup)
        delay_s = CONNECT_RETRY_S
        deadline_s = self._loop.time() + CONNECT_TIMEOUT_S
        while not handle.gone:
            try:
                await self._connect(handle, CONNECT_TIMEOUT_S)
            except UnderstudyError:
                if self._loop.time() > deadline_s:
                    _kill(handle)
                    return
                await asyncio.sleep(delay_s)  # it is not listening yet
                delay_s = min(delay_s * 2, CONNECT_RETRY_S_MAX)
            else:
                self.prints.follow(handle.record.worker, handle.record.pid)
                await self._introduce(handle)
                return

    async def _introduce(self, handle: _Handle) -> None:
        address = f"unix:{handle.record.socket}"
        if self._node.worker_host and handle.link is not None:
            try:
                stats = await handle.link.call(Stats(), WorkerStats, CONNECT_TIMEOUT_S)
            except UnderstudyError:
                _kill(handle)
                return
            address = stats.tcp_address
        self._step(ev.WorkerBlank(handle.record.worker, handle.record.pid, address))

    async def _connect(self, handle: _Handle, timeout_s: float) -> FrameLink:
        def lost(link: FrameLink, _error: Exception | None) -> None:
            if handle.link is link and not handle.gone:
                self._step(ev.LinkLost(handle.record.worker))

        def told(_link: FrameLink, frame: Frame) -> None:
            # What else comes unasked are late answers, and the answer to Drain.
            message = decode_message(frame) if frame.kind == Kind.BATCHING_ENDED else None
            if isinstance(message, BatchingEnded):
                self._step(ev.BatchingEndedAt(handle.record.worker, message.reason))

        handle.link = await dial(f"unix:{handle.record.socket}", lambda: FrameLink(told, lost), timeout_s)
        return handle.link

    # orders

    def load(self, effect: ev.LoadWorker) -> None:
        handle = self._handles.get(effect.worker)
        if handle is not None:
            self._spawn(self._load(handle, effect))

    async def _load(self, handle: _Handle, effect: ev.LoadWorker) -> None:
        worker, app, variant = effect.worker, effect.app, effect.variant
        self.prints.label(worker, app.app, app.version, variant.name)
        try:
            self._limits.limit(handle.record.cgroup, handle.record.pid, effect.limit_mb)
            path = await self._staging.provide(variant.artifact, worker)
            link = handle.link or await self._connect(handle, ADOPT_TIMEOUT_S)
            message = Load(
                replica=worker,
                app=app.app,
                version=app.version,
                variant=variant.name,
                runtime=variant.runtime,
                path=str(path),
                options=_options(variant, brief=effect.brief),
                inputs=app.inputs,
                outputs=app.outputs,
                finite=app.finite,
                missing=app.missing,
                request_memory_mb=request_memory_mb(variant, self._tuning),
                memory_per_byte=variant.profile.memory_per_byte if variant.profile else 0.0,
                output_per_byte=variant.profile.output_per_byte if variant.profile else 0.0,
                batching=app.batching,
                probe=app.probe,
                queue_rows_max=self._config.worker.queue_rows_max,
                measure_latency_runs=MEASURE_LATENCY_RUNS if effect.measure else 1,
                verdict=variant.verdict,
            )
            timeout_s = load_timeout_s(variant, self._tuning)
            loaded = await link.call(message, Loaded, timeout_s)
            if effect.measure:
                loaded.verdict = await self._rehearse(handle, link)
        except UnderstudyError as error:
            if error.code is Code.LINK_LOST:
                _kill(handle)  # its exit says more than this
            elif error.code is Code.TIMEOUT:
                what = f"loading took longer than load_timeout_s = {timeout_s:g} allows"
                self._step(ev.LoadFailed(worker, Code.TIMEOUT, what, _jitter()))
            else:
                self._step(ev.LoadFailed(worker, error.code, str(error), _jitter(), error.traceback))
        except OSError as error:
            self._step(ev.LoadFailed(worker, Code.UNAVAILABLE, f"memory limit: {error}", _jitter()))
        else:
            self._step(ev.LoadDone(worker, loaded))
        finally:
            self._staging.let_go(worker)
        handle.rehearsing = False
        if handle.unburied:
            self._exited(handle)

    async def _rehearse(self, handle: _Handle, link: FrameLink) -> BatchingVerdict:
        """A model that rows of no kind that it expects bring down or hold up is as good as before."""
        handle.rehearsing = True
        try:
            return (await link.call(Rehearse(), Rehearsed, self._tuning.rehearsal_timeout_s)).verdict
        except UnderstudyError as error:
            if error.code not in (Code.LINK_LOST, Code.TIMEOUT):
                raise
            ended = "its worker ended" if error.code is Code.LINK_LOST else "it took too long"
            return BatchingVerdict(False, "rehearsal", f"{ended} while it was rehearsed with drawn rows")

    def end_batching(self, worker: str, reason: str) -> None:
        handle = self._handles.get(worker)
        if handle is not None and handle.link is not None and not handle.link.closed:
            handle.link.send(BatchingEnded(reason))

    def probe(self, effect: ev.ProbeWorker) -> None:
        handle = self._handles.get(effect.worker)
        if handle is not None:
            asked, inference = self._asked(handle), effect.inference
            self._spawn(probing.probe(asked, self._step, self._tuning, inference=inference))

    def check(self, worker: str) -> None:
        handle = self._handles.get(worker)
        if handle is not None:
            timeout_s = self._tuning.probe_timeout_ms / 1000
            self._spawn(probing.check(self._asked(handle), self._step, timeout_s))

    def _asked(self, handle: _Handle) -> probing.Asked:
        async def reach(timeout_s: float) -> FrameLink:
            link = handle.link
            return await self._connect(handle, timeout_s) if link is None or link.closed else link

        record = handle.record
        return probing.Asked(
            record.worker, record.pid, progress_path(record.socket), lambda: handle.gone, reach
        )

    def drain(self, effect: ev.DrainWorker) -> None:
        handle = self._handles.get(effect.worker)
        if handle is not None and handle.link is not None:
            # Its exit is the answer that counts, and the machine has a deadline for it.
            handle.link.send(Drain(effect.timeout_ms), handle.link.next_stream())

    def kill(self, worker: str) -> None:
        handle = self._handles.get(worker)
        if handle is not None:
            _kill(handle)

    # exits

    def _watch(self, record: Record, pidfd: int) -> _Handle:
        handle = _Handle(record, pidfd)
        self._handles[record.worker] = handle
        self._none_left.clear()
        self._by_pid[record.pid] = handle
        self._loop.add_reader(pidfd, self._gone, handle)
        return handle

    def _gone(self, handle: _Handle) -> None:
        self._loop.remove_reader(handle.pidfd)
        handle.gone = True
        if handle.status is not None or not self.zygotes.knows(handle.parent):
            self._exited(handle)
        else:
            self._loop.call_later(STATUS_WAIT_S, self._exited, handle)

    def _status_known(self, pid: int, status: int) -> None:
        handle = self._by_pid.get(pid)
        if handle is not None:
            handle.status = status
            if handle.gone:
                self._exited(handle)

    def _exited(self, handle: _Handle) -> None:
        worker = handle.record.worker
        if self._handles.get(worker) is not handle:
            return  # the status came after all
        if handle.rehearsing:
            handle.unburied = True  # what was measured before is told first
            return
        out_of_memory = self._limits.exceeded(handle.record.cgroup)
        printed = self.prints.end(worker)
        self._bury(handle)
        reason = "killed for exceeding its memory limit" if out_of_memory else _why(handle.status)
        if printed:
            reason += f"; it printed last: {printed}"
        self._step(ev.WorkerExited(worker, reason, out_of_memory, _jitter()))

    def _bury(self, handle: _Handle) -> None:
        """Leave nothing of a process that is gone."""
        record = handle.record
        self._loop.remove_reader(handle.pidfd)
        del self._handles[record.worker], self._by_pid[record.pid]
        os.close(handle.pidfd)
        handle.gone = True
        if not self._handles:
            self._none_left.set()
        if handle.link is not None:
            handle.link.abort()
        self._clear_away(record)

    def _clear_away(self, record: Record) -> None:
        self._limits.end_all(record.cgroup)
        self._limits.remove(record.cgroup)
        Path(record.socket).unlink(missing_ok=True)
        Path(progress_path(record.socket)).unlink(missing_ok=True)
        (self._records / f"{record.worker}.json").unlink(missing_ok=True)
        shutil.rmtree(self._staging.folder(record.worker), ignore_errors=True)

    # adoption

    async def adopt(self) -> None:
        """Find the workers of a former life; those that make no sense are ended and cleared away."""
        records = self._read_records()
        async with asyncio.TaskGroup() as group:
            for record in records:
                group.create_task(self._adopt(record))
        known = {handle.record.socket for handle in self._handles.values()}
        known |= {progress_path(socket) for socket in known}
        ours = re.compile(rf"w-{re.escape(self._node.name)}-[0-9a-f]+-\d+\.(sock|progress)")
        for path in Path(self._config.run_dir).glob("w-*"):
            if ours.fullmatch(path.name) and str(path) not in known:
                path.unlink(missing_ok=True)
        self._limits.sweep()

    async def _adopt(self, record: Record) -> None:
        try:
            pidfd = os.pidfd_open(record.pid)
        except (OSError, OverflowError):  # gone, or no process's number
            self._clear_away(record)
            return
        if _start_ticks(record.pid) != record.start_ticks:
            os.close(pidfd)
            self._clear_away(record)
            return
        handle = self._watch(record, pidfd)
        try:
            link = await self._connect(handle, ADOPT_TIMEOUT_S)
            stats = await link.call(Stats(), WorkerStats, ADOPT_TIMEOUT_S)
        except UnderstudyError as error:
            self._log.warning("worker.not_adopted", worker=record.worker, pid=record.pid, reason=str(error))
            _kill(handle)
            return
        address = stats.tcp_address or f"unix:{record.socket}"
        self.prints.follow(record.worker, record.pid)
        self.prints.label(record.worker, stats.app, stats.version, stats.variant)
        self._step(ev.WorkerFound(record.worker, address, stats, record.environment))
        if stats.batching_ended:
            self._step(ev.BatchingEndedAt(record.worker, stats.batching_ended))

    def _read_records(self) -> list[Record]:
        records = []
        for path in self._records.iterdir():
            try:
                records.append(msgspec.json.decode(path.read_bytes(), type=Record))
            except OSError as error:
                self._log.warning("record.unreadable", path=str(path), reason=str(error))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                path.unlink()
        return records

    def _write(self, record: Record) -> None:
        path = self._records / f"{record.worker}.json"
        partial = path.with_suffix(".partial")
        try:
            partial.write_bytes(msgspec.json.encode(record))
            partial.rename(path)
        except OSError as error:  # it works all the same; only a restarted agent won't find it
            self._log.warning("record.unwritten", worker=record.worker, reason=str(error))


def _jitter() -> float:
    return random.uniform(-1.0, 1.0)


def _kill(handle: _Handle) -> None:
    if not handle.gone:  # its pidfd may be closed by now, and its number mean something else
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle.pidfd, signal.SIGKILL)


def _start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since the machine did; -1 for one that has ended."""
    stat = process_stat(pid)
    return -1 if stat is None or stat.gone else stat.start_ticks


def _options(variant: Variant, *, brief: bool) -> dict[str, Any]:
    facts = RUNTIMES.get(variant.runtime)
    options = facts.brief_options if brief and facts else {}
    return options | variant.options


def _why(status: int | None) -> str:
    if status is None:
        return "it ended"
    if status >= 0:
        return f"exit status {status}"
    return f"killed by {signal.Signals(-status).name}"
