"""Artifacts by content: the cluster's store as a directory, and a node's local copies of it.

A name is the SHA-256 of the content, so nothing is ever overwritten and every reader can check what it
got. A file appears under its name only when it is complete. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from understudy.adapters.disks import DiskRoom, is_place_trouble
from understudy.settings.places import DiskSettings
from understudy.wire.errors import Code, InvalidArgument, UnderstudyError
from understudy.wire.records import ArtifactRef

CHUNK_BYTES = 1024 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PARTIAL = ".partial-"  # prefix of files that are still being written


def check_digest(digest: str) -> str:
    """`digest` if it is one. Raises `InvalidArgument`: digests become file names."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidArgument(f"{digest[:80]!r} is no digest: 64 lower-case hexadecimal digits are needed")
    return digest


def digest_of(file: BufferedReader) -> str:
    """SHA-256 of the rest of `file`. Releases the interpreter's lock while it computes."""
    return hashlib.file_digest(file, "sha256").hexdigest()


class Upload:
    """One file on its way into a store. Leaving the context without `commit` discards it."""

    def __init__(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=_PARTIAL, dir=target.parent)
        self._file = os.fdopen(descriptor, "wb")
        self._partial = Path(name)
        self._target = target
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def write(self, chunk: bytes | memoryview) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size_bytes += len(chunk)

    def commit(self, *, durable: bool = True) -> None:
        """Publish the file under its name. Raises ARTIFACT_CORRUPT if the content isn't what it should be."""
        found = self._hash.hexdigest()
        if found != self._target.name:
            raise UnderstudyError(
                Code.ARTIFACT_CORRUPT, "content and digest differ", wanted=self._target.name, found=found
            )
        self._file.flush()
        if durable:
            os.fsync(self._file.fileno())
        self._partial.rename(self._target)
        if durable:
            _sync_directory(self._target.parent)


class Collected(NamedTuple):
    files: int
    bytes: int


class DirectoryStore:
    """Artifacts as files of a directory that all nodes see: `<digest[:2]>/<digest>`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, digest: str) -> Path:
        return self._root / check_digest(digest)[:2] / digest

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def upload(self, digest: str) -> Upload:
        """To be written piece by piece and committed."""
        return Upload(self.path(digest))

    def put(self, digest: str, source: BinaryIO) -> None:
        """Store all of `source`, or nothing: raises ARTIFACT_CORRUPT if it hashes to something else."""
        with self.upload(digest) as upload:
            for chunk in _chunks(source):
                upload.write(chunk)
            upload.commit()

    def open(self, digest: str) -> BufferedReader:
        """Raises ARTIFACT_MISSING; the content is not verified."""
        try:
            return self.path(digest).open("rb")
        except OSError as error:
            raise UnderstudyError(
                Code.ARTIFACT_MISSING, f"the artifact store lacks it: {error.strerror}", digest=digest
            ) from error

    def touch(self, digest: str) -> None:
        """Somebody counts on it: `collect` takes it for new. Nothing happens if it isn't there."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path(digest))

    def size_bytes(self) -> int:
        """Of all that is stored."""
        return sum(status.st_size for _, status in self._files())

    def free_bytes(self) -> int:
        """Of the disk."""
        return DiskRoom.of(self._root).free_bytes

    def collect(self, needed: Collection[str], oldest_s: float) -> Collected:
        """Delete what is neither in `needed` nor newer than `oldest_s` (Unix seconds), partial files too."""
        files = size_bytes = 0
        for path, status in self._files():
            if path.name not in needed and status.st_mtime <= oldest_s:
                path.unlink(missing_ok=True)
                files, size_bytes = files + 1, size_bytes + status.st_size
        return Collected(files, size_bytes)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Artifacts, and files that are being written or never were to their end. None of anybody else's."""
        for path in self._root.glob("[0-9a-f][0-9a-f]/*"):
            if _DIGEST.fullmatch(path.name) or path.name.startswith(_PARTIAL):
                with contextlib.suppress(FileNotFoundError):
                    yield path, path.stat()

    def verify(self, digest: str) -> None:
        """Raises ARTIFACT_MISSING or ARTIFACT_CORRUPT unless it is there and whole."""
        with self.open(digest) as file:
            _check_content(file, digest)


