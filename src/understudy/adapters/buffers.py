"""Memory for large messages, used again as soon as nobody looks at it any more.

Fresh memory costs a page fault for every 4 KiB when it is first written: for an image of 600 KB more than
all the rest of passing it on.
"""

from __future__ import annotations

import mmap
from sys import getrefcount

KEPT_BYTES_MAX = 16 * 1024 * 1024  # for each process; what is needed beyond comes and goes
WASTE_MAX = 4  # a block may be so many times larger than what it is used for
FREE_REFERENCES = 3  # to a block in `_kept`: the list's, a local variable's and that of the call that counts


class Buffers:
    """Blocks of anonymous memory, whose pages are taken up only when they are written to first.

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
        try:
            block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"{size} bytes: {error}") from error
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


BUFFERS = Buffers()  # of this process; a child that is forked has it as it was, and its pages to itself
