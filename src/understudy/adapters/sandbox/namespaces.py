"""A file tree, processes, a network and an identity of its own: the strongest walls that a kernel has.

    zygote -> parent (makes the namespaces and the tree) -> init, process 1 inside
                                                         -> worker, process 2

The parent ends when both are known to the zygote, whose children they then are. Process 1 does nothing but
end when the worker has ended, and with it the kernel ends whatever the worker left. The worker isn't process
1 itself: that one could not be ended by a signal of its own, as `abort` sends.

Root needs no user namespace: each worker gets a user number of its own that nobody else has. Others map
themselves into a user namespace, and leave it no rights.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from understudy.adapters.parents import run_and_exit
from understudy.adapters.sandbox import kernel, landlock, limits, seccomp
from understudy.adapters.sandbox.walls import (
    DEVICES,
    OWN_TEMPORARY,
    Walls,
    accelerators,
    readable_places,
    settle,
    within,
)
from understudy.adapters.titles import title

# With the number of the worker's process added: beyond what systems and containers give to anybody.
IDENTITY_FIRST = 0x70000000
ROOT_BYTES = 1 << 20
INODES_MAX = 65_536
_WORKER = 2  # its process's number inside
_PLAIN = kernel.MS_NOSUID | kernel.MS_NODEV
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
INSIDE = b"inside"


def be_parent(
    walls: Walls, run: Callable[[], None], teller: socket.socket, *, reaps: bool = False
) -> NoReturn:
    """In a process that was forked for it: have `run` run inside, and end.

    Tells two packets, in any order: "pids WORKER INIT", and of the worker "inside" or why it can't be. Waits
    for a packet, or for the end of the other side, before it ends, and for its children if it `reaps` them.
    """
    try:
        _separate(walls)
        heard, told = os.pipe()
        init = os.fork()  # now, while what is written here is not yet its own memory too
        if init == 0:
            _be_init(heard)
        os.umask(0o022)
        _build(walls)
        worker = os.fork()
        if worker == 0:
            os.close(heard)
            os.close(told)
            run_and_exit(lambda: _be_worker(walls, run, teller))
        os.write(told, b".")
        teller.send(f"pids {worker} {init}".encode())
    except OSError as error:
        teller.send(f"can't be made: {error}".encode())
    teller.recv(1)
    with contextlib.suppress(ChildProcessError):
        while reaps:
            os.wait()
    os._exit(0)


def _be_init(heard: int) -> NoReturn:
    os.dup2(heard, 0)
    os.closerange(1, 1 << 20)
    title("init of a worker")
    os.read(0, 1)
    try:
        worker = os.pidfd_open(_WORKER)
    except OSError:  # it has ended
        os._exit(0)
    select.select([worker], [], [])
    os._exit(0)


def _be_worker(walls: Walls, run: Callable[[], None], teller: socket.socket) -> None:
    try:
        identity = IDENTITY_FIRST + int(os.readlink("/proc/self")) if os.geteuid() == 0 else None
        _move_in(walls)
        limits.limit(walls)
        kernel.drop_bounding_set()
        if identity is not None:
            _become(identity)
        limits.give_up_privileges()
        kept_in = not walls.network or landlock.keeps_to_own_abstract_sockets()
        seccomp.refuse_calls(seccomp.LOCAL if kept_in else seccomp.OF_MACHINE)
        settle(OWN_TEMPORARY)
        os.umask(0o077)
    except OSError as error:
        teller.send(str(error).encode())
        os._exit(1)
    teller.send(INSIDE)
    teller.close()
    run()


def _separate(walls: Walls) -> None:
    flags = kernel.NEW_NS | kernel.NEW_PID | kernel.NEW_IPC | kernel.NEW_UTS | kernel.NEW_CGROUP
    if not walls.network:
        flags |= kernel.NEW_NET
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        kernel.unshare(flags)
    else:
        # One that is closed to others of its user may not write its maps either.
        kernel.control(kernel.PR_SET_DUMPABLE, 1, "PR_SET_DUMPABLE")
        kernel.unshare(flags | kernel.NEW_USER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        limits.limit_namespace()
    if not walls.network:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _build(walls: Walls) -> None:
    """The tree, at `walls.root`. Paths inside are those of outside."""
    root = walls.root
    kernel.mount("", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", root, "tmpfs", _PLAIN, f"size={ROOT_BYTES},mode=755")
    for place in (OWN_TEMPORARY, "/dev/shm"):
        os.makedirs(root + place)
        size = f"size={walls.scratch_mb}m,nr_inodes={INODES_MAX},mode=1777"
        kernel.mount("tmpfs", root + place, "tmpfs", _PLAIN, size)
    places = readable_places(walls)
    own = [path for path in places if within(path, walls.hidden)]
    bound: list[str] = []
    for path in places:  # some may lie in places for temporary files
        if path not in own and not within(path, bound) and _show(root, path):
            bound.append(path)
    covered = [path for path in walls.hidden if within(path, bound)]
    for path in filter(os.path.isdir, covered):
        kernel.mount("tmpfs", root + path, "tmpfs", _PLAIN, f"size={ROOT_BYTES},mode=755")
    for path in (*own, walls.folder):
        _show(root, path)
    for path in filter(os.path.isdir, covered):
        kernel.set_mount_attributes(root + path, kernel.ATTR_RDONLY)
    for path in walls.writable:
        _bind(root, path)
    for name in DEVICES:
        _bind(root, f"/dev/{name}")
    for path in accelerators():
        _bind(root, path)
    for name, to in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(to, f"{root}/dev/{name}")
    os.makedirs(root + "/proc", exist_ok=True)


def _show(root: str, path: str) -> bool:
    """Whether it is to be seen inside as a place of its own, not as a link to one."""
    if os.path.islink(path):
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(os.readlink(path), root + path)
        return False
    _bind(root, path)
    kernel.set_mount_attributes(root + path, kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV)
    return True


def _bind(root: str, path: str) -> None:
    if os.path.isdir(path):
        os.makedirs(root + path, exist_ok=True)
    elif os.path.lexists(path):
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with open(root + path, "a"):
            pass
    else:
        return
    kernel.mount(path, root + path, flags=kernel.MS_BIND | kernel.MS_REC)


def _move_in(walls: Walls) -> None:
    """By a process of the new namespaces, which alone can have their processes shown."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("proc", walls.root + "/proc", "proc", flags)
    kernel.pivot_to(walls.root)
    kernel.mount("", "/", flags=kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | _PLAIN)


def _become(identity: int) -> None:
    os.setgroups([])
    os.setresgid(identity, identity, identity)
    os.setresuid(identity, identity, identity)
    kernel.control(kernel.PR_SET_DUMPABLE, 1, "PR_SET_DUMPABLE")  # else it couldn't measure itself
