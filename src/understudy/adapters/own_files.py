"""Files that only our user may read, and the older ones of a file that is set aside when it is long."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from pathlib import Path


def for_us_alone(path: str, flags: int) -> int:
    """The `opener` of `open`."""
    return os.open(path, flags, 0o600)


def make_way(path: Path, file_count: int) -> Path | None:
    """Where `path` may be set aside: older ones move on, the oldest of `file_count` goes. None: nowhere."""
    aside = [Path(f"{path}.{number}") for number in range(1, file_count)]
    for older, newer in zip(aside[:0:-1], aside[-2::-1], strict=True):
        with contextlib.suppress(FileNotFoundError):
            newer.replace(older)
    return aside[0] if aside else None


def let_others_read(folder: Path) -> None:
    """All below a folder that they reach only where it is shown to them: what is above is closed. Blocks."""
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode):
            path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))


def remove_tree(path: Path) -> None:
    """As far as that is possible, however deep, large and closed it is: a model may have made it. Blocks.

    By other processes: a million names would take our memory, and our interpreter's lock.
    """
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError:
        remove = ["rm", "-rf", "--", str(path)]
        try:
            _run_quietly(remove)
        except OSError:  # no process can be made, or there is no rm
            shutil.rmtree(path, ignore_errors=True)
            return
        if os.path.lexists(path):  # we aren't root, and directories in it have no rights for us
            with contextlib.suppress(OSError):
                _run_quietly(["chmod", "-R", "u+rwx", "--", str(path)])
                _run_quietly(remove)


def _run_quietly(command: list[str]) -> None:
    subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
