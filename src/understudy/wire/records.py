"""Records that are stored and sent: apps, variants, nodes, plans.

One shape for both, so that what the controller stored is what the gateway reads. Unknown fields are
ignored and new fields have defaults: an old process reads what a new one wrote, and the other way round.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from understudy.wire.numbers import NonNegative, Positive

VariantKey = tuple[str, int, str]  # (app, version, variant)


class Criticality(StrEnum):
    """What an app is worth when room or time is short."""

    CRITICAL = "critical"
    STANDARD = "standard"
    BEST_EFFORT = "best-effort"


class Role(StrEnum):
    """Why a replica exists."""

    PRIMARY = "primary"
    STANDBY = "standby"
    CONTINGENCY = "contingency"


class Finite(StrEnum):
    """Whether an output may hold NaN and infinity."""

    REQUIRED = "required"
    ALLOWED = "allowed"


class TensorSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """Name, datatype (a name of `tensors.DATATYPES`) and shape; -1 stands for any length.

    Nothing but what differs from the defaults is ever written down.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False  # an input that clients may leave out
    hint: bool = False  # the shape is what a file says or was seen, not a promise: others are let through
    finite: Finite = Finite.REQUIRED
    labels: tuple[str, ...] = ()  # of the classes that are an output's columns
    format: str = ""  # of an input that is an image: "FORMAT_NCHW" or "FORMAT_NHWC", for those who ask


class ArtifactRef(msgspec.Struct, frozen=True):
    """A file by content. `format` is `file`, or `tar` for a packed directory."""

    digest: str  # lower-case SHA-256, 64 hexadecimal digits
    size_bytes: int
    file_name: str
    format: str = "file"


class Environment(msgspec.Struct, frozen=True):
    """What a variant's workers run in, where that isn't Understudy's own installation.

    Either packages of the variant's own, before those of the installation, or another interpreter.
    """

    wheels: ArtifactRef | None = None  # packed into one file
    python: str = ""  # path of an interpreter on every node

    @property
    def key(self) -> str:
        """The same for the same content; never empty."""
        return self.wheels.digest if self.wheels is not None else self.python


class Profile(msgspec.Struct, frozen=True):
    """What a variant costs, measured in a real worker when it was imported: as its model's process says."""

    base_mb: NonNegative  # PSS of a blank worker before loading
    memory_mb: NonNegative  # PSS that loading and one inference added
    load_ms: NonNegative  # Load sent -> first inference done
    latency_ms: NonNegative  # median of single-row inferences inside the worker
    measured_on: str = ""
    memory_per_byte: NonNegative = 0.0  # of inputs: what an inference adds at its peak; 0: not measured
    output_per_byte: NonNegative = 0.0  # of inputs

    @property
    def replica_mb(self) -> float:
        """PSS of a whole replica: what placing one more costs its node."""
        return self.base_mb + self.memory_mb


class BatchingVerdict(msgspec.Struct, frozen=True):
    """Whether requests to a variant may share a batch, and how that is known.

    `by`: graph (proven), rehearsal, declared (the app insists), setting, shape, service (seen at work).
    """

    together: bool
    by: str
    reason: str

    @property
    def sentence(self) -> str:
        return f"{'runs together' if self.together else ONE_AT_A_TIME}: {self.reason}"


ONE_AT_A_TIME = "one request at a time"


class Variant(msgspec.Struct, frozen=True):
    """One member of an app's family. `accuracy` is a fraction in [0, 1]."""

    name: str
    runtime: str  # onnx | python
    artifact: ArtifactRef
    accuracy: float
    options: dict[str, Any] = {}
    memory_limit_mb: Positive | None = None  # None: derived from the profile
    profile: Profile | None = None
    environment: Environment | None = None  # None: Understudy's own installation
    load_timeout_s: Positive | None = None  # None: the cluster's
    verdict: BatchingVerdict | None = None  # None: never found out, so its requests run one at a time
    network: bool = False  # whether its code may use it

    @property
    def environment_key(self) -> str:
        """Empty for Understudy's own installation."""
        return self.environment.key if self.environment is not None else ""

    @property
    def artifacts(self) -> tuple[ArtifactRef, ...]:
        """All that it is made of."""
        wheels = self.environment.wheels if self.environment is not None else None
        return (self.artifact,) if wheels is None else (self.artifact, wheels)

    @property
    def requisites(self) -> frozenset[str]:
        """What a node has to have before it can run it: a digest, and the key of an environment."""
        return frozenset({self.artifact.digest, self.environment_key} - {""})

    @property
    def batching(self) -> str:
        """Whether its requests share batches, and why, for people."""
        if self.verdict is None:
            return f"{ONE_AT_A_TIME}: it was never found out whether they may share a batch; deploy it again"
        return self.verdict.sentence


