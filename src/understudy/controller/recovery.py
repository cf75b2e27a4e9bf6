"""Artifacts that the store lost are copied back from a node that has staged them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from understudy.adapters.artifacts import DirectoryStore
from understudy.core.controller import events as ev
from understudy.core.controller.machine import ControllerMachine
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import ArtifactPart, ReadArtifact
from understudy.wire.records import ArtifactRef

INFORMED_POLL_S = 0.02
OnNode = Callable[[str, ReadArtifact], Awaitable[ArtifactPart]]


async def informed(machine: ControllerMachine) -> None:
    """Return when who may know more than we was heard, or had its time: `start_grace_ms`, and a tick."""
    while not machine.hearing.over:  # noqa: ASYNC110 - a tick may end it, as any message may
        await asyncio.sleep(INFORMED_POLL_S)


class Recovery:
    """`on_node` asks an agent."""

    def __init__(
        self,
        machine: ControllerMachine,
        artifacts: DirectoryStore,
        on_node: OnNode,
        note: Callable[[ev.Note], None],
        check_s: float,
    ) -> None:
        self._machine = machine
        self._artifacts = artifacts
        self._on_node = on_node
        self._note = note
        self._check_s = check_s
        self.missing: dict[str, str] = {}  # digest -> what it is, for a person

    async def run(self) -> None:
        """Look every `check_s` seconds, until cancelled."""
        await informed(self._machine)
        while True:
            await self.check()
            await asyncio.sleep(self._check_s)

    async def check(self) -> None:
        """Copy back what is missing. What nobody has is in `missing` afterwards."""
        apps = self._machine.apps.values()
        wanted = {v.artifact.digest: (v.artifact, app.app) for app in apps for v in app.variants}
        refs = [ref for ref, _ in wanted.values()]
        lost = await asyncio.to_thread(lambda: [ref.digest for ref in refs if not self._is_there(ref)])
        self.missing = {digest: name for digest, name in self.missing.items() if digest in lost}
        for digest in lost:
            ref, app = wanted[digest]
            await self._copy_back(ref, app)

    def _is_there(self, ref: ArtifactRef) -> bool:
        try:
            return self._artifacts.path(ref.digest).stat().st_size == ref.size_bytes
        except OSError:
            return False

    async def _copy_back(self, ref: ArtifactRef, app: str) -> None:
        reasons = []
        for node in self._holders(ref.digest):
            try:
                await self._copy(node, ref)
            except (UnderstudyError, OSError) as error:
                reasons.append(f"{node}: {error}")
                continue
            self.missing.pop(ref.digest, None)
            self._note(
                ev.Note("artifact.recovered", f"{ref.file_name} is back from {node}", app=app, node=node)
            )
            return
        if ref.digest not in self.missing:
            why = "; ".join(reasons) or "no node has a copy"
            message = f"{ref.file_name} is gone from the artifact store, and can't be had back: {why}"
            self.missing[ref.digest] = f"{app}: {message}"
            self._note(ev.Note("artifact.lost", message, app=app))

    def _holders(self, digest: str) -> list[str]:
        nodes = [node for node in self._machine.nodes.by_name.values() if node.connected]
        return [n.info.name for n in nodes if n.observed is not None and digest in n.observed.staged]

    async def _copy(self, node: str, ref: ArtifactRef) -> None:
        with await asyncio.to_thread(self._artifacts.upload, ref.digest) as upload:
            while upload.size_bytes < ref.size_bytes:
                part = await self._on_node(node, ReadArtifact(ref.digest, upload.size_bytes))
                if not part.content or len(part.content) > ref.size_bytes - upload.size_bytes:
                    raise UnderstudyError(Code.ARTIFACT_CORRUPT, "the copy has another size", node=node)
                await asyncio.to_thread(upload.write, part.content)
            await asyncio.to_thread(upload.commit)
