"""What a process inherits from whoever started it, put into the state that everything else relies on."""

from __future__ import annotations

import signal

# Ignored, exit statuses of children are lost, and the end of a parent isn't heard of.
DEFAULTS = (signal.SIGCHLD, signal.SIGTERM)


def settle_inherited() -> None:
    """The first act of every process that others may start: before a loop or a thread."""
    for number in DEFAULTS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
