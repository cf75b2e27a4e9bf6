"""What a model's author may not know of the walls around a worker, said where the model runs into them."""

from __future__ import annotations

import errno
import socket
from os.path import isabs

from understudy.adapters.sandbox.walls import Tier, Walls

FILES = (
    "a model sees its artifact and what is installed: put the file into the artifact, or list its directory "
    "in [agent.sandbox] readable of the cluster file"
)
PLACE = "a model writes to the directory for temporary files alone: os.environ['TMPDIR']"
ROOM = "[agent.sandbox] scratch_mb of the cluster file bounds what a model may write"
NETWORK = "an app has no network unless its manifest says so: network = true"
_UNREACHED = frozenset(
    {errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
)

_walls = Walls()


def stand_behind(walls: Walls) -> None:
    """This process's walls are these."""
    global _walls
    _walls = walls


def hint(error: BaseException) -> str:
    """Of what an exception, or one that caused it, may come from; empty without walls, or if it can't."""
    if _walls.tier is Tier.NONE:
        return ""
    seen = 0
    cause: BaseException | None = error
    while cause is not None and seen < 8:
        if isinstance(cause, OSError) and (found := _hint(cause)):
            return f"; {found}"
        reason = getattr(cause, "reason", None)  # urllib keeps it there
        inner = reason if isinstance(reason, BaseException) else cause.__cause__ or cause.__context__
        cause, seen = inner, seen + 1
    return ""


def _hint(error: OSError) -> str:
    file, number = error.filename, error.errno
    if not _walls.network and (isinstance(error, socket.gaierror) or number in _UNREACHED):
        return NETWORK
    if not _walls.network and number == errno.EACCES and file is None:
        return NETWORK
    if number in (errno.EFBIG, errno.ENOSPC):
        return ROOM
    if not isinstance(file, str) or not isabs(file):
        return ""
    if number == errno.EROFS:
        return PLACE
    outside = not file.startswith((_walls.folder, _walls.scratch or "/tmp/"))
    return FILES if outside and number in (errno.ENOENT, errno.EACCES, errno.EPERM) else ""