class Batching(msgspec.Struct, frozen=True):
    """What an app wants. `tolerance`: a fraction of an answer's magnitude, instead of the datatype's own."""

    rows_max: int = 32
    wait_us: int = 0
    mode: str = "auto"
    tolerance: float | None = None


REPLICA_LINKS = ("smaller-variant", "previous-version")  # of a fallback chain: replicas of the app itself
DEFAULT_FALLBACK = (*REPLICA_LINKS, "static")
OTHER_APP = "app:"  # begins the link that names another app


def fallback_mistake(links: tuple[str, ...], static: bool) -> str:
    """What is wrong with a chain, as a sentence; empty if it is fine. `static`: the app declares one."""
    for index, link in enumerate(links):
        if link in links[:index]:
            return f"{link!r} is named twice"
        earlier = REPLICA_LINKS[: REPLICA_LINKS.index(link)] if link in REPLICA_LINKS else ()
        if link in REPLICA_LINKS and any(other not in earlier for other in links[:index]):
            return (
                f"{link!r} must come earlier: the order is smaller-variant, previous-version, then the others"
            )
    if "static" in links and not static:
        return "'static' is named, but the app declares no static answer"
    if static and "static" not in links:
        return "the app declares a static answer, but 'static' is not named"
    return ""


class ClientRate(msgspec.Struct, frozen=True):
    """What one client may ask of an app, at each process of a gateway."""

    requests_per_s: float
    burst: int = 10  # at once, after a pause


class AppVersion(msgspec.Struct, frozen=True):
    """An immutable, numbered release of an app. `variants` are ordered best first; [0] is full-size."""

    app: str
    version: int
    variants: tuple[Variant, ...]
    criticality: Criticality = Criticality.STANDARD
    weight: Positive = 1.0
    replicas: int = 1
    idempotent: bool = True
    deadline_ms: Positive = 1000.0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    batching: Batching = Batching()
    static: dict[str, Any] | None = None  # {"outputs": [...]} of an inference response
    probe: dict[str, Any] | None = None  # an inference request; None: zeros of the declared shapes
    fallback: tuple[str, ...] = DEFAULT_FALLBACK  # what answers when the full-size variant can't, in order
    objective_ms: Positive | None = None  # latency to keep; variants that can't aren't placed
    brownout: bool = True  # when overloaded for long, ready smaller variants answer what would be shed
    client_rate: ClientRate | None = None
    requests_per_s: NonNegative = 0.0  # expected of all clients; 0: not stated, so it takes no compute
    content: str = ""  # digest of what was deployed
    manifests: dict[str, str] = {}  # digest of a manifest's path -> of what it last brought; the newest few
    finite: Finite = Finite.REQUIRED  # of all its outputs
    missing: str = "refused"  # "nan": null and NaN in JSON reach the model as NaN
    stand_in_for: tuple[str, ...] = ()  # patterns of apps whose clients it answers, whatever they may ask

    @property
    def links_beyond_replicas(self) -> tuple[str, ...]:
        """The part of `fallback` that is not replicas of this app: "app:NAME", "last-good", "static"."""
        links = [link for link in self.fallback if link not in REPLICA_LINKS]
        return tuple(link for link in links if link != "static" or self.static is not None)

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """Names of the other apps in `fallback`."""
        return tuple(link.removeprefix(OTHER_APP) for link in self.fallback if link.startswith(OTHER_APP))

    @property
    def objective_s(self) -> float:
        """The declared objective, at most the deadline; else half the deadline."""
        objective_ms = self.deadline_ms / 2 if self.objective_ms is None else self.objective_ms
        return min(objective_ms, self.deadline_ms) / 1000

    def variant(self, name: str) -> Variant | None:
        return next((v for v in self.variants if v.name == name), None)

    def rank(self, name: str) -> int:
        """0 for the full-size variant, 1 for the next best, …; unknown names come last."""
        return next((i for i, v in enumerate(self.variants) if v.name == name), len(self.variants))

    @property
    def full_size(self) -> Variant:
        return self.variants[0]

    @property
    def smallest(self) -> Variant:
        """The variant that loads with the least memory (file size where nothing was measured yet)."""
        return min(
            self.variants,
            key=lambda v: (v.profile.replica_mb if v.profile else 0.0, v.artifact.size_bytes),
        )


