"""What a worker is doing, written where it can be read without asking it.

A model that computes with the interpreter's lock in its hands silences every thread of its process. So a
worker keeps a few numbers in a small file that is mapped into its memory: writing them is one copy of
48 bytes, before and after each batch.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from time import monotonic
from typing import NamedTuple

# Batches begun and ended, rows; monotonic seconds: begin, longest time left to a request, newest success.
_LAYOUT = struct.Struct("<QQQddd")
_READS_MAX = 3


def progress_path(socket: str) -> str:
    """Where a worker that listens at `socket` writes its progress."""
    return socket.removesuffix(".sock") + ".progress"


class Progress(NamedTuple):
    """As of now, in seconds. `proven_ago_s` is None before the first success."""

    ended: int  # batches
    running_s: float | None  # for how long the present batch has been running; None: none is
    rows: int  # of that batch
    budget_s: float  # the longest time that one of its requests had left when it began
    proven_ago_s: float | None  # since an inference succeeded


def make_progress_file(path: str) -> int:
    """A descriptor of it, with room for the numbers. Where it can't be had, of one that nobody can read.

    A worker without it is judged by its answers.
    """
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Now, while a full disk is an error: later it would be a signal.
            os.write(file, bytes(_LAYOUT.size))
        except OSError:
            os.close(file)
            raise
        return file
    file = os.memfd_create("understudy-progress", os.MFD_CLOEXEC)
    os.ftruncate(file, _LAYOUT.size)
    return file


def _mapped(file: int) -> memoryview:
    """The file as memory, for as long as the process lives. Raises OSError.

    Not by `mmap`: that keeps a descriptor of it, by which a model could make it any size.
    """
    if os.fstat(file).st_size < _LAYOUT.size:
        raise OSError("it is too short")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    flags = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc.mmap(None, _LAYOUT.size, flags, mmap.MAP_SHARED, file, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return memoryview((ctypes.c_char * _LAYOUT.size).from_address(address)).cast("B")


class ProgressWriter:
    """The worker's side. Until it has a file, nobody reads it."""

    __slots__ = ("_page", "_values")

    def __init__(self) -> None:
        self._values: tuple[int, int, int, float, float, float] = (0, 0, 0, 0.0, 0.0, 0.0)
        self._page: memoryview | bytearray = bytearray(_LAYOUT.size)

    def write_to(self, file: int) -> None:
        """From now on, to a file of `make_progress_file`, which is closed here."""
        try:
            page = _mapped(file)
        except OSError:  # it was cut meanwhile
            return
        finally:
            os.close(file)
        page[:] = bytes(self._page)
        self._page = page

    def begin(self, rows: int, now: float, budget_s: float) -> None:
        begun, ended, _, _, _, proven_s = self._values
        self._write((begun + 1, ended, rows, now, budget_s, proven_s))

    def end(self, proven: bool) -> None:
        """`proven`: an inference succeeded."""
        begun, _, rows, began_s, budget_s, proven_s = self._values
        self._write((begun, begun, rows, began_s, budget_s, monotonic() if proven else proven_s))

    def _write(self, values: tuple[int, int, int, float, float, float]) -> None:
        self._values = values
        _LAYOUT.pack_into(self._page, 0, *values)


def read_progress(path: str) -> Progress | None:
    """None if there is nothing to read."""
    try:
        with open(path, "rb", buffering=0, opener=_plainly) as file:
            data = os.pread(file.fileno(), _LAYOUT.size, 0)
            for _ in range(_READS_MAX):  # it may have been written meanwhile
                again = os.pread(file.fileno(), _LAYOUT.size, 0)
                if again == data:
                    break
                data = again
        begun, ended, rows, began_s, budget_s, proven_s = _LAYOUT.unpack(data)
    except (OSError, struct.error):
        return None
    now = monotonic()
    return Progress(
        ended,
        now - began_s if begun != ended else None,
        rows,
        budget_s,
        now - proven_s if proven_s else None,
    )


def _plainly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
