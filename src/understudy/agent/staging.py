"""Artifacts on the node's disk: copied ahead, verified before they are loaded, fetched again when damaged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from weakref import WeakValueDictionary

from understudy.adapters.archives import unpack
from understudy.adapters.artifacts import LocalArtifacts
from understudy.adapters.disks import is_place_trouble
from understudy.agent.rooms import Rooms
from understudy.core.agent.events import ArtifactDropped, ArtifactStaged, Event
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import ARTIFACT_PART_BYTES, ArtifactPart, ReadArtifact
from understudy.wire.records import ArtifactRef

AnswerPart = Callable[[ArtifactPart | UnderstudyError], None]
RETRY_S = 1.0  # an artifact that couldn't be had is looked for again after this, then twice as long, …
RETRY_S_MAX = 60.0
UNPACKED = "model"  # what is packed, in a replica's folder


class Staging:
    """Drives `LocalArtifacts` in threads and tells the machine what is here.

    `tell` takes (kind, message) of an event for the log. `spare` lets one thing go, other than a copy, that
    takes room on the disk; False: there is none left.
    """

    def __init__(
        self,
        artifacts: LocalArtifacts,
        rooms: Rooms,
        step: Callable[[Event], None],
        tell: Callable[[str, str], None],
        spare: Callable[[], Awaitable[bool]],
    ) -> None:
        self._artifacts = artifacts
        self._rooms = rooms
        self._step = step
        self._tell = tell
        self._spare = spare
        self._wanted: tuple[ArtifactRef, ...] = ()
        self._keep: frozenset[str] = frozenset()
        self._changed = asyncio.Event()
        self._staged: set[str] = set()
        self._complained: set[str] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # only of what is staged
        self._lent: dict[str, tuple[str, Path]] = {}  # replica -> digest, and where it lies for it
        self._held: dict[str, str] = {}  # replica -> digest that it is being loaded from

    def find(self) -> list[str]:
        """Digests that survived from a former life."""
        found = self._artifacts.digests()
        self._staged.update(found)
        return found

    def want(self, artifacts: tuple[ArtifactRef, ...], keep: frozenset[str]) -> None:
        self._wanted, self._keep = artifacts, keep
        self._complained &= {ref.digest for ref in artifacts}
        self._changed.set()

    async def run(self) -> None:
        """Stage what is wanted, in order, and try again what couldn't be had. Ends when cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._check_found())
            await self._stage_wanted()

    async def _check_found(self) -> None:
        """Read the copies of a former life: a failover finds them checked, and in the page cache."""
        for digest in sorted(self._staged):
            try:
                await asyncio.to_thread(self._artifacts.verify, digest)
            except UnderstudyError as error:
                self._forget(digest)
                self._changed.set()
                self._tell("artifact.corrupted", f"{digest[:12]}: {error}")

    async def _stage_wanted(self) -> None:
        retry_s = RETRY_S
        while True:
            if self._changed.is_set():
                retry_s = RETRY_S
            self._changed.clear()
            missing = False
            for ref in self._wanted:
                if ref.digest not in self._staged:
                    missing |= not await self._try_stage(ref)
            try:
                async with asyncio.timeout(retry_s if missing else None):
                    await self._changed.wait()
            except TimeoutError:
                retry_s = min(retry_s * 2, RETRY_S_MAX)

    async def provide(self, ref: ArtifactRef, replica: str) -> Path:
        """A verified copy of `ref` in the replica's folder: its file, or a directory if it was packed.

        The node's own copy is kept until `let_go`. Raises ARTIFACT_CORRUPT when the store's copy is damaged
        too, ARTIFACT_MISSING, TOO_LARGE, UNAVAILABLE for a full disk, or LOAD_FAILED.
        """
        self._held[replica] = ref.digest
        try:
            path = await asyncio.to_thread(self._artifacts.verify, ref.digest)
        except UnderstudyError as error:
            self._forget(ref.digest)
            if error.code is Code.ARTIFACT_CORRUPT:
                self._tell(
                    "artifact.corrupted", f"{ref.file_name}: the local copy is damaged; fetching it again"
                )
            await self._stage(ref)
            path = self._artifacts.path(ref.digest)
        try:
            return await self._lay_out(ref, path, self._rooms.folder(replica))
        except OSError as error:
            code = Code.UNAVAILABLE if is_place_trouble(error) else Code.LOAD_FAILED
            raise UnderstudyError(code, f"{ref.file_name} can't be laid out: {error}") from error

    async def _lay_out(self, ref: ArtifactRef, path: Path, folder: Path) -> Path:
        if ref.format != "tar":
            target = folder / (Path(ref.file_name).name or ref.digest)
            await asyncio.to_thread(
                self._artifacts.lend, ref.digest, target, to_others=self._rooms.for_other_users
            )
            self._lent[folder.name] = (ref.digest, target)
            return target
        await self.make_room(ref.size_bytes)
        target = folder / UNPACKED
        await asyncio.to_thread(unpack, path, target)
        await asyncio.to_thread(self._rooms.open_up, target)
        return target

    def clear_all(self) -> None:
        self._rooms.clear_all()

    def clear(self, replica: str) -> None:
        """Nobody uses its folder any more."""
        if replica in self._lent:
            self._artifacts.take_back(*self._lent.pop(replica))
        self._rooms.clear(replica)

    async def make_room(self, bytes_more: int = 0) -> None:
        """Let go of what nobody wants, if the disk needs that: copies, then what else there is to `spare`.

        Raises nothing: writing will tell.
        """
        with contextlib.suppress(OSError):
            for digest in await asyncio.to_thread(self._artifacts.make_room, bytes_more, self._kept):
                self._forget(digest)
            while await asyncio.to_thread(self._artifacts.lacks_room, bytes_more):
                if not await self._spare():
                    break

    def let_go(self, replica: str) -> None:
        """It is loaded, or never will be."""
        self._held.pop(replica, None)

    @property
    def _kept(self) -> frozenset[str]:
        return self._keep.union(self._held.values())

    async def read(self, asked: ReadArtifact, answer: AnswerPart) -> None:
        """Part of a copy, for a controller whose store lost the artifact; it checks the whole."""
        try:
            part = await asyncio.to_thread(
                self._artifacts.read, asked.digest, asked.offset, ARTIFACT_PART_BYTES
            )
        except UnderstudyError as error:
            answer(error)
        else:
            answer(ArtifactPart(part))

    async def _try_stage(self, ref: ArtifactRef) -> bool:
        try:
            await self._stage(ref)
        except UnderstudyError as error:
            if ref.digest not in self._complained:
                self._complained.add(ref.digest)
                self._tell("artifact.refused", f"{ref.file_name}: {error}")
            return False
        self._complained.discard(ref.digest)
        return True

    async def _stage(self, ref: ArtifactRef) -> None:
        lock = self._locks.setdefault(ref.digest, asyncio.Lock())
        async with lock:
            if ref.digest in self._staged:
                return
            await self.make_room(ref.size_bytes)
            evicted = await asyncio.to_thread(self._artifacts.stage, ref, self._kept | {ref.digest})
            for digest in evicted:
                self._forget(digest)
            self._staged.add(ref.digest)
            self._step(ArtifactStaged(ref.digest))

    def _forget(self, digest: str) -> None:
        if digest in self._staged:
            self._staged.discard(digest)
            self._step(ArtifactDropped(digest))
