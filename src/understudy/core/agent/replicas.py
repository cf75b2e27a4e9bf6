"""What a node's agent knows of each replica, and which of them its target calls for.

Lives here: the replica's record, its memory, and the match of what runs with what is wanted. Existing
processes are matched by (app, version, variant): the role is a label that changes without a restart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from understudy.core.agent.vitality import Vitality
from understudy.core.lifecycle import REPLICA, ReplicaPhase, advance
from understudy.settings.agent import AgentTuning
from understudy.wire.messages import ReplicaState
from understudy.wire.records import AppVersion, Role, Variant, VariantKey

LOADED = (ReplicaPhase.READY, ReplicaPhase.FAILING)
# These occupy memory.
LIVE = frozenset({ReplicaPhase.STARTING, ReplicaPhase.LOADING, *LOADED, ReplicaPhase.DRAINING})
LOAD_ALONE_S = 0.25  # a load has the processor to itself for so long
# Which of several equal replicas is kept when not all are wanted.
_KEEP_ORDER = (
    *LOADED,
    ReplicaPhase.LOADING,
    ReplicaPhase.STARTING,
    ReplicaPhase.BACKOFF,
    ReplicaPhase.QUARANTINED,
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A replica that should run here, and why."""

    app: AppVersion
    variant: Variant
    role: Role
    activation: str = ""
    brief: bool = False  # answers until a larger variant is ready: to be loaded quickly above all

    @property
    def key(self) -> VariantKey:
        return (self.app.app, self.app.version, self.variant.name)


@dataclass(slots=True, eq=False)
class Replica:
    """One replica across the worker processes that carry it; `id` is that of its newest worker.

    `wanted` is None for an adopted replica until a target calls for it. `asker` is the token of a
    measurement's asker; such a replica is nobody else's business.
    """

    id: str
    key: VariantKey
    wanted: Wanted | None
    state: ReplicaPhase = ReplicaPhase.BACKOFF
    worker: str = ""  # the process that carries it now, if any
    pid: int = 0
    address: str = ""
    memory_mb: float = 0.0
    restarts: int = 0
    detail: str = ""
    retry_at_s: float = 0.0  # in backoff
    load_at_s: float = -math.inf  # when it was given its model
    deadline_s: float = math.inf  # draining: then it is killed
    life: Vitality = field(default_factory=Vitality)
    refused_for_memory: bool = False
    trouble: str = ""  # of the node, which kept it from being loaded
    asker: int | None = None

    def advance(self, event: str) -> None:
        self.state = advance(REPLICA, self.state, event)

    def loads_alone(self, now: float) -> bool:
        """Whether its load began just now; one that takes long holds nothing else up."""
        return self.state == ReplicaPhase.LOADING and now < self.load_at_s + LOAD_ALONE_S

    def due_s(self, now: float) -> float:
        """When time alone will change something about it; infinity if it won't."""
        due_s = self.deadline_s
        if self.state == ReplicaPhase.BACKOFF and not self.refused_for_memory:
            due_s = min(due_s, self.retry_at_s)
        if self.state in LOADED and not self.life.asked:
            due_s = min(due_s, self.life.ask_at_s)
        if self.loads_alone(now):
            due_s = min(due_s, self.load_at_s + LOAD_ALONE_S)
        return due_s

    def view(self) -> ReplicaState:
        app, version, variant = self.key
        return ReplicaState(
            id=self.id,
            app=app,
            version=version,
            variant=variant,
            role=self.wanted.role if self.wanted else Role.PRIMARY,
            state=self.state,
            address=self.address,
            pid=self.pid,
            memory_mb=self.memory_mb,
            restarts=self.restarts,
            activation=self.wanted.activation if self.wanted else "",
            detail=self.detail,
        )


# Beyond what is counted: frames that are still arriving, and what an allocator can't give back.
REQUESTS_MARGIN = 1.5


def limit_mb(variant: Variant, tuning: AgentTuning, node_memory_mb: float) -> float:
    """Where the kernel stops the worker: as declared, derived from the profile, or the whole node's."""
    if variant.memory_limit_mb is not None:
        return variant.memory_limit_mb
    if variant.profile is None:
        return node_memory_mb
    replica_mb = max(tuning.memory_limit_mb_min, tuning.memory_limit_factor * variant.profile.replica_mb)
    return replica_mb + REQUESTS_MARGIN * tuning.request_memory_mb


def request_memory_mb(variant: Variant, tuning: AgentTuning) -> float:
    """What requests that are queued and running may take: less where a declared limit leaves less."""
    if variant.memory_limit_mb is None:
        return tuning.request_memory_mb
    replica_mb = variant.profile.replica_mb if variant.profile else 0.0
    left_mb = max(variant.memory_limit_mb - replica_mb, variant.memory_limit_mb / 4)
    return min(tuning.request_memory_mb, left_mb / REQUESTS_MARGIN)


def load_timeout_s(variant: Variant, tuning: AgentTuning) -> float:
    return tuning.load_timeout_s if variant.load_timeout_s is None else variant.load_timeout_s


@dataclass(slots=True)
class Match:
    """What runs against what is wanted."""

    kept: list[Replica] = field(default_factory=list)
    missing: list[Wanted] = field(default_factory=list)
    surplus: list[Replica] = field(default_factory=list)


def match(wanted: Iterable[Wanted], replicas: Iterable[Replica]) -> Match:
    """Give each wanted replica an existing one of its key, the most useful first, and relabel that."""
    result = Match()
    free: dict[VariantKey, list[Replica]] = {}
    for replica in sorted(replicas, key=lambda r: _KEEP_ORDER.index(r.state)):
        free.setdefault(replica.key, []).append(replica)
    for wish in wanted:
        candidates = free.get(wish.key)
        if not candidates:
            result.missing.append(wish)
            continue
        replica = candidates.pop(0)
        replica.wanted = wish
        result.kept.append(replica)
    result.surplus = [replica for candidates in free.values() for replica in candidates]
    return result


def still_needed(replica: Replica, kept: Iterable[Replica]) -> bool:
    """Whether an unwanted replica stays for now: it alone answers for its app until a wanted one is ready.

    Make before break. A successor that waits for memory would wait for ever, so it doesn't hold anything.
    """
    if replica.state != ReplicaPhase.READY:
        return False
    successors = [r for r in kept if r.key[0] == replica.key[0]]
    if any(r.state == ReplicaPhase.READY or r.refused_for_memory for r in successors):
        return False
    return bool(successors)
