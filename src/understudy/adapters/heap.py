"""The C library's heap, told that large blocks come and go."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES = 8 * 1024 * 1024


def keep_freed_memory() -> None:
    """Keep up to 8 MB of freed memory instead of giving each block back at once.

    Otherwise every read of a large body grows the heap, faults its pages in and shrinks it again, which costs
    several times as much as the read. Where the C library isn't glibc, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
