"""What protection costs: memory of the cluster's processes, measured from outside."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from understudy.adapters.memory import pss_mb
from understudy.demo.scenario import ReplicaFacts
from understudy.local.supervisor import Cluster
from understudy.wire.records import Role


class MemoryUse(NamedTuple):
    """PSS in MiB: shared pages are split among those who share them, so sums count them once."""

    primaries: float
    standbys: float
    blank_workers: float
    agents_and_zygotes: float

    @property
    def overhead_pct(self) -> float:
        """What is there only for failures, by what serves."""
        if not self.primaries:
            return 0.0
        return (self.standbys + self.blank_workers) / self.primaries * 100.0


def measure(cluster: Cluster, replicas: Iterable[ReplicaFacts]) -> MemoryUse:
    """Every process of every node. Takes a few milliseconds for each."""
    roles = {replica.pid: replica.role for replica in replicas}
    ours = _processes_of("self")
    # What is beside a worker behind its walls is there for it.
    beside = {_processes_of(pid): role for pid, role in roles.items()}
    for nobodys in (ours, ""):
        beside.pop(nobodys, None)
    sums = dict.fromkeys(MemoryUse._fields, 0.0)
    for (role, _), process in cluster.roles.items():
        if role != "agent":
            continue
        for pid in process.pids():
            try:
                kind = _kind(pid, process.pid, roles.get(pid) or beside.get(_processes_of(pid)))
                sums[kind] += pss_mb(pid)
            except OSError:
                continue  # it ended meanwhile
    return MemoryUse(**sums)


def _kind(pid: int, agent: int, role: str | None) -> str:
    if role is not None:
        return "primaries" if role == Role.PRIMARY else "standbys"
    # An agent starts its zygote, a zygote forks the workers.
    return "agents_and_zygotes" if agent in (pid, _parent(pid)) else "blank_workers"


def _processes_of(pid: int | str) -> str:
    """The namespace of processes that it is in; empty if it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
