"""Landlock: what a process may do with files, signals and the network, taken from it by itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable

from understudy.adapters.sandbox import kernel

# include/uapi/linux/landlock.h
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
TRUNCATE, IOCTL_DEVICE = 1 << 14, 1 << 15
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # ABI -> how many rights of files it knows
_NETWORK = 3  # bind and connect, TCP
_SCOPES = 3  # abstract sockets, signals
_VERSION = 1
_PATH_BENEATH = 1
READ = EXECUTE | READ_FILE | READ_DIR
OF_FILES = (
    EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
)  # what is no directory can have no other
SIGNALS_SINCE = 6  # ABI


def version() -> int:
    """Of the ABI. Raises `OSError` where there is none."""
    return kernel.call(
        kernel.LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION), what="landlock"
    )


def keeps_to_own_abstract_sockets() -> bool:
    """From now on, and to signals within; nothing else. False where that can't be had."""
    with contextlib.suppress(OSError):
        if version() >= SIGNALS_SINCE:
            _enforce(_ruleset(struct.pack("QQQ", 0, 0, _SCOPES)))
            return True
    return False


def restrict(rules: Iterable[tuple[str, int]], *, network: bool) -> None:
    """Allow this process and its children what the `rules` (path, rights below it) say, and nothing else.

    A path that isn't there is left out. Raises `OSError`. `PR_SET_NO_NEW_PRIVS` must have been set.
    """
    abi = version()
    rights = (1 << _RIGHTS[min(abi, max(_RIGHTS))]) - 1
    handled_network = _NETWORK if abi >= 4 and not network else 0
    scopes = _SCOPES if abi >= SIGNALS_SINCE else 0
    size_bytes = 24 if abi >= SIGNALS_SINCE else 16 if abi >= 4 else 8
    ruleset = _ruleset(struct.pack("QQQ", rights, handled_network, scopes)[:size_bytes])
    try:
        for path, allowed in rules:
            _add(ruleset, path, allowed & rights)
    except OSError:
        os.close(ruleset)
        raise
    _enforce(ruleset)


def _ruleset(attributes: bytes) -> int:
    return kernel.call(
        kernel.LANDLOCK_CREATE_RULESET,
        attributes,
        ctypes.c_size_t(len(attributes)),
        ctypes.c_uint32(0),
        what="landlock_create_ruleset",
    )


def _enforce(ruleset: int) -> None:
    try:
        kernel.call(
            kernel.LANDLOCK_RESTRICT_SELF,
            ctypes.c_int(ruleset),
            ctypes.c_uint32(0),
            what="landlock_restrict_self",
        )
    finally:
        os.close(ruleset)


def _add(ruleset: int, path: str, allowed: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            allowed &= OF_FILES
        rule = struct.pack("=Qi", allowed, descriptor)
        kernel.call(
            kernel.LANDLOCK_ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_int(_PATH_BENEATH),
            rule,
            ctypes.c_uint32(0),
            what=f"landlock_add_rule {path}",
        )
    finally:
        os.close(descriptor)
