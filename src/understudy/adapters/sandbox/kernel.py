"""System calls that Python has no function for. Each raises `OSError` naming what was refused."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

NEW_NS = 0x20000
NEW_CGROUP = 0x2000000
NEW_UTS = 0x4000000
NEW_IPC = 0x8000000
NEW_USER = 0x10000000
NEW_PID = 0x20000000
NEW_NET = 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 32, 4096, 16384, 1 << 18
MS_RDONLY = 1
MNT_DETACH = 2
AT_FDCWD = -100
AT_RECURSIVE = 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4  # of mount_setattr

PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522

MACHINE = platform.machine()
# Not wrapped by the C library.
_NUMBERS = {
    "x86_64": {"pivot_root": 155, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "seccomp": 277},
}.get(MACHINE, {})
_MOUNT_SETATTR = 442  # the same on all machines, as all that came later
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def number_of(name: str) -> int:
    """Of a system call. Raises `OSError` on a machine that isn't known here."""
    if name not in _NUMBERS:
        raise OSError(f"{name} isn't known on {MACHINE}")
    return _NUMBERS[name]


def call(number: int, *arguments: object, what: str) -> int:
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments), what)


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    names = [os.fsencode(name) or None for name in (source, target, kind)]
    _checked(
        _libc.mount(*names, ctypes.c_ulong(flags), data.encode() or None),
        f"mount {kind or source or 'as flagged'} at {target}",
    )


def detach(target: str) -> None:
    _checked(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def set_mount_attributes(target: str, attributes: int) -> None:
    """Of everything mounted at `target` and below; what is locked stays as it is. Since Linux 5.12."""
    request = struct.pack("QQQQ", attributes, 0, 0, 0)
    call(
        _MOUNT_SETATTR,
        AT_FDCWD,
        os.fsencode(target),
        AT_RECURSIVE,
        request,
        ctypes.c_size_t(len(request)),
        what=f"mount_setattr {target}",
    )


def pivot_to(root: str) -> None:
    """Make `root`, a mount, the root directory, and leave the former one."""
    os.chdir(root)
    call(number_of("pivot_root"), b".", b".", what="pivot_root")
    detach(".")
    os.chdir("/")


def control(option: int, value: int, what: str) -> None:
    """prctl."""
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), what)


def drop_bounding_set() -> None:
    """So that no file that is executed can give any capability."""
    for number in range(64):
        try:
            control(PR_CAPBSET_DROP, number, "PR_CAPBSET_DROP")
        except OSError:  # beyond the last one, or it may not: PR_SET_NO_NEW_PRIVS does it alone
            break


def drop_capabilities() -> None:
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, bytes(24)), "capset")
