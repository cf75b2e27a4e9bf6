"""What all processes of a worker, a zygote or a trial may use together: control groups, or what there is.

A group bounds memory and tasks, weighs processor time, and knows its processes whatever session they are in:
what is to end is ended whole. Where this process may make none, a limit on a worker's data is left. Each
controller is had by itself: one that is missing costs only what it would have given.

A worker's groups are made while it is blank, because that takes the kernel milliseconds; setting the limit
when it loads a model is then one write.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MB = 1024 * 1024
END_TIMEOUT_S = 5.0
POLL_S = 0.005
# Controller -> what it bounds. Of processor time a group has no quota, only a weight, that of two processes:
# hundreds get what two would, and a model with many threads gets all that nobody else wants. The kernel
# divides a weight among the processors where the group ran lately: with one process's, a worker beside a
# gateway on two busy processors answered 11 % less than outside of its group, with two processes' as much.
CONTROLLERS = {"memory": "memory", "pids": "processes", "cpu": "share of processor time"}
_FILES = {
    1: {"memory": "memory.limit_in_bytes", "pids": "pids.max", "cpu": "cpu.shares"},
    2: {"memory": "memory.max", "pids": "pids.max", "cpu": "cpu.weight"},
}
_WEIGHTS = {1: "2048", 2: "200"}

Paths = tuple[str, ...]  # of one group: v1 has a directory for each controller, v2 has one


class Groups:
    """`name` begins those of all groups; no two agents of a machine may share it."""

    def __init__(
        self, name: str, tasks_max: int, *, controllers: Collection[str] = tuple(CONTROLLERS)
    ) -> None:
        self._name = name
        self._aside = f"{name}-agent"
        self._tasks_max = tasks_max
        self._version = 2 if (_ROOT / "cgroup.controllers").exists() else 1
        own = {each: path for each in controllers if (path := _own_directory(self._version, each))}
        if self._version == 2:
            own = _delegated(own, self._aside)
        self._places = {each: path for each, path in own.items() if self._holds(each, path)}

    @property
    def held(self) -> str:
        """By what."""
        return ", ".join([f"cgroup v{self._version}", *self._places] if self._places else ["rlimit"])

    @property
    def lacking(self) -> tuple[str, ...]:
        missing = [what for each, what in CONTROLLERS.items() if each not in self._places]
        return (f"no cgroup bounds its {', '.join(missing)}",) if missing else ()

    def of(self, member: str) -> Paths:
        """Where this one's groups belong. Empty when there can be none."""
        return tuple(dict.fromkeys(str(path / f"{self._name}-{member}") for path in self._places.values()))

    def make(self, paths: Paths, memory_mb: float | None = None) -> Paths:
        """What could be made of them, for whoever enters by itself."""
        made: list[str] = []
        for path in map(Path, paths):
            with contextlib.suppress(OSError):
                path.mkdir(exist_ok=True)
                made.append(str(path))  # whatever can't be set in it, it ends as a whole
                _write_if_there(path / "pids.max", str(self._tasks_max))
                _write_if_there(path / _FILES[self._version]["cpu"], _WEIGHTS[self._version])
                if memory_mb is not None and self._of_memory((str(path),)):
                    self._limit_memory(path, memory_mb)
        return tuple(made)

    def admit(self, paths: Paths, pid: int) -> None:
        """Put a new worker into groups of its own. Where that fails, `limit` finds none. Blocks for ms."""
        for path in map(Path, self.make(paths)):
            try:
                (path / "cgroup.procs").write_text(str(pid))
            except OSError:  # it has ended already, or the group was taken away
                with contextlib.suppress(OSError):
                    path.rmdir()

    def limit(self, paths: Paths, pid: int, limit_mb: float) -> None:
        """Raises OSError; ProcessLookupError when the worker is gone."""
        group = self._of_memory(paths)
        if group is not None:
            self._limit_memory(group, limit_mb)
            return
        # The runtime's own mappings count as data too, so the limit is on what is added to them.
        limit_bytes = int(limit_mb * _MB) + _data_bytes(pid)
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

    def exceeded(self, paths: Paths) -> bool:
        """Whether the kernel killed somebody in this group for its memory."""
        group = self._of_memory(paths)
        if group is None:
            return False
        try:
            told = (group / ("memory.events" if self._version == 2 else "memory.oom_control")).read_text()
        except OSError:
            return False
        facts = dict(line.split(maxsplit=1) for line in told.splitlines())
        return int(facts.get("oom_kill", "0")) > 0

    def limit_mb(self, paths: Paths) -> float | None:
        """None where there is none, or it can't be asked any more."""
        group = self._of_memory(paths)
        try:
            return int((group / self._memory_file).read_text()) / _MB if group else None
        except (OSError, ValueError):  # "max"
            return None

    def end(self, paths: Paths, timeout_s: float = END_TIMEOUT_S) -> bool:
        """Kill all that live there, and leave no group. Whether that was done in time. Blocks.

        What the kernel can't end yet keeps its group, in which nothing can be started any more.
        """
        deadline_s = time.monotonic() + timeout_s
        self.kill(paths)
        while not all(_is_gone(Path(path)) for path in paths):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(POLL_S)
            self.kill(paths)
        return True

    def kill(self, paths: Paths) -> None:
        """All that live there; nothing more is started in them."""
        for path in map(Path, paths):
            _write_if_there(path / "pids.max", "0")
            with contextlib.suppress(OSError):  # it was never made, or is gone already
                for pid in map(int, (path / "cgroup.procs").read_text().split()):
                    if pid:  # 0 is one that can't be seen from here
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)

    def sweep(self, spared: Iterable[str] = ()) -> bool:
        """End all groups of this agent, of a former life too, but the `spared`. As `end`."""
        found = {path for place in self._places.values() for path in place.glob(f"{self._name}-*/")}
        return self.end(
            tuple(str(path) for path in found - set(map(Path, spared)) if path.name != self._aside)
        )

    def _holds(self, controller: str, place: Path) -> bool:
        """Found out by making a group there."""
        probe = place / f"{self._name}-probe"
        try:
            probe.mkdir(exist_ok=True)
            held = (probe / _FILES[self._version][controller]).exists()
            probe.rmdir()
        except OSError:
            return False
        return held

    @property
    def _memory_file(self) -> str:
        return _FILES[self._version]["memory"]

    def _of_memory(self, paths: Paths) -> Path | None:
        return next((path for path in map(Path, paths) if (path / self._memory_file).exists()), None)

    def _limit_memory(self, group: Path, limit_mb: float) -> None:
        limit = str(int(limit_mb * _MB))
        (group / self._memory_file).write_text(limit)
        # Swap accounting is often compiled out or switched off.
        _write_if_there(group / "memory.swap.max", "0")
        _write_if_there(group / "memory.memsw.limit_in_bytes", limit)


