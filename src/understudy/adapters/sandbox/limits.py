"""What a sandboxed process may use, and that it gains nothing by what it executes."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

from understudy.adapters.sandbox import kernel
from understudy.adapters.sandbox.walls import Tier, Walls

FILES_MAX = 4096  # open at once
SIGNALS_MAX = 1024  # queued; those of all processes of its user count
# Of a user namespace's own counts, where its user is another's too.
NAMESPACE_MAX = {"max_inotify_instances": 16, "max_inotify_watches": 4096}
MIB = 1024 * 1024


def limit(walls: Walls) -> None:
    tasks: tuple[tuple[int, int], ...] = ()
    if walls.tier is Tier.NAMESPACES:  # elsewhere all processes of the user would count
        tasks = ((resource.RLIMIT_NPROC, walls.tasks_max),)
    for what, most in (
        *tasks,
        (resource.RLIMIT_NOFILE, FILES_MAX),
        (resource.RLIMIT_FSIZE, walls.scratch_mb * MIB),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, SIGNALS_MAX),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def limit_namespace() -> None:
    """This process's user namespace, which it made. Does nothing where that can't be written to."""
    for name, most in NAMESPACE_MAX.items():
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/user/{name}").write_text(str(most))


def give_up_privileges() -> None:
    """After it, nothing that is executed has more rights than this process. Raises `OSError`."""
    kernel.drop_capabilities()
    kernel.control(kernel.PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")
