"""Memory limits of workers: a cgroup each where this process may make them, else a limit on their data.

A worker's cgroup is made while it is blank, because that takes the kernel milliseconds; setting the limit
when it loads a model is then one write.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MB = 1024 * 1024


class MemoryLimits:
    """Makes, sets and removes limits. `directory` holds the workers' cgroups; None where there can be none.

    `name` is that of the directory; no two agents of a machine may share it.
    """

    def __init__(self, name: str) -> None:
        self._version = 2 if (_ROOT / "cgroup.controllers").exists() else 1
        self.directory = _make_directory(self._version, name)

    @property
    def kind(self) -> str:
        return f"cgroup v{self._version}" if self.directory else "rlimit"

    def path(self, worker: str) -> str:
        """Where this worker's cgroup belongs; empty when cgroups can't be used."""
        return str(self.directory / worker) if self.directory else ""

    def sweep(self) -> None:
        """Remove what nobody lives in any more."""
        for path in self.directory.glob("*/") if self.directory else ():
            self.remove(str(path))

    def close(self) -> bool:
        """Leave nothing behind. Whether that worked: a process that is still ending keeps its cgroup."""
        self.sweep()
        return self.directory is None or self.remove(str(self.directory))

    def admit(self, cgroup: str, pid: int) -> None:
        """Put a new worker into a cgroup of its own. Where that fails, `limit` finds none. Blocks for ms."""
        if not cgroup:
            return
        path = Path(cgroup)
        try:
            path.mkdir(exist_ok=True)
            (path / "cgroup.procs").write_text(str(pid))
        except OSError:  # it has ended already, or the cgroup was taken away
            with contextlib.suppress(OSError):
                path.rmdir()

    def limit(self, cgroup: str, pid: int, limit_mb: float) -> None:
        """Raises OSError; ProcessLookupError when the worker is gone."""
        limit_bytes = int(limit_mb * _MB)
        path = Path(cgroup)
        if not cgroup or not path.is_dir():
            # The runtime's own mappings count as data too, so the limit is on what is added to them.
            limit_bytes += _data_bytes(pid)
            resource.prlimit(pid, resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
            return
        if self._version == 2:
            (path / "memory.max").write_text(str(limit_bytes))
            _write_if_there(path / "memory.swap.max", "0")
        else:
            (path / "memory.limit_in_bytes").write_text(str(limit_bytes))
            _write_if_there(path / "memory.memsw.limit_in_bytes", str(limit_bytes))

    def exceeded(self, cgroup: str) -> bool:
        """Whether the kernel killed somebody in this cgroup for its memory."""
        if not cgroup:
            return False
        path = Path(cgroup) / ("memory.events" if self._version == 2 else "memory.oom_control")
        try:
            facts = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
        except OSError:
            return False
        return int(facts.get("oom_kill", "0")) > 0

    def limit_mb(self, cgroup: str) -> float | None:
        """That of a cgroup; None where it has none, or can't be asked any more."""
        try:
            path = Path(cgroup) / ("memory.max" if self._version == 2 else "memory.limit_in_bytes")
            return int(path.read_text()) / _MB if cgroup else None
        except (OSError, ValueError):  # "max"
            return None

    def end_all(self, cgroup: str) -> None:
        """Kill what a worker that is gone left in its cgroup: processes that its model started."""
        if not cgroup:
            return
        with contextlib.suppress(OSError):  # it was never made, or is gone already
            for pid in (Path(cgroup) / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    def remove(self, cgroup: str) -> bool:
        """Whether the cgroup is gone; a process that is still ending keeps it for a moment."""
        if not cgroup:
            return True
        try:
            Path(cgroup).rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def _make_directory(version: int, name: str) -> Path | None:
    own = _own_cgroup(version)
    if own is None or not os.access(own, os.W_OK | os.X_OK):
        return None
    directory = own / name
    try:
        directory.mkdir(exist_ok=True)
        if version == 1:
            return directory if (directory / "memory.limit_in_bytes").exists() else None
    except OSError:
        return None
    if _delegate(own, own / f"{name}-agent", directory):
        return directory
    with contextlib.suppress(OSError):
        directory.rmdir()
    return None


def _own_cgroup(version: int) -> Path | None:
    """This process's cgroup with the memory controller. In a container its path may not be visible."""
    mount = _ROOT if version == 2 else _ROOT / "memory"
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if ("memory" in controllers.split(",")) if version == 1 else controllers == "":
            own = mount / path.lstrip("/")
            return own if own.is_dir() else mount if mount.is_dir() else None
    return None


def _delegate(own: Path, aside: Path, directory: Path) -> bool:
    """Give the memory controller to children of `directory`. v2 wants no process above: we step aside."""
    try:
        aside.mkdir(exist_ok=True)
        (aside / "cgroup.procs").write_text(str(os.getpid()))
        for parent in (own, directory):
            (parent / "cgroup.subtree_control").write_text("+memory")
    except OSError:  # others live in this cgroup: back to where we were
        with contextlib.suppress(OSError):
            (own / "cgroup.procs").write_text(str(os.getpid()))
            aside.rmdir()
        return False
    return True


def _data_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next((line.split()[1] for line in status.splitlines() if line.startswith("VmData:")), "0")
    return int(kilobytes) * 1024


def _write_if_there(path: Path, text: str) -> None:
    # Swap accounting is often compiled out or switched off.
    with contextlib.suppress(OSError):
        if path.exists():
            path.write_text(text)