class LocalArtifacts:
    """A node's own copies, `<root>/<digest>`, bounded by `bytes_max` and by what the disk has free.

    Copies that nobody wants go when there is need of room, the one that was used longest ago first.

    A copy is checked while it is made, and again before a use unless nothing has touched it since the last
    check in this process: hashing 100 MB takes longer than loading them. It needs no fsync: a torn one is
    found by the next process and fetched again.
    """

    def __init__(
        self, root: Path, store: DirectoryStore, bytes_max: int, disk: DiskSettings | None = None
    ) -> None:
        self._root = root
        self._store = store
        self._bytes_max = bytes_max
        self._disk = disk or DiskSettings()
        self._used_s: dict[str, float] = {}  # digest -> newest use by this process, as a file's times are
        self._checked: dict[str, tuple[int, ...]] = {}  # digest -> mark of the copy that was found whole
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(f"{_PARTIAL}*"):
            leftover.unlink()

    def digests(self) -> list[str]:
        """Copies that are here; each is verified before it is used."""
        return sorted(path.name for path in self._root.iterdir() if _DIGEST.fullmatch(path.name))

    def path(self, digest: str) -> Path:
        return self._root / check_digest(digest)

    def read(self, digest: str, offset: int, size_bytes: int) -> bytes:
        """A part of a copy, not verified. Raises ARTIFACT_MISSING."""
        try:
            with self.path(digest).open("rb") as file:
                file.seek(max(offset, 0))
                return file.read(size_bytes)
        except OSError as error:
            raise UnderstudyError(
                Code.ARTIFACT_MISSING, f"not staged: {error.strerror}", digest=digest
            ) from error

    def verify(self, digest: str) -> Path:
        """The copy's path. Raises ARTIFACT_MISSING or ARTIFACT_CORRUPT; a corrupt copy is deleted."""
        path = self.path(digest)
        try:
            with path.open("rb") as file:
                mark = _mark(file)
                if self._checked.get(digest) != mark:
                    _check_content(file, digest)
                    self._checked[digest] = mark
                self._used_s[digest] = time.time()
        except OSError as error:
            raise UnderstudyError(
                Code.ARTIFACT_MISSING, f"not staged: {error.strerror}", digest=digest
            ) from error
        except UnderstudyError:
            path.unlink(missing_ok=True)
            raise
        return path

    def lend(self, digest: str, target: Path, *, to_others: bool) -> None:
        """Have a copy that was verified appear at `target` too, for other users to read if `to_others`.

        Raises OSError.
        """
        path = self.path(digest)
        with self._unchanged(digest):
            if to_others:
                path.chmod(0o644)
            target.unlink(missing_ok=True)
            try:
                os.link(path, target)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                    raise
                shutil.copyfile(path, target)  # a file system that has no links

    def take_back(self, digest: str, target: Path) -> None:
        with self._unchanged(digest), contextlib.suppress(OSError):
            target.unlink()

    @contextlib.contextmanager
    def _unchanged(self, digest: str) -> Iterator[None]:
        """What is done meanwhile alters the file's mark, but not its content."""
        before = self._mark_of(digest)
        yield
        if before is not None and self._checked.get(digest) == before:
            after = self._mark_of(digest)
            if after is not None:
                self._checked[digest] = after

    def _mark_of(self, digest: str) -> tuple[int, ...] | None:
        try:
            with self.path(digest).open("rb") as file:
                return _mark(file)
        except OSError:
            return None

    def stage(self, ref: ArtifactRef, keep: Collection[str]) -> list[str]:
        """Copy `ref` from the store, verified; the digests evicted to make room.

        Raises ARTIFACT_MISSING, ARTIFACT_CORRUPT (the store's own copy is bad), TOO_LARGE when it doesn't
        fit beside what must be kept, or UNAVAILABLE when the disk is full of that.
        """
        try:
            evicted = self._keep_quota(ref, keep)
            evicted += self.make_room(ref.size_bytes, keep)
            self._copy(ref)
        except OSError as error:
            code = Code.UNAVAILABLE if is_place_trouble(error) else Code.ARTIFACT_MISSING
            raise UnderstudyError(code, f"can't be staged: {error.strerror}", digest=ref.digest) from error
        self.warm(ref.digest)
        return evicted

    def _copy(self, ref: ArtifactRef) -> None:
        with self._store.open(ref.digest) as source, Upload(self.path(ref.digest)) as copy:
            for chunk in _chunks(source):
                copy.write(chunk)
            copy.commit(durable=False)
        with self.path(ref.digest).open("rb") as file:
            self._checked[ref.digest] = _mark(file)
        self._used_s[ref.digest] = time.time()

    def warm(self, digest: str) -> None:
        """Ask the kernel to hold the copy in its page cache: a failover must not wait for the disk."""
        with contextlib.suppress(OSError), self.path(digest).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def make_room(self, bytes_more: int, keep: Collection[str]) -> list[str]:
        """Evict what isn't in `keep` until the disk has `bytes_more` free, and isn't filling beside them.

        The digests evicted; they may not suffice.
        """
        evicted: list[str] = []
        for digest in self._oldest_first():
            if not self.lacks_room(bytes_more):
                break
            if digest not in keep:
                self._evict(digest)
                evicted.append(digest)
        return evicted

    def lacks_room(self, bytes_more: int) -> bool:
        """Whether the disk would be filling with `bytes_more` on it. Raises `OSError`."""
        return DiskRoom.of(self._root).lacks_bytes(self._disk, bytes_more) > 0

    def _keep_quota(self, ref: ArtifactRef, keep: Collection[str]) -> list[str]:
        sizes_bytes = {digest: self.path(digest).stat().st_size for digest in self.digests()}
        evicted: list[str] = []
        for digest in self._oldest_first():
            if sum(sizes_bytes.values()) + ref.size_bytes <= self._bytes_max:
                return evicted
            if digest not in keep:
                self._evict(digest)
                del sizes_bytes[digest]
                evicted.append(digest)
        if sum(sizes_bytes.values()) + ref.size_bytes > self._bytes_max:
            raise UnderstudyError(
                Code.TOO_LARGE,
                "no room for the artifact; raise agent.stage_bytes_max",
                size_bytes=ref.size_bytes,
                stage_bytes_max=self._bytes_max,
            )
        return evicted

    def _oldest_first(self) -> list[str]:
        def used_s(digest: str) -> float:
            return self._used_s.get(digest) or self.path(digest).stat().st_atime

        return sorted(self.digests(), key=used_s)

    def _evict(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)
        self._checked.pop(digest, None)
        self._used_s.pop(digest, None)


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def _mark(file: BufferedReader) -> tuple[int, ...]:
    """Another one whenever the file was written to or replaced; nobody can set the last number."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _check_content(file: BufferedReader, digest: str) -> None:
    found = digest_of(file)
    if found != digest:
        raise UnderstudyError(Code.ARTIFACT_CORRUPT, "content and digest differ", wanted=digest, found=found)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
