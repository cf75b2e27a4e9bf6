"""Directories where processes of one user meet: nobody else may put anything there."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from understudy.wire.errors import ConfigError

_CREDENTIALS = struct.Struct("3i")  # process, user, group
PROBE_TIMEOUT_S = 0.2
_LISTENS = "0A"  # in /proc/net/tcp
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def meeting_place(path: Path) -> None:
    """Make the directory `path` if it isn't there.

    Raises `ConfigError` if others can write to it, `OSError` if it can't be had.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise ConfigError(f"run_dir: {path}: is no directory of its own; it may not be a link either")
    if facts.st_uid != os.geteuid():
        raise ConfigError(f"run_dir: {path}: belongs to user {facts.st_uid}, not to us ({os.geteuid()})")
    if facts.st_mode & OTHERS_WRITE:
        mode = stat.S_IMODE(facts.st_mode)
        raise ConfigError(f"run_dir: {path}: others can write to it (mode {mode:o}); chmod 700 {path}")


def vacant(address: str) -> None:
    """Make room for a socket at a path: what a dead process left there goes, and its directory is made.

    Raises `ConfigError` if a live process listens there, and what `meeting_place` does.
    """
    path = Path(address)
    meeting_place(path.parent)
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.settimeout(PROBE_TIMEOUT_S)
            probe.connect(address)
            raise ConfigError(f"unix:{address}: another process listens here already")
        path.unlink(missing_ok=True)


def is_of_our_user(sock: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket runs as we do, or as root."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return user in (0, os.geteuid())


def stranger_behind(link: socket.socket) -> int | None:
    """The user at the other end of a TCP connection within this machine, unless that is us or root.

    None too where it can't be known. The listener is looked at beside who took the connection, which until
    then is nobody's.
    """
    own, peer = _plain(link.getsockname()), _plain(link.getpeername())
    address = ip_address(peer[0])
    if not address.is_loopback:
        return None
    any_of_family = "0.0.0.0" if address.version == 4 else "::"
    # Whom the kernel asks first comes first; who has the connection is asked before all.
    listeners: dict[str, list[int]] = {peer[0]: [], any_of_family: [], "::": []}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, here, there, state, _, _, _, user, _, inode, *_ = line.split()
                host, port = _endpoint(here)
                if (host, port) == peer and _endpoint(there) == own and inode != "0":
                    return _stranger([int(user)])
                if state == _LISTENS and port == peer[1] and host in listeners:
                    listeners[host].append(int(user))
    return _stranger(next(filter(None, listeners.values()), []))


def _stranger(users: list[int]) -> int | None:
    return next((user for user in users if user not in (0, os.geteuid())), None)


def _plain(address: Any) -> tuple[str, int]:
    """Address and port of a socket."""
    return _shown(ip_address(address[0].partition("%")[0])), address[1]


def _endpoint(text: str) -> tuple[str, int]:
    """Address and port, as the kernel's tables have them: words in the machine's order of bytes."""
    words, _, port = text.partition(":")
    packed = b"".join(
        int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8)
    )
    return _shown(ip_address(packed)), int(port, 16)


def _shown(address: IPv4Address | IPv6Address) -> str:
    """An IPv4 address in IPv6's form as what it is."""
    return str(getattr(address, "ipv4_mapped", None) or address)


def same_file(path: str, identity: tuple[int, int]) -> bool:
    """Whether `path` is still what had this `identity_of`."""
    try:
        return identity_of(path) == identity
    except OSError:
        return False


def identity_of(path: str) -> tuple[int, int]:
    facts = os.stat(path, follow_symlinks=False)
    return facts.st_dev, facts.st_ino
