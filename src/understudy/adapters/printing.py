"""What a worker's process prints, models and their libraries included: kept in memory, never in its way.

Descriptors 1 and 2 of a worker are a file in memory. Writing there neither blocks nor fails, with or without
an agent that reads, and whatever the state of the disk. The agent reads it through /proc, so that it can go
on with workers that it found. Both empty the file when it has grown.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
from io import TextIOWrapper

NAME = "understudy-output"
_LINK = f"/memfd:{NAME}"
CHECK_S = 1.0
CHUNK_BYTES = 64 * 1024  # read at once; of more than that the newest
KEPT_BYTES = 256 * 1024  # a file beyond it is emptied once it was read


def capture() -> None:
    """Send what this process prints to memory, its log too."""
    output = os.memfd_create(NAME)
    fcntl.fcntl(output, fcntl.F_SETFL, os.O_RDWR | os.O_APPEND)  # so that it can be emptied under the writer
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


async def keep_small(bytes_max: int) -> None:
    """Empty what this process printed when nobody reads it, until cancelled."""
    while _is_output("/proc/self/fd/1"):
        if os.fstat(1).st_size > bytes_max:
            os.ftruncate(1, 0)
        await asyncio.sleep(CHECK_S)


class Printed:
    """What a process of this machine prints, read from outside."""

    def __init__(self, pid: int) -> None:
        """Raises `OSError` when it can't be read, or isn't captured (any more)."""
        path = f"/proc/{pid}/fd/1"
        if not _is_output(path):
            raise FileNotFoundError(f"{path} is not what a worker prints to")
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if not _is_output(f"/proc/self/fd/{self._file}"):
            os.close(self._file)
            raise FileNotFoundError(f"{path} is not what a worker prints to")
        self._offset = 0

    def read(self) -> tuple[bytes, int]:
        """What is new, and how many bytes before it are lost."""
        size = os.fstat(self._file).st_size
        start = self._offset if self._offset <= size else 0  # the worker emptied it
        lost = max(size - start - CHUNK_BYTES, 0)
        data = os.pread(self._file, size - start - lost, start + lost)
        self._offset = size
        if size > KEPT_BYTES:
            with contextlib.suppress(OSError):  # it is the worker's file, whatever that made of it
                os.ftruncate(self._file, 0)
                self._offset = 0
        return data, lost

    def close(self) -> None:
        os.close(self._file)


def _is_output(path: str) -> bool:
    try:
        return os.readlink(path).startswith(_LINK)
    except OSError:
        return False
