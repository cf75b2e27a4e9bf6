"""Unpacking what somebody uploaded: plain files at paths that are made here, and nothing else.

Whoever deploys writes the archive, so it isn't handed to a library's own extraction: that follows links, sets
what the archive says, and had flaws. An archive isn't compressed either, so that it can't hold more than its
bytes.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from itertools import takewhile
from pathlib import Path
from typing import IO

from understudy.adapters.disks import is_place_trouble
from understudy.wire.errors import Code, UnderstudyError, cut

FILES_MAX = 100_000  # and directories
DEPTH_MAX = 32
NAME_BYTES_MAX = 255  # of one part of a path, as file systems have it
HEADER_BYTES_MAX = 64 * 1024  # of one entry: names and attributes are read into memory
MESSAGE_CHARS_MAX = 500
CHUNK_BYTES = 1024 * 1024
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar file into `folder`, made anew.

    Raises LOAD_FAILED for anything but an archive of plain files, UNAVAILABLE where the disk is at fault.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with archive.open("rb") as content:
            headers = _Headers(content)
            with tarfile.open(fileobj=headers, mode="r:") as tar:  # type: ignore[call-overload]
                made = 0
                for number, member in enumerate(tar, 1):
                    made += _extract(member, content, folder)
                    if max(number, made) > FILES_MAX:
                        raise tarfile.TarError(f"it has more than {FILES_MAX} files and directories")
                    headers.next()
    except Exception as error:  # an archive is anybody's file, and the library raises what it meets
        shutil.rmtree(folder, ignore_errors=True)
        code = Code.UNAVAILABLE if is_place_trouble(error) else Code.LOAD_FAILED
        what = cut(str(error), MESSAGE_CHARS_MAX)  # it may quote a name, however long that is
        raise UnderstudyError(code, f"the artifact can't be unpacked: {what}") from error


def _extract(member: tarfile.TarInfo, content: IO[bytes], folder: Path) -> int:
    """How many files and directories were made."""
    path = folder.joinpath(*_steps(member.name))
    shown = repr(member.name)
    try:
        if member.type == tarfile.DIRTYPE:
            return _make_folders(path)
        if member.type not in PLAIN or member.issparse() or member.size < 0:
            raise tarfile.TarError(f"{shown} is no plain file")
        made = _make_folders(path.parent)
        mode = 0o755 if member.mode & 0o100 else 0o644
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise tarfile.TarError(f"{shown} is there twice") from error
    with os.fdopen(file, "wb") as target:
        _copy(content, member, target)
    return made + 1


def _make_folders(path: Path) -> int:
    """Have `path` be a directory; how many were made for that: an archive need not list them."""
    lacking = [*takewhile(lambda each: not each.is_dir(), (path, *path.parents))]
    for each in reversed(lacking):
        each.mkdir()
    return len(lacking)


def _steps(name: str) -> list[str]:
    """The parts of a relative path within the archive."""
    steps = name.removeprefix("./").rstrip("/").split("/")
    whole = all(0 < len(os.fsencode(step)) <= NAME_BYTES_MAX for step in steps) and "\0" not in name
    if steps in ([""], ["."]):
        return []
    if not whole or "." in steps or ".." in steps or len(steps) > DEPTH_MAX:
        raise tarfile.TarError(f"{name!r} is no path within the artifact")
    return steps


def _copy(content: IO[bytes], member: tarfile.TarInfo, target: IO[bytes]) -> None:
    content.seek(member.offset_data)
    left = member.size
    while left > 0:
        chunk = content.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise tarfile.TarError(f"{member.name!r} is cut off")
        target.write(chunk)
        left -= len(chunk)


class _Headers:
    """What of a file is read as the headers of one entry: those that say that they are larger are not."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.next()

    def next(self) -> None:
        self._left = HEADER_BYTES_MAX

    def read(self, size: int = -1) -> bytes:
        self._left -= size
        if size < 0 or self._left < 0:
            raise tarfile.TarError(f"an entry's headers have more than {HEADER_BYTES_MAX} bytes")
        return self._file.read(size)
