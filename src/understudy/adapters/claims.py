"""What one process at a time may have: a claim on a directory, which ends with the process whatever ends it.

The kernel keeps it (`flock`), so that nothing is left behind by a kill. A note beside it tells others whose
it is; nobody decides by that note, but for how long to wait for a process that says that it is leaving.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from understudy.adapters.own_files import for_us_alone
from understudy.wire.errors import ConfigError

FILE = "lock"
OWNER = "cluster"  # the name of the cluster that a data directory belongs to
PATIENCE_S = 1.0  # for a process that was killed to be gone
LEAVING_S_MAX = 60.0  # for one that drains
RETRY_S = 0.05
NOTE_BYTES_MAX = 200
LEAVING = "leaving"


class Claim:
    """Held until `close`, or until the process and those that it gave the descriptor to are gone."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.note()

    def fileno(self) -> int:
        return self._number

    def note(self, state: str = "") -> None:
        """Say whose it is. On a disk that takes nothing it is held all the same."""
        text = f"{os.getpid()} {datetime.now(UTC).isoformat(timespec='seconds')} {state}".rstrip()
        with contextlib.suppress(OSError):
            os.pwrite(self._number, f"{text:<{NOTE_BYTES_MAX - 1}}\n".encode(), 0)

    def leave(self) -> None:
        """Tell whoever wants it that it will be free soon."""
        self.note(LEAVING)

    def close(self) -> None:
        os.close(self._number)


def claim(folder: Path, taken: str, file: str = FILE) -> Claim:
    """`folder` for this process, which is made if it isn't there. Blocks while its former holder is leaving.

    Raises `ConfigError`, that it is `taken` and by whom; `OSError` where no directory can be had.
    """
    number = _open(folder, file)
    began_s = time.monotonic()
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, since, state = _noted(number)
            waited_s = time.monotonic() - began_s
            if waited_s > (LEAVING_S_MAX if state == LEAVING else PATIENCE_S):
                os.close(number)
                raise ConfigError(f"{taken}: process {pid}, since {since}") from None
            time.sleep(RETRY_S)
        else:
            return Claim(number)


def check_owner(data_dir: Path, cluster: str) -> None:
    """The data directory `data_dir` belongs to the first cluster that has it; it is `cluster`'s from now on.

    Raises `ConfigError` if it is another's: its apps and dead nodes would be taken for this one's.
    """
    path = data_dir / OWNER
    with contextlib.suppress(OSError):  # on a disk that is read only, nobody can say
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), open(path, "x", opener=for_us_alone) as file:
            file.write(f"{cluster}\n")
    try:
        owner = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return
    if owner not in ("", cluster):  # empty: somebody is just writing it
        raise ConfigError(
            f"data_dir: {data_dir} belongs to cluster {owner!r}, not to {cluster!r}; set another data_dir, "
            f"or remove {path} if this is the same cluster with a new name"
        )


def _open(folder: Path, file: str) -> int:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(folder / file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        with contextlib.suppress(OSError):  # on a disk that is read only, the directory itself is claimed
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        raise


def _noted(number: int) -> tuple[str, str, str]:
    """(pid, since when, state) of who has it, as far as it is told."""
    words: list[str] = []
    with contextlib.suppress(OSError):
        words = os.pread(number, NOTE_BYTES_MAX, 0).decode(errors="replace").split()
    pid, since, state, *_ = [*words, *["", "", ""][len(words) :]]
    return pid or "unknown", since or "an unknown time", state
