"""What a model's child processes inherit from the worker: nothing that is the worker's.

A child that held the worker's connections would keep its death from gateways, and one that wrote to its
socket for signals would drain it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable
from typing import Any

from understudy.adapters.parents import PR_SET_PDEATHSIG
from understudy.worker.model_thread import SIGNALS


class Forks:
    """`addresses`: where this process listens; sockets with such a name of their own are the worker's.

    So is the nameless `line`.
    """

    def __init__(self, leave_signals: Callable[[], None], line: socket.socket) -> None:
        self.addresses: list[Any] = []
        self._leave_signals = leave_signals
        self._line = line
        self._forking = threading.local()
        self._pid = os.getpid()
        self._thread = threading.get_ident()
        self._libc = ctypes.CDLL(None)

    def watch(self) -> None:
        os.register_at_fork(before=self._block, after_in_parent=self._unblock, after_in_child=self._in_child)

    def _block(self) -> None:
        """A child that is ended at once must not have the worker's handlers when the signal comes."""
        self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._forking.mask)

    def _in_child(self) -> None:
        if os.getppid() == self._pid:  # else it is a child's child, or the worker is gone already
            self._disown()
        self._unblock()

    def _disown(self) -> None:
        self._leave_signals()
        if threading.get_ident() == self._thread:  # the kernel counts the end of the thread that forked
            self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        self._line.close()
        for entry in os.listdir("/proc/self/fd"):
            self._close_if_ours(int(entry))

    def _close_if_ours(self, descriptor: int) -> None:
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return
            found = socket.socket(fileno=descriptor)
        except OSError:
            return
        try:
            ours = found.getsockname() in self.addresses
        except OSError:
            ours = False
        found.detach()
        if ours:
            os.close(descriptor)
