"""A process of ours as a child: how it ends, and that it ends with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from understudy.adapters.titles import title
from understudy.wire.errors import ConfigError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def follow_parent(parent_pid: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent's starting thread ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent_pid:
        raise SystemExit(0)  # it died before the kernel knew that we care


def need_handles() -> None:
    """Children are watched by them. Raises `ConfigError` where the system refuses to give any."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        raise ConfigError(
            f"the system call pidfd_open is refused here ({error.strerror}): it takes Linux 5.3, and in a "
            "container a seccomp profile that permits it"
        ) from error


FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def have_init() -> None:
    """As a container's first process: go on in a child, and be what the kernel expects of process 1.

    That is to reap whatever loses its parent, and to get signals that nobody else would have a default for.
    Only a process that has no other children can do so without taking their exit statuses from others.
    """
    if os.getpid() != 1:
        return
    watched = {*FORWARDED, signal.SIGCHLD}
    former = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    child = os.fork()
    if child == 0:
        follow_parent(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        return
    title("init")
    os._exit(_reap_until(child, watched))


def _reap_until(child: int, watched: set[signal.Signals]) -> int:
    """Its exit status, as a shell says it."""
    while True:
        signalled = signal.sigwaitinfo(watched)
        if signalled.si_signo != signal.SIGCHLD:
            if signalled.si_code <= 0:  # the kernel's own, of a terminal, went to the child as well
                os.kill(child, signalled.si_signo)
            continue
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == child:
                status = os.waitstatus_to_exitcode(wait_status)
                return status if status >= 0 else 128 - status


def run_and_exit(run: Callable[[], None]) -> NoReturn:
    """`run` in a process that was forked just now, and end it: it never returns.

    The exit status is 0, that of a `SystemExit`, or 1 for any other exception, which goes to standard error.
    """
    status = 1
    try:
        run()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