def _own_directory(version: int, controller: str) -> Path | None:
    """That of this process's group. In a container its path may not be visible."""
    mount = _ROOT if version == 2 else _ROOT / controller
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if (controller in controllers.split(",")) if version == 1 else controllers == "":
            own = mount / path.lstrip("/")
            own = own if own.is_dir() else mount
            return own if os.access(own, os.W_OK | os.X_OK) else None
    return None


def _delegated(own: dict[str, Path], aside_name: str) -> dict[str, Path]:
    """Controllers that our group gives to groups below it. It may hold no process then: we step aside."""
    if not own:
        return {}
    place = next(iter(own.values()))
    aside = place / aside_name
    given: dict[str, Path] = {}
    with contextlib.suppress(OSError):
        aside.mkdir(exist_ok=True)
        (aside / "cgroup.procs").write_text(str(os.getpid()))
        for controller in own:
            with contextlib.suppress(OSError):  # it isn't given to us, or others live here
                (place / "cgroup.subtree_control").write_text(f"+{controller}")
                given[controller] = place
    if not given:
        with contextlib.suppress(OSError):
            (place / "cgroup.procs").write_text(str(os.getpid()))
            aside.rmdir()
    return given


def _is_gone(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _data_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next((line.split()[1] for line in status.splitlines() if line.startswith("VmData:")), "0")
    return int(kilobytes) * 1024


def _write_if_there(path: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        if path.exists():
            path.write_text(text)
