"""Processes that other people's code started: none of them outlives the process that it was started in."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
POLL_S = 0.001


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, whatever session or group they are in."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


def end_children(spared: Collection[int] = (), timeout_s: float = 0.2) -> None:
    """Kill and reap every child but the `spared`, and the children that they leave behind.

    For a process that adopts orphans. What the kernel can't end in time is left: it ends when it can.
    """
    deadline_s = time.monotonic() + timeout_s
    while strays := [pid for pid in _children() if pid not in spared]:
        for pid in strays:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline_s:
            return
        time.sleep(POLL_S)


def _children() -> list[int]:
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += map(int, path.read_text().split())
    return found
