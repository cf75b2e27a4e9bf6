"""What an operator may ask of the plan, and the answers, as records. Who works them out is in `answers`.

Part of the control API: names are stable, new fields have defaults. Imports nothing that takes time.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from understudy.failures import Site
from understudy.settings import Name, Positive

QUESTION_PARTS_MAX = 100  # domains lost, nodes added or removed
Domain = Annotated[str, Meta(min_length=1, max_length=1000)]
Parts = Meta(max_length=QUESTION_PARTS_MAX)


class NewNode(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A node that isn't there. Without a name it gets one; without a site it is in that of the first node."""

    memory_mb: Positive
    name: Name | None = None
    site: Site | None = None


class Question(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One of three: what if these are lost, what if these nodes come or go, why is an app where it is."""

    fail: Annotated[tuple[Domain, ...], Parts] = ()  # "n1", "eu/room-2", "node:n1", "any-2"
    add: Annotated[tuple[NewNode, ...], Parts] = ()
    remove: Annotated[tuple[Name, ...], Parts] = ()
    explain: Name | None = None


class Answered(msgspec.Struct, frozen=True):
    """Who answers for an app that a loss affects. `how`: warm, cold, static, none."""

    app: str
    criticality: str
    how: str
    variant: str | None = None  # at last; `first` answers until it is loaded
    first: str | None = None
    node: str | None = None
    accuracy: float = 0.0
    accuracy_lost: float = 0.0  # fraction of the full-size variant's
    recovery_ms: float = 0.0
    planned_for: str = ""  # failure of the contingency that acts; "any": none, the last resort
    why: str = ""  # nobody of its own answers
    lost: tuple[str, ...] = ()  # of "any-K": the nodes whose loss is its worst


class Fill(msgspec.Struct, frozen=True):
    """Memory of one node before, at the worst moment of swapping variants, and afterwards."""

    node: str
    memory_mb: float
    before_mb: float
    swapping_mb: float
    after_mb: float


class Held(msgspec.Struct, frozen=True):
    """Of a device, or of a node that has none: what the plan takes, and the most that a failure needs."""

    node: str
    device: str
    site: str
    memory_mb: float  # that may be used
    used_mb: float
    kept_mb: float = 0.0
    kept_for: str = ""


class NextPlan(msgspec.Struct, frozen=True):
    """The plan that the controller would make. Counts are of apps."""

    moved: int  # replicas started anew
    full_size: int
    smaller: int
    unplaced: tuple[str, ...]
    unanswered: int  # in some single failure to survive
    warnings: int
    method: str = ""
    solve_ms: float = 0.0


class Loss(msgspec.Struct, frozen=True):
    failure: str
    lost: tuple[str, ...]
    apps: tuple[Answered, ...]  # those affected
    unaffected: int
    fills: tuple[Fill, ...] = ()  # nodes that have to load something
    next_plan: NextPlan | None = None  # None: no node is left


class Together(msgspec.Struct, frozen=True):
    """Nodes that hurt when they are lost together."""

    lost: tuple[str, ...]
    unanswered: tuple[str, ...]  # apps
    smaller: int  # apps that are answered by less than their full-size variant


class AnyLoss(msgspec.Struct, frozen=True):
    """Whichever K nodes: the worst for each app, and the losses that hurt most."""

    failure: str
    tried: int  # losses, of `possible`: those of the nodes that hold most
    possible: int
    worst: tuple[Answered, ...]
    unaffected: int
    hurting: tuple[Together, ...]


class Kept(msgspec.Struct, frozen=True):
    """Of all apps: how many answer in every failure of a kind, and how many of these warm."""

    kind: str  # "node", "site", "any-2", …
    answered: int
    warm: int
    critical_warm: int


class Figures(msgspec.Struct, frozen=True):
    """What a plan achieves. Counts are of apps."""

    nodes: int
    apps: int
    critical: int
    objective: float
    retained: float  # objective, as a fraction of what a cluster without limits would have
    placed: int
    full_size: int
    kept: tuple[Kept, ...]
    memory_overhead: float


class PlanChange(msgspec.Struct, frozen=True):
    added: tuple[str, ...]
    removed: tuple[str, ...]
    before: Figures
    after: Figures
    moved: int
    starts: tuple[str, ...]  # "app/variant on node", the first of them
    warnings_gone: tuple[str, ...]
    warnings_new: tuple[str, ...]


class Reason(msgspec.Struct, frozen=True):
    """Sentences about one side of an app's place in the plan."""

    about: str  # place, larger, standby, failures, warm, batching
    sentences: tuple[str, ...]


class Explanation(msgspec.Struct, frozen=True):
    app: str
    version: int
    reasons: tuple[Reason, ...]


class QuestionAnswered(msgspec.Struct, frozen=True):
    """To a `Question`, on the plan of `revision`. `away`: nodes that are missing already."""

    revision: int
    away: tuple[str, ...] = ()
    loss: Loss | None = None
    any_loss: AnyLoss | None = None
    change: PlanChange | None = None
    explanation: Explanation | None = None


class Finding(msgspec.Struct, frozen=True):
    """A single point of failure. `part` is one of `Audit.looked_at`."""

    part: str
    name: str
    problem: str
    remedy: str
    answers: bool  # clients notice: requests aren't answered, or by less than they were


class Audit(msgspec.Struct, frozen=True):
    revision: int
    findings: tuple[Finding, ...]
    looked_at: dict[str, int]  # how many of each part there are
