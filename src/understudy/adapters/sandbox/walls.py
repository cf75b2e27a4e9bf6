"""What surrounds a worker, as data: how it is kept in, what it may see, how much it may use."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

import msgspec

OWN_TEMPORARY = "/tmp"


class Tier(StrEnum):
    NAMESPACES = "namespaces"  # a file tree, processes, a network and an identity of its own
    LANDLOCK = "landlock"  # the machine's, of which it may use little
    NONE = "none"


class Walls(msgspec.Struct, frozen=True):
    """`folder`: the only one of the cluster's that is seen inside, to read. `root`: an empty directory.

    `scratch`: a directory to write to, where there is no file tree of its own. `hidden`: directories of the
    cluster, to be covered if they lie below one that is readable. `scratch_mb` and `tasks_max` (processes and
    threads) bound what is used.
    """

    tier: Tier = Tier.NONE
    folder: str = ""
    root: str = ""
    scratch: str = ""
    hidden: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    network: bool = False
    scratch_mb: int = 512
    tasks_max: int = 1024


# Programs and libraries, and what they look up. Not /etc as a whole: it holds keys.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/sys/devices/system")
LOOKED_UP = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "timezone", "mime.types",
    "hosts", "host.conf", "nsswitch.conf", "magic", "fonts", "OpenCL",
    "ssl/certs", "ssl/openssl.cnf", "ca-certificates", "pki",
)  # fmt: skip
FOR_NETWORK = ("resolv.conf", "services", "protocols", "gai.conf")
DEVICES = ("null", "zero", "full", "random", "urandom")
ACCELERATORS = ("nvidia*", "dri", "kfd")


def readable_places(walls: Walls) -> list[str]:
    """What is there of the system, of this interpreter with its packages, and of what is configured."""
    etc = (*LOOKED_UP, *FOR_NETWORK) if walls.network else LOOKED_UP
    wanted = [*SYSTEM, *(f"/etc/{name}" for name in etc), sys.prefix, sys.base_prefix, sys.exec_prefix]
    wanted += [os.path.abspath(path) for path in sys.path if path]
    found = [path for path in dict.fromkeys([*wanted, *walls.readable]) if os.path.lexists(path)]
    # Where a link leads has to be there too. What holds a place of their own would cover it.
    both = dict.fromkeys([*found, *map(os.path.realpath, found)])
    return [path for path in both if not any(covers(path, own) for own in (OWN_TEMPORARY, "/dev", "/proc"))]


def within(path: str, places: Iterable[str]) -> bool:
    """Whether it is one of them, or below one."""
    return any(covers(place, path) for place in places)


def accelerators() -> list[str]:
    return [str(path) for pattern in ACCELERATORS for path in Path("/dev").glob(pattern)]


def covers(path: str, other: str) -> bool:
    return other == path or other.startswith(path.rstrip("/") + "/")


def settle(place: str) -> None:
    """Send to `place` what would go to a home directory, or to one for temporary files."""
    os.environ["HOME"] = os.environ["TMPDIR"] = place
    os.environ["USER"] = os.environ["LOGNAME"] = "model"  # a user without an entry anywhere
    for name in ("TEMP", "TMP", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        os.environ.pop(name, None)
    tempfile.tempdir = None  # it may have been looked up before
    os.chdir(place)
