"""Lifecycles as enums and tables: state x event -> state. A pair that is missing is a broken invariant.

The values are what travels and what people are shown; messages hold them as text, because a newer peer may
have others. They are called phases where ReplicaState and NodeState are messages. Diagrams in the docs are
drawn from these tables.

Elsewhere is what one machine alone goes by: how a gateway sees a replica and how its breakers stand
(`core.gateway.lifecycles`), and whether an agent runs (`core.agent.machine`), which goes one way only and
needs no table. What follows from others' states at the moment has none either (`core.views.AppHealth`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from understudy.invariants import check

Phase = TypeVar("Phase", bound=StrEnum)
Table = dict[tuple[Phase, str], Phase]


class ReplicaPhase(StrEnum):
    """A replica, as its agent sees it. READY and FAILING ones are loaded; only READY ones get traffic."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    FAILING = "failing"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"
    DRAINING = "draining"
    STOPPED = "stopped"


class NodePhase(StrEnum):
    """A node, as the controller sees it. Only READY nodes get primaries; RETURNING ones wait, empty."""

    UNKNOWN = "unknown"
    READY = "ready"
    SUSPECT = "suspect"
    DEAD = "dead"
    RETURNING = "returning"
    DRAINED = "drained"


class WorkerPhase(StrEnum):
    """A worker process: BLANK at first, then one replica."""

    BLANK = "blank"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class CasePhase(StrEnum):
    """A variant that crashes again and again, as the controller sees it. QUARANTINED ones run nowhere."""

    DOUBTED = "doubted"
    QUARANTINED = "quarantined"
    ON_TRIAL = "on trial"
    CLOSED = "closed"


class DeploymentPhase(StrEnum):
    """A deployment. KEPT: nothing was changed, because a newer version is there."""

    STAGING = "staging"
    PROFILING = "profiling"
    PLACING = "placing"
    READY = "ready"
    FAILED = "failed"
    KEPT = "kept"


