"""What is on disk of each worker, by which a restarted agent finds those that it left."""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from understudy.adapters.processes import process_stat

log = structlog.get_logger()


class Record(msgspec.Struct, frozen=True):
    """What is on disk of a worker. `start_ticks` tells it from a later process of the same number."""

    worker: str
    pid: int
    start_ticks: int
    socket: str
    cgroup: str  # the first of its groups: that of memory, if there is one
    environment: str = ""  # key of the pool that it was forked for
    tcp_address: str = ""
    cgroups_more: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """Where gateways reach it."""
        return self.tcp_address or f"unix:{self.socket}"

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.cgroup, *self.cgroups_more)))


class Records:
    """One file each."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def read(self) -> list[Record]:
        """All that can be; those that nobody wrote whole are removed."""
        records = []
        for path in self._directory.iterdir():
            try:
                records.append(msgspec.json.decode(path.read_bytes(), type=Record))
            except OSError as error:
                log.warning("record.unreadable", path=str(path), reason=str(error))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                path.unlink()
        return records

    def write(self, record: Record) -> None:
        path = self._path(record)
        partial = path.with_suffix(".partial")
        try:
            partial.write_bytes(msgspec.json.encode(record))
            partial.rename(path)
        except OSError as error:  # it works all the same; only a restarted agent won't find it
            log.warning("record.unwritten", worker=record.worker, reason=str(error))

    def remove(self, record: Record) -> None:
        self._path(record).unlink(missing_ok=True)

    def _path(self, record: Record) -> Path:
        return self._directory / f"{record.worker}.json"


def start_ticks_of(pid: int) -> int:
    """When a process started, in clock ticks since the machine did; -1 for one that has ended."""
    stat = process_stat(pid)
    return -1 if stat is None or stat.gone else stat.start_ticks
