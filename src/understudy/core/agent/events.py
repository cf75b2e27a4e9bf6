"""What an agent learns (events) and what it then does (effects): two closed unions.

The shell turns the world into events and carries effects out in order. `token` names whoever asked, so
that the shell can answer. `jitter` is a random number in [-1, 1] drawn by the shell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from understudy.core.agent.progressive import Activation
from understudy.core.agent.vitality import Signs
from understudy.wire.errors import Code
from understudy.wire.messages import (
    Activate,
    Activated,
    Loaded,
    Measure,
    Measured,
    NodeState,
    Target,
    WorkerStats,
)
from understudy.wire.records import AppVersion, ArtifactRef, Environment, Variant


class Saved(msgspec.Struct, frozen=True):
    """What a restarted agent must know without asking anybody."""

    target: Target | None = None
    activations: tuple[Activation, ...] = ()


# Events


@dataclass(frozen=True, slots=True)
class Started:
    """Adoption is over: from now on, replicas are started and stopped."""


@dataclass(frozen=True, slots=True)
class TargetReceived:
    target: Target


@dataclass(frozen=True, slots=True)
class CrashesExcused:
    """A gateway found a request guilty of the end of these workers."""

    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ActivateAsked:
    activate: Activate
    token: int


@dataclass(frozen=True, slots=True)
class MeasureAsked:
    measure: Measure
    token: int


@dataclass(frozen=True, slots=True)
class WorkerBlank:
    """A worker is connected and waits for a model."""

    worker: str
    pid: int
    address: str


@dataclass(frozen=True, slots=True)
class WorkerFound:
    """A worker of the agent's former life answers. Comes before `Started`."""

    worker: str
    address: str
    stats: WorkerStats
    environment: str = ""  # key of its pool


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """The process is gone, or could not be made."""

    worker: str
    reason: str
    out_of_memory: bool = False
    jitter: float = 0.0
    trouble: str = ""  # of the node, which ended it


@dataclass(frozen=True, slots=True)
class LoadDone:
    worker: str
    loaded: Loaded


@dataclass(frozen=True, slots=True)
class LoadFailed:
    worker: str
    code: Code
    message: str
    jitter: float = 0.0
    traceback: str = ""  # of the model's own code


@dataclass(frozen=True, slots=True)
class ProbePassed:
    """`proven_ago_s`: since an inference succeeded, of a probe or of a request. Infinity: not known."""

    worker: str
    proven_ago_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ProbeUnanswered:
    """The probe still waits: a busy replica is not a dead one. Comes again until it is answered or fails."""

    worker: str
    signs: Signs
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """`waited_s`: how long the agent really waited. Far beyond the timeout means that it was itself late."""

    worker: str
    reason: str
    waited_s: float = 0.0
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The connection to a worker broke; the process may live on."""

    worker: str


@dataclass(frozen=True, slots=True)
class BatchingEndedAt:
    """A worker saw that batching changes its model's answers, and batches no more."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class ArtifactStaged:
    digest: str


@dataclass(frozen=True, slots=True)
class ArtifactDropped:
    """The local copy is gone: evicted, or found corrupt."""

    digest: str


@dataclass(frozen=True, slots=True)
class EnvironmentChanged:
    """`problem`: empty when it is ready, else why it isn't yet, or can't be; None when it is gone."""

    key: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class PlaceChanged:
    """The node's disk: what is wrong with it, and what will be; empty where nothing is any more."""

    trouble: str
    warning: str


@dataclass(frozen=True, slots=True)
class Tick:
    """`due_s` has come."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Drain everything and end."""


Event = (
    Started | TargetReceived | ActivateAsked | CrashesExcused | MeasureAsked | WorkerBlank | WorkerFound
    | WorkerExited | LoadDone | LoadFailed | ProbePassed | ProbeUnanswered | ProbeFailed | LinkLost
    | ArtifactStaged | BatchingEndedAt | ArtifactDropped | EnvironmentChanged | PlaceChanged | Tick
    | StopAsked
)  # fmt: skip


# Effects


@dataclass(frozen=True, slots=True)
class ForkWorker:
    """Answered by `WorkerBlank` or `WorkerExited`."""

    worker: str
    environment: str = ""  # key of its pool; empty for Understudy's own installation without network


@dataclass(frozen=True, slots=True)
class LoadWorker:
    """Verify the artifact, limit the worker, load. Answered by `LoadDone`, `LoadFailed` or `WorkerExited`."""

    worker: str
    app: AppVersion
    variant: Variant
    limit_mb: float
    measure: bool = False  # time it: for a profile
    brief: bool = False  # rather soon than quick: it answers until a larger variant is ready


@dataclass(frozen=True, slots=True)
class ProbeWorker:
    """Answered by `Probe…` events, the last of which is `ProbePassed` or `ProbeFailed`, or by `WorkerExited`.

    `inference`: on the real path, unless a request proved as much since; else a no-op in the model's queue.
    """

    worker: str
    inference: bool = True


@dataclass(frozen=True, slots=True)
class CheckBlank:
    """Ask a blank worker for a sign of life. Answered as `ProbeWorker`."""

    worker: str


@dataclass(frozen=True, slots=True)
class EndBatching:
    """The worker is to run one request at a time from now on."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class DrainWorker:
    worker: str
    timeout_ms: float


@dataclass(frozen=True, slots=True)
class KillWorker:
    worker: str


@dataclass(frozen=True, slots=True)
class StageArtifacts:
    """Have these on local disk, in this order. `keep` may not be evicted to make room."""

    artifacts: tuple[ArtifactRef, ...]
    keep: frozenset[str]


@dataclass(frozen=True, slots=True)
class HaveEnvironments:
    """Have these ready, in this order. Answered by `EnvironmentChanged`."""

    environments: tuple[Environment, ...]


@dataclass(frozen=True, slots=True)
class KeepZygotes:
    """Those of all other pools may end; workers that they forked live on."""

    pools: frozenset[str]


@dataclass(frozen=True, slots=True)
class AnswerActivate:
    token: int
    activated: Activated


@dataclass(frozen=True, slots=True)
class AnswerMeasure:
    token: int
    measured: Measured


@dataclass(frozen=True, slots=True)
class RefuseMeasure:
    token: int
    code: Code
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Publish:
    """The node looks different: tell everybody who listens."""

    state: NodeState


@dataclass(frozen=True, slots=True)
class Tell:
    """For the event log: `kind` is a name of `registry.EVENTS`."""

    kind: str
    message: str
    app: str = ""
    replica: str = ""
    data: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Save:
    saved: Saved


@dataclass(frozen=True, slots=True)
class Stopped:
    """Every worker is gone."""


Effect = (
    ForkWorker | LoadWorker | ProbeWorker | CheckBlank | EndBatching | DrainWorker | KillWorker
    | StageArtifacts | HaveEnvironments | KeepZygotes | AnswerActivate | AnswerMeasure | RefuseMeasure
    | Publish | Tell | Save | Stopped
)  # fmt: skip