REPLICA: Table[ReplicaPhase] = {
    (ReplicaPhase.STARTING, "worker_started"): ReplicaPhase.LOADING,
    (ReplicaPhase.STARTING, "crashed"): ReplicaPhase.BACKOFF,
    (ReplicaPhase.LOADING, "loaded"): ReplicaPhase.READY,
    (ReplicaPhase.LOADING, "load_failed"): ReplicaPhase.BACKOFF,
    (ReplicaPhase.LOADING, "crashed"): ReplicaPhase.BACKOFF,
    (ReplicaPhase.READY, "probe_failed"): ReplicaPhase.FAILING,
    (ReplicaPhase.READY, "crashed"): ReplicaPhase.BACKOFF,
    (ReplicaPhase.FAILING, "probe_passed"): ReplicaPhase.READY,
    (ReplicaPhase.FAILING, "gave_up"): ReplicaPhase.BACKOFF,
    (ReplicaPhase.FAILING, "crashed"): ReplicaPhase.BACKOFF,
    (ReplicaPhase.BACKOFF, "retried"): ReplicaPhase.STARTING,
    (ReplicaPhase.BACKOFF, "crash_looped"): ReplicaPhase.QUARANTINED,
    (ReplicaPhase.STARTING, "released"): ReplicaPhase.STOPPED,
    (ReplicaPhase.LOADING, "released"): ReplicaPhase.DRAINING,
    (ReplicaPhase.READY, "released"): ReplicaPhase.DRAINING,
    (ReplicaPhase.FAILING, "released"): ReplicaPhase.DRAINING,
    (ReplicaPhase.BACKOFF, "released"): ReplicaPhase.STOPPED,
    (ReplicaPhase.QUARANTINED, "released"): ReplicaPhase.STOPPED,
    (ReplicaPhase.DRAINING, "drained"): ReplicaPhase.STOPPED,
    (ReplicaPhase.DRAINING, "crashed"): ReplicaPhase.STOPPED,
}
NODE: Table[NodePhase] = {
    (NodePhase.UNKNOWN, "hello"): NodePhase.READY,
    (NodePhase.UNKNOWN, "lease_lost"): NodePhase.DEAD,
    (NodePhase.READY, "heartbeat_missed"): NodePhase.SUSPECT,
    (NodePhase.READY, "link_lost"): NodePhase.SUSPECT,
    (NodePhase.SUSPECT, "heartbeat"): NodePhase.READY,
    (NodePhase.SUSPECT, "hello"): NodePhase.READY,
    (NodePhase.SUSPECT, "lease_lost"): NodePhase.DEAD,
    (NodePhase.DEAD, "hello"): NodePhase.RETURNING,
    (NodePhase.RETURNING, "stable"): NodePhase.READY,
    (NodePhase.RETURNING, "heartbeat_missed"): NodePhase.DEAD,
    (NodePhase.RETURNING, "link_lost"): NodePhase.DEAD,
    (NodePhase.READY, "drain_asked"): NodePhase.DRAINED,
    (NodePhase.DRAINED, "undrain_asked"): NodePhase.READY,
    (NodePhase.DRAINED, "lease_lost"): NodePhase.DEAD,
}
WORKER: Table[WorkerPhase] = {
    (WorkerPhase.BLANK, "load_asked"): WorkerPhase.LOADING,
    (WorkerPhase.LOADING, "loaded"): WorkerPhase.READY,
    (WorkerPhase.LOADING, "load_failed"): WorkerPhase.BLANK,
    (WorkerPhase.BLANK, "drain_asked"): WorkerPhase.DRAINING,
    (WorkerPhase.LOADING, "drain_asked"): WorkerPhase.DRAINING,
    (WorkerPhase.READY, "drain_asked"): WorkerPhase.DRAINING,
    (WorkerPhase.DRAINING, "loaded"): WorkerPhase.DRAINING,
    (WorkerPhase.DRAINING, "load_failed"): WorkerPhase.DRAINING,
}
CASE: Table[CasePhase] = {
    (CasePhase.DOUBTED, "convicted"): CasePhase.QUARANTINED,
    (CasePhase.DOUBTED, "proved"): CasePhase.CLOSED,
    (CasePhase.QUARANTINED, "tried"): CasePhase.ON_TRIAL,
    (CasePhase.ON_TRIAL, "crashed"): CasePhase.QUARANTINED,
    (CasePhase.ON_TRIAL, "unanswered"): CasePhase.QUARANTINED,
    (CasePhase.ON_TRIAL, "proved"): CasePhase.CLOSED,
}
DEPLOYMENT: Table[DeploymentPhase] = {
    (DeploymentPhase.STAGING, "prepared"): DeploymentPhase.PROFILING,
    (DeploymentPhase.PROFILING, "measured"): DeploymentPhase.PLACING,
    (DeploymentPhase.PLACING, "settled"): DeploymentPhase.READY,
    (DeploymentPhase.STAGING, "found_unchanged"): DeploymentPhase.READY,
    (DeploymentPhase.STAGING, "left_alone"): DeploymentPhase.KEPT,
    (DeploymentPhase.STAGING, "recalled"): DeploymentPhase.PLACING,
    (DeploymentPhase.STAGING, "failed"): DeploymentPhase.FAILED,
    (DeploymentPhase.PROFILING, "failed"): DeploymentPhase.FAILED,
    (DeploymentPhase.PLACING, "failed"): DeploymentPhase.FAILED,
}
FINISHED = (DeploymentPhase.READY, DeploymentPhase.FAILED, DeploymentPhase.KEPT)  # a deployment


def advance(table: Table[Phase], state: Phase, event: str) -> Phase:
    """The next state. Breaks an invariant if `event` can't happen in `state`."""
    check((state, event) in table, f"{event!r} can't happen in state {str(state)!r}")
    return table[(state, event)]


def permits(table: Table[Phase], state: Phase, event: str) -> bool:
    return (state, event) in table
