"""Worker processes as the agent handles them: fork, connect, load, probe, drain, kill, bury, adopt.

Each process is watched through a pidfd, whether this agent had it forked or found it. A record of each on
disk lets a restarted agent find them. Outcomes go to the machine as events, never as return values.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path

import msgspec
import structlog

from understudy.adapters.doors import Doorway
from understudy.adapters.links import SOCKET_CHECK_S
from understudy.adapters.progress import progress_path
from understudy.agent import probing
from understudy.agent.clearing import Clearing
from understudy.agent.environments import Environments
from understudy.agent.forking import Forking
from understudy.agent.handles import (
    ADOPT_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    Handle,
    asked_of,
    connect,
    kill,
)
from understudy.agent.limits import Groups
from understudy.agent.loads import Loads
from understudy.agent.prints import Prints
from understudy.agent.probing import jitter
from understudy.agent.records import Record, Records, start_ticks_of
from understudy.agent.rooms import Rooms
from understudy.agent.staging import Staging
from understudy.core.agent import events as ev
from understudy.settings.cluster import ClusterConfig, NodeConfig
from understudy.wire.errors import UnderstudyError
from understudy.wire.messages import (
    BatchingEnded,
    Drain,
    Ping,
    Pong,
    Stats,
    WorkerStats,
)

KILL_TIMEOUT_S = 1.0
STATUS_WAIT_S = 0.1  # the zygote says at once why a process ended, unless it hangs


class Workers:
    """All worker processes of a node. `spawn` runs a coroutine as a child task of the agent."""

    def __init__(
        self,
        config: ClusterConfig,
        node: NodeConfig,
        groups: Groups,
        staging: Staging,
        rooms: Rooms,
        environments: Environments,
        step: Callable[[ev.Event], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._config = config
        self._node = node
        self._tuning = config.agent
        self._groups = groups
        self.prints = Prints(config.logs)
        self._step = step
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._log = structlog.get_logger()
        self._loads = Loads(config, groups, staging, self.prints, step)
        self._records = Records(config.role_dir("agent", node.name) / "workers")
        self._handles: dict[str, Handle] = {}
        self._by_pid: dict[int, Handle] = {}
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._clearing = Clearing(groups, staging, self._records)
        forking = Forking(
            config,
            node,
            rooms,
            groups,
            self._clearing,
            environments,
            self._forked,
            self._ended,
            self._status_known,
            spawn,
        )
        self.fork, self.zygotes = forking.fork, forking.zygotes

    async def close(self) -> None:
        """Kill what is left, and wait for the kernel to be done with it."""
        for handle in list(self._handles.values()):
            kill(handle)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await self._none_left.wait()
        await self.zygotes.close()
        await self._clearing.finish()
        if not await asyncio.to_thread(self._groups.sweep):
            self._log.warning("cgroup.left_behind")

    # fork and connect

    def _forked(self, worker: str, pid: int, pool: str, door: Doorway) -> None:
        try:
            pidfd = os.pidfd_open(pid)
            start_ticks = start_ticks_of(pid)
        except (OSError, OverflowError) as error:
            # Not reaped before the zygote hears that it ended, so the number is still its own.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            door.close()
            self._ended(worker, f"it can't be watched: {error}")
            return
        group = self._groups.of(worker)
        record = Record(
            worker,
            pid,
            start_ticks,
            door.path,
            cgroup=group[0] if group else "",
            cgroups_more=group[1:],
            environment=pool,
            tcp_address=door.tcp_address,
        )
        handle = self._watch(record, pidfd, door)
        handle.parent = self.zygotes.parent(pool)
        self._records.write(handle.record)
        self._spawn(self._connect_blank(handle))

    async def keep_doors(self) -> None:
        """Have sockets that are gone made again. Until cancelled."""
        while True:
            await asyncio.sleep(SOCKET_CHECK_S)
            for handle in list(self._handles.values()):
                if told := handle.door.restore():
                    self._log.warning("socket.restored", replica=handle.record.worker, message=told)

    async def _connect_blank(self, handle: Handle) -> None:
        # Moving a process into a cgroup takes the kernel milliseconds.
        await asyncio.to_thread(self._groups.admit, handle.record.groups, handle.record.pid)
        if handle.gone:
            self._clearing.do(partial(self._groups.end, handle.record.groups))
        try:  # its door is open before it is there itself: it is when it answers
            link = await connect(handle, self._step, CONNECT_TIMEOUT_S)
            await link.call(Ping(), Pong, CONNECT_TIMEOUT_S)
        except UnderstudyError:
            kill(handle)
            return
        self.prints.follow(handle.record.worker, handle.record.pid)
        self._step(ev.WorkerBlank(handle.record.worker, handle.record.pid, handle.record.address))

    # orders

    def load(self, effect: ev.LoadWorker) -> None:
        handle = self._handles.get(effect.worker)
        if handle is not None:
            self._spawn(self._loads.load(handle, effect, self._exited))

    def end_batching(self, worker: str, reason: str) -> None:
        handle = self._handles.get(worker)
        if handle is not None and handle.link is not None and not handle.link.closed:
            handle.link.send(BatchingEnded(reason))

    def probe(self, effect: ev.ProbeWorker) -> None:
        handle = self._handles.get(effect.worker)
        if handle is not None:
            asked, inference = asked_of(handle, self._step), effect.inference
            self._spawn(probing.probe(asked, self._step, self._tuning, inference=inference))

    def check(self, worker: str) -> None:
        handle = self._handles.get(worker)
        if handle is not None:
            timeout_s = self._tuning.probe_timeout_ms / 1000
            self._spawn(probing.check(asked_of(handle, self._step), self._step, timeout_s))

    def drain(self, effect: ev.DrainWorker) -> None:
        handle = self._handles.get(effect.worker)
        if handle is not None and handle.link is not None:
            # Its exit is the answer that counts, and the machine has a deadline for it.
            handle.link.send(Drain(effect.timeout_ms), handle.link.next_stream())

    def kill(self, worker: str) -> None:
        handle = self._handles.get(worker)
        if handle is not None:
            kill(handle)

    # exits

    def _watch(self, record: Record, pidfd: int, door: Doorway) -> Handle:
        handle = Handle(record, pidfd, door)
        self._handles[record.worker] = handle
        self._none_left.clear()
        self._by_pid[record.pid] = handle
        self._loop.add_reader(pidfd, self._gone, handle)
        return handle

    def _gone(self, handle: Handle) -> None:
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

    def _exited(self, handle: Handle) -> None:
        worker = handle.record.worker
        if self._handles.get(worker) is not handle:
            return  # the status came after all
        if handle.rehearsing:
            handle.unburied = True  # what was measured before is told first
            return
        out_of_memory = self._groups.exceeded(handle.record.groups)
        limit_mb = self._groups.limit_mb(handle.record.groups)
        printed = self.prints.end(worker)
        self._bury(handle)
        reason = _too_large(limit_mb) if out_of_memory else _why(handle.status)
        if printed:
            reason += f"; it printed last: {printed}"
        self._ended(worker, reason, out_of_memory=out_of_memory)

    def _ended(self, worker: str, reason: str, *, out_of_memory: bool = False) -> None:
        self._step(ev.WorkerExited(worker, reason, out_of_memory, jitter()))

    def _bury(self, handle: Handle) -> None:
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
        handle.door.close()
        self._clearing.clear(record)

    # adoption

    async def adopt(self) -> None:
        """Find the workers of a former life; those that make no sense are ended and cleared away."""
        records = self._records.read()
        async with asyncio.TaskGroup() as group:
            for record in records:
                group.create_task(self._adopt(record))
        known = {handle.record.socket for handle in self._handles.values()}
        known |= {progress_path(socket) for socket in known}
        ours = re.compile(rf"w-{re.escape(self._node.name)}-[0-9a-f]+-\d+\.(sock|progress)")
        for path in Path(self._config.run_dir).glob("w-*"):
            if ours.fullmatch(path.name) and str(path) not in known:
                path.unlink(missing_ok=True)
        spared = [path for record in records for path in record.groups]
        await asyncio.to_thread(self._groups.sweep, spared)

    async def _adopt(self, record: Record) -> None:
        try:
            pidfd = os.pidfd_open(record.pid)
        except (OSError, OverflowError):  # gone, or no process's number
            self._clearing.clear(record)
            return
        if start_ticks_of(record.pid) != record.start_ticks:
            os.close(pidfd)
            self._clearing.clear(record)
            return
        handle = self._watch(record, pidfd, Doorway.found(record.socket))
        try:
            link = await connect(handle, self._step, ADOPT_TIMEOUT_S)
            stats = await link.call(Stats(), WorkerStats, ADOPT_TIMEOUT_S)
        except UnderstudyError as error:
            self._log.warning("worker.not_adopted", worker=record.worker, pid=record.pid, reason=str(error))
            kill(handle)
            return
        self.prints.follow(record.worker, record.pid)
        self.prints.label(record.worker, stats.app, stats.version, stats.variant)
        self._step(
            ev.WorkerFound(
                record.worker,
                record.address,
                msgspec.structs.replace(stats, pid=record.pid),
                record.environment,
            )
        )
        if stats.batching_ended:
            self._step(ev.BatchingEndedAt(record.worker, stats.batching_ended))


def _too_large(limit_mb: float | None) -> str:
    limit = f" of {limit_mb:,.0f} MB" if limit_mb is not None else ""
    return f"killed for exceeding its memory limit{limit}; memory_limit_mb of the variant sets it"


def _why(status: int | None) -> str:
    if status is None:
        return "it ended"
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-status}"