class Device(msgspec.Struct, frozen=True):
    """A part of a node with memory and compute of its own: an accelerator, a socket."""

    name: str
    memory_mb: NonNegative
    cores: NonNegative = 0.0  # like the one that profiled its variants; 0: not limited


class NodeInfo(msgspec.Struct, frozen=True):
    name: str
    site: str  # a path, the largest place first: "eu/room-2/rack-7"
    address: str  # of its agent: "unix:/path" or "tcp:host:port"
    memory_mb: NonNegative  # of all its devices together
    cores: NonNegative = 0.0  # as a device's, for a node without devices
    devices: tuple[Device, ...] = ()


class Placement(msgspec.Struct, frozen=True):
    app: str
    version: int
    variant: str
    node: str
    role: Role
    device: str = ""  # of the node; empty where it has none

    @property
    def key(self) -> VariantKey:
        return self.app, self.version, self.variant


class Contingency(msgspec.Struct, frozen=True):
    """What to do for `app` when `failure` (see `understudy.failures`) silences it.

    "any-K" is a further way back: for when the nodes of its replicas, and those of the contingencies before
    it, are lost together, K in all. `first` is loaded first because it loads fastest; `variant` then replaces
    it. Equal when one step is enough.
    """

    app: str
    version: int
    failure: str
    node: str
    first: str
    variant: str
    device: str = ""

    @property
    def key(self) -> str:
        return f"{self.app}/{self.failure}"


class Outcome(msgspec.Struct, frozen=True):
    """Proof line: what answers for `app` after `failure`. `how`: warm, cold, static, none.

    What a failure doesn't affect has no line. For "any-K" it is the worst that any such loss does.
    """

    failure: str
    app: str
    how: str
    variant: str | None
    node: str | None
    accuracy: float
    recovery_ms: float


class Plan(msgspec.Struct, frozen=True):
    """One revision of where everything is and what happens when something is lost."""

    revision: int
    placements: tuple[Placement, ...] = ()
    contingencies: tuple[Contingency, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    unplaced: dict[str, str] = {}  # app -> why it has no primary
    warnings: tuple[str, ...] = ()  # single points of failure and unmet wishes, one sentence each
    objective: float = 0.0
    gap: float = 0.0  # no plan is better by more than this fraction
    solve_ms: float = 0.0
    method: str = ""  # exact | heuristic: what found it
    moved: int = 0  # replicas that the plan before didn't have
    reason: str = ""  # why this revision was made


class Removal(msgspec.Struct, frozen=True):
    """An app was removed when `newest` was its newest version. What is newer was deployed afterwards."""

    app: str
    newest: int


class RouteTable(msgspec.Struct, frozen=True):
    """What a gateway needs to serve without anybody's help. Replica addresses come from the agents."""

    revision: int
    nodes: tuple[NodeInfo, ...] = ()
    apps: tuple[AppVersion, ...] = ()
    contingencies: tuple[Contingency, ...] = ()
    placements: tuple[Placement, ...] = ()
    quarantined: tuple[VariantKey, ...] = ()
    cluster: str = ""
    previous: tuple[AppVersion, ...] = ()  # the version before, of apps that may be answered by it
    removed: tuple[Removal, ...] | None = None  # the newest removals; None: whatever is absent is removed
    plan_revision: int = 0


class Event(msgspec.Struct, frozen=True):
    """Something that happened, for people and for the event log. `kind` is `noun.verb_past`."""

    kind: str
    at_unix_ms: int
    source: str  # "gateway:g1", "agent:n1", "controller:c1"
    message: str
    app: str = ""
    node: str = ""
    replica: str = ""
    data: dict[str, Any] = {}
