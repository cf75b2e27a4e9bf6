"""What the controller learns (events) and what it then does (effects): two closed unions.

Every effect says why. The shell carries effects out in order and stamps notes with time and source.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from understudy.core.controller.stored import PlanFacts, Release, Save
from understudy.core.planning.plan import PlanInput
from understudy.wire.messages import Heartbeat, Hello, NodeState, Target
from understudy.wire.records import Plan, RouteTable

# Events


@dataclass(frozen=True, slots=True)
class Started:
    """The first event."""


@dataclass(frozen=True, slots=True)
class AgentHello:
    hello: Hello


@dataclass(frozen=True, slots=True)
class AgentLost:
    """The connection broke; node and agent may live on."""

    node: str


@dataclass(frozen=True, slots=True)
class StateReported:
    state: NodeState


@dataclass(frozen=True, slots=True)
class HeartbeatHeard:
    beat: Heartbeat


@dataclass(frozen=True, slots=True)
class GatewayHello:
    name: str
    revision: int  # of the route table that it holds; 0: none


@dataclass(frozen=True, slots=True)
class HeldTold:
    """A peer sent back what it got last from a controller, us or another."""

    role: str
    name: str
    held: RouteTable | Target


@dataclass(frozen=True, slots=True)
class Deployed:
    """A new version is stored and becomes the current one."""

    release: Release


@dataclass(frozen=True, slots=True)
class ManifestNoted:
    """What is current was asked for by a manifest, once more or by another one."""

    app: str
    manifests: dict[str, str]  # as in `CurrentVersion`


@dataclass(frozen=True, slots=True)
class Removed:
    """An app is gone from the store."""

    app: str


@dataclass(frozen=True, slots=True)
class DrainAsked:
    node: str


@dataclass(frozen=True, slots=True)
class UndrainAsked:
    node: str


@dataclass(frozen=True, slots=True)
class QuarantineCleared:
    app: str
    variant: str


@dataclass(frozen=True, slots=True)
class Planned:
    """The answer to `MakePlan`. `facts` are those that it was made from."""

    plan: Plan
    facts: PlanFacts


@dataclass(frozen=True, slots=True)
class PlanningFailed:
    message: str


@dataclass(frozen=True, slots=True)
class Tick:
    """reconcile_interval_ms have passed."""


Event = (
    Started | AgentHello | AgentLost | StateReported | HeartbeatHeard | GatewayHello | HeldTold | Deployed
    | ManifestNoted | Removed | DrainAsked | UndrainAsked | QuarantineCleared | Planned | PlanningFailed
    | Tick
)  # fmt: skip

# Effects


@dataclass(frozen=True, slots=True)
class MakePlan:
    """Solve in a thread. Answered by `Planned` or `PlanningFailed`; no other is asked for before."""

    input: PlanInput
    facts: PlanFacts
    revision: int
    reason: str


@dataclass(frozen=True, slots=True)
class SendTarget:
    node: str
    target: Target
    reason: str


@dataclass(frozen=True, slots=True)
class SendRoutes:
    table: RouteTable
    gateway: str  # "": to all
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """For the event log: `kind` is a name of `registry.EVENTS`, `message` says why."""

    kind: str
    message: str
    app: str = ""
    node: str = ""
    data: dict[str, Any] = field(default_factory=dict)


Effect = MakePlan | SendTarget | SendRoutes | Save | Note
