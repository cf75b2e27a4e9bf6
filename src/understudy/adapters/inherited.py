"""What a process inherits from whoever started it, put into the state that everything else relies on."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from io import TextIOWrapper

from understudy.adapters.sandbox import kernel

# Ignored, exit statuses of children are lost, and the end of a parent isn't heard of.
DEFAULTS = (signal.SIGCHLD, signal.SIGTERM)


def settle_inherited() -> None:
    """The first act of every process that others may start: before a loop, a thread or a file of its own."""
    for number in DEFAULTS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _open_standard_descriptors()
    with contextlib.suppress(OSError, ValueError):  # requests, keys and models are in our memory
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if isinstance(sys.stdout, TextIOWrapper):  # as standard error does: no character ends a command
        sys.stdout.reconfigure(errors="backslashreplace")


def close_to_others() -> None:
    """Keep other processes of our user out of our memory, environment and descriptors, but for root's.

    A fork inherits that, and what is executed doesn't: a zygote and its workers are open.
    """
    kernel.control(kernel.PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")


def _open_standard_descriptors() -> None:
    """Where one of 0 to 2 is closed, the next file to be opened would be taken for it."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
