"""Memory for large messages, used again as soon as nobody looks at it any more.

Fresh memory costs a page fault for every 4 KiB when it is first written: for an image of 600 KB more than
all the rest of passing it on.
"""

from __future__ import annotations

import mmap
from sys import getrefcount

from understudy.wire.frames import LARGE_BYTES, Buffer

KEPT_BYTES_MAX = 16 * 1024 * 1024  # for each process; what is needed beyond comes and goes
WASTE_MAX = 4  # a block may be so many times larger than what it is used for
FREE_REFERENCES = 3  # to a block in `_kept`: the list's, a local variable's and that of the call that counts


class Buffers:
    """Blocks of memory for bodies of known size.

    A block is free when nothing refers to it but this object: a memoryview of it, or an array on top of one,
    is a reference. So nobody has to give anything back.
    """

    def __init__(self) -> None:
        self._kept: list[mmap.mmap] = []

    def take(self, size: int) -> memoryview:
        """`size` writable bytes with any content. Raises MemoryError."""
        for block in self._kept:
            if size <= len(block) <= WASTE_MAX * size and getrefcount(block) == FREE_REFERENCES:
                return memoryview(block)[:size]
        block = _anonymous(size)
        self._keep(block)
        return memoryview(block)[:size]

    def _keep(self, block: mmap.mmap) -> None:
        """For later, in place of free ones. Where all are in use, what is beyond the bound comes and goes."""
        room = KEPT_BYTES_MAX - sum(map(len, self._kept))
        index = 0
        while room < len(block) and index < len(self._kept):
            old = self._kept[index]
            if getrefcount(old) == FREE_REFERENCES:
                room += len(old)
                del self._kept[index]
            else:
                index += 1
        if len(block) <= room:
            self._kept.append(block)


class Gathered:
    """One body of what comes in pieces. A large one grows in place: nothing is ever copied but a piece."""

    __slots__ = ("_block", "_parts", "size")

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[bytes] = []
        self._block: mmap.mmap | None = None

    def add(self, piece: bytes) -> None:
        """Raises MemoryError."""
        at = self.size
        self.size += len(piece)
        if self._block is None:
            self._parts.append(piece)
            if self.size >= LARGE_BYTES:
                self._block = _anonymous(2 * self.size)
                self._block[: self.size] = b"".join(self._parts)
                self._parts = []
            return
        while self.size > len(self._block):
            try:
                self._block.resize(2 * len(self._block))  # pages move, not their content
            except OSError as error:
                raise MemoryError(f"{2 * len(self._block)} bytes: {error}") from error
        self._block[at : self.size] = piece

    def whole(self) -> Buffer:
        """All of it. To be called once, at the end."""
        if self._block is None:
            return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return memoryview(self._block)[: self.size]


def _anonymous(size: int) -> mmap.mmap:
    """Memory whose pages are taken up only when they are written to first. Raises MemoryError."""
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size} bytes: {error}") from error


BUFFERS = Buffers()  # of this process; a child that is forked has it as it was, and its pages to itself
