"""One role as process groups on this machine, across its restarts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

from understudy.adapters.own_files import for_us_alone, make_way
from understudy.settings.places import LogSettings

COPY_BYTES = 1024 * 1024
RESTART_DELAY_S = 0.1  # first restart is at once, then this, doubling
RESTART_DELAY_S_MAX = 5.0
HEALTHY_AFTER_S = 10.0  # alive for this long: the back-off starts anew
SETTLED_AFTER_S = 3.0
LOG_TAIL_LINES = 15
KILL_TIMEOUT_S = 2.0  # the kernel needs milliseconds; more means that it is stuck in a device


class RoleProcess:
    """A role and what it has spawned. `wanted`: it should be running now.

    Each life of it has a session of its own, for where a kernel shares processor time among sessions
    (`sched_autogroup_enabled`), a gateway would share its part with agents that start workers.

    The kernel ties the process to the thread that calls `start` (see `parents.follow_parent`).
    """

    def __init__(
        self, role: str, name: str, argv: list[str], log_path: Path, logs: LogSettings | None = None
    ) -> None:
        self.role = role
        self.name = name
        self.log_path = log_path
        self.wanted = False
        self.starts = 0
        self._argv = argv
        self._logs = logs or LogSettings()
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()  # of each life of which somebody lives
        self._killed = False
        self._started_s = 0.0
        self.restarts_in_a_row = 0

    def __str__(self) -> str:
        return f"{self.role} {self.name}"

    @property
    def pid(self) -> int:
        """Of the role's own process; 0 when it isn't running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    @property
    def exit_status(self) -> int | None:
        """None while it runs or before its first start; negative: the signal that ended it."""
        return self._process.poll() if self._process is not None else None

    @property
    def is_settled(self) -> bool:
        """It has run for long enough to be believed."""
        return self.pid != 0 and time.monotonic() - self._started_s > SETTLED_AFTER_S

    def start(self) -> None:
        """Start it, unless it runs. Workers of a former process may live on."""
        self.wanted = True
        if self._process is not None and self._killed:
            self._process.wait(KILL_TIMEOUT_S)
        if self.pid:
            return
        self.log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.rotate_log()
        self._groups = set(filter(group_pids, self._groups))
        with open(self.log_path, "ab", opener=for_us_alone) as log:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._groups.add(self._process.pid)
        self._killed = False
        self._started_s = time.monotonic()
        self.starts += 1

    def send(self, number: signal.Signals) -> None:
        """Signal the role's own process."""
        if self._process is not None:
            self._killed = self._killed or number is signal.SIGKILL
            self._process.send_signal(number)

    def send_group(self, number: signal.Signals) -> None:
        """Signal the role's process and everything that it has spawned."""
        self._killed = self._killed or number is signal.SIGKILL
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)

    def pids(self) -> list[int]:
        """Everybody alive of it."""
        return sorted(pid for group in self._groups for pid in group_pids(group))

    def restart_delay_s(self) -> float:
        """How long to wait before it is started again: not at all at first, then doubling."""
        if time.monotonic() - self._started_s > HEALTHY_AFTER_S:
            self.restarts_in_a_row = 0
        tries = self.restarts_in_a_row
        self.restarts_in_a_row += 1
        if tries == 0:
            return 0.0
        delay_s: float = min(RESTART_DELAY_S * 2 ** min(tries - 1, 16), RESTART_DELAY_S_MAX)
        return delay_s * random.uniform(0.8, 1.2)

    def rotate_log(self) -> None:
        """Set a long log aside and begin it anew, under its writers: they append, so none needs to be told.

        What is written between the copy and the cut is lost. A disk without room for a copy costs the log.
        """
        try:
            size_bytes = self.log_path.stat().st_size
            if size_bytes <= self._logs.bytes_max:
                return
            aside = make_way(self.log_path, self._logs.file_count)
            try:
                if aside is not None:
                    _copy_end(self.log_path, aside, self._logs.bytes_max)
            finally:
                os.truncate(self.log_path, 0)
        except OSError:
            return  # missing, or not ours to write: the next look tries again

    def log_tail(self) -> str:
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        except OSError:
            return ""


def _copy_end(source: Path, target: Path, bytes_max: int) -> None:
    with source.open("rb") as reader, open(target, "wb", opener=for_us_alone) as writer:
        reader.seek(-bytes_max, os.SEEK_END)
        left_bytes = bytes_max
        while left_bytes > 0 and (data := reader.read(min(COPY_BYTES, left_bytes))):
            writer.write(data)
            left_bytes -= len(data)


def group_pids(group: int) -> list[int]:
    """Processes of a group, without those that are dead and wait for their parent to notice."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        state, _parent, its_group = stat.rpartition(")")[2].split()[:3]
        if int(its_group) == group and state not in ("Z", "X"):
            found.append(int(entry.name))
    return sorted(found)
