"""Disks as they are: how much is free, whether one is filling, and which errors are theirs. Blocks."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from understudy.settings.places import DiskSettings

MIB = 1024 * 1024
FULL_BYTES = 64 * 1024  # less can't hold what a process writes of itself

# What the place lacks or breaks, whatever was to be written or read there.
_PLACE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENFILE, errno.EMFILE, errno.ENOMEM}
)


def is_place_trouble(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is the fault of the place where it happened."""
    seen = 0
    while error is not None and seen < 16:
        if isinstance(error, OSError) and error.errno in _PLACE_ERRORS:
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


@dataclass(frozen=True, slots=True)
class DiskRoom:
    """Of the disk that holds `path`, or is to."""

    path: str
    size_bytes: int
    free_bytes: int

    @classmethod
    def of(cls, path: Path) -> DiskRoom:
        """Raises `OSError`."""
        there = next((folder for folder in (path, *path.parents) if folder.exists()), path)
        found = os.statvfs(there)
        return cls(str(path), found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    def lacks_bytes(self, settings: DiskSettings, bytes_more: int = 0) -> int:
        """How much more should be free, for it not to be filling when `bytes_more` are written."""
        wanted_bytes = bytes_more + min(settings.free_fraction * self.size_bytes, settings.free_mb * MIB)
        return max(int(wanted_bytes) - self.free_bytes, 0)

    @property
    def full(self) -> bool:
        return self.free_bytes < FULL_BYTES

    def __str__(self) -> str:
        state = "full" if self.full else "filling"
        free, size = self.free_bytes / MIB, self.size_bytes / MIB
        return f"the disk of {self.path} is {state}: {free:.0f} of {size:.0f} MB free"


class DiskWatch:
    """The disk of a directory across time. `problem` is empty while it is well."""

    def __init__(self, path: Path, settings: DiskSettings) -> None:
        self.path = path
        self.problem = ""
        self.trouble = ""  # the same, where nothing can be written any more
        self._settings = settings

    def look(self) -> tuple[str, str] | None:
        """(event, message) when it began to fill or is well again."""
        try:
            room = DiskRoom.of(self.path)
        except OSError as error:
            self.trouble = problem = f"the disk of {self.path} can't be read: {error.strerror}"
        else:
            self.trouble = str(room) if room.full else ""
            problem = str(room) if room.lacks_bytes(self._settings) else ""
        before, self.problem = self.problem, problem
        if bool(before) == bool(problem):
            return None
        return ("disk.filling", problem) if problem else ("disk.cleared", f"the disk of {self.path} has room")
