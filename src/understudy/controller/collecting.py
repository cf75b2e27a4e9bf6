"""Keeping the artifact store small: what no version needs goes after a while, and unfinished uploads.

An artifact may precede the deployment that needs it, so it goes only when nothing has referred to it for
`artifact_grace_s`, and nobody has asked for it or put it since then. A controller that knows less than its
nodes do deletes nothing: what it doesn't know may be wanted all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from understudy.adapters.artifacts import DirectoryStore
from understudy.adapters.disks import DiskWatch
from understudy.controller.deployments import Deployments
from understudy.controller.recovery import OnNode, Recovery
from understudy.core.controller.events import Note
from understudy.core.controller.machine import ControllerMachine
from understudy.settings.cluster import ClusterConfig

log = structlog.get_logger()


class Collector:
    """Also watches the disks of the store and of the artifacts; `problems` are for the status."""

    def __init__(
        self,
        config: ClusterConfig,
        machine: ControllerMachine,
        deployments: Deployments,
        artifacts: DirectoryStore,
        note: Callable[[Note], None],
        on_node: OnNode,
    ) -> None:
        self._config = config
        self._machine = machine
        self._deployments = deployments
        self._artifacts = artifacts
        self._note = note
        self._recovery = Recovery(machine, artifacts, on_node, note, config.controller.artifacts_check_s)
        self._needed_s: dict[str, float] = {}  # digest -> when it was needed last, in Unix seconds
        paths = dict.fromkeys([Path(config.data_dir), Path(config.artifacts_dir)])
        self._disks = [DiskWatch(path, config.disk) for path in paths]

    @property
    def problems(self) -> list[str]:
        """Of the disks, and what can't be had back."""
        disks = dict.fromkeys(disk.problem for disk in self._disks if disk.problem)
        return [*disks, *self._recovery.missing.values()]

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._recovery.run())
            tasks.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            await self._watch()
            if loop.time() >= due_s:
                due_s = loop.time() + self._config.controller.collect_interval_s
                await self._collect()
            await asyncio.sleep(min(self._config.disk.check_interval_s, max(due_s - loop.time(), 0.1)))

    async def _watch(self) -> None:
        for disk in self._disks:
            change = await asyncio.to_thread(disk.look)
            if change is not None:
                self._note(Note(*change))

    async def _collect(self) -> None:
        now_s = time.time()
        for digest in self._needed():
            self._needed_s[digest] = now_s
        if not self._knows_all:
            return
        oldest_s = now_s - self._config.controller.artifact_grace_s
        needed = {digest for digest, at_s in self._needed_s.items() if at_s > oldest_s}
        try:
            gone = await asyncio.to_thread(self._artifacts.collect, needed, oldest_s)
        except OSError as error:
            log.warning("artifacts.not_collected", reason=str(error))
            return
        self._needed_s = {digest: self._needed_s[digest] for digest in needed}
        if gone.files:
            message = f"{gone.files} files that no version needs any more, {gone.bytes / 1e6:.1f} MB"
            self._note(Note("artifacts.collected", message))

    def _needed(self) -> set[str]:
        apps = [release.app for release in self._machine.catalog.releases.values()]
        variants = [
            variant for app in (*apps, *self._deployments.coming.values()) for variant in app.variants
        ]
        return {ref.digest for v in variants for ref in v.artifacts}

    @property
    def _knows_all(self) -> bool:
        """False for a controller whose store was lost or is damaged, until it knows what its peers know."""
        if self._machine.unreadable or not self._machine.hearing.over:
            return False
        known = self._machine.catalog.currents
        observed = [node.observed for node in self._machine.nodes.by_name.values() if node.observed]
        return bool(known) and all(replica.app in known for state in observed for replica in state.replicas)
