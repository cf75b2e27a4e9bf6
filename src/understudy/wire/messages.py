"""What processes say to each other: one struct per message, one frame kind per struct.

Who speaks to whom (the right-hand side listens):

    gateway -> worker       Infer, Cancel                          Result, Failure
    agent   -> worker       Load, Probe, Ping, Stats, Drain        Loaded, Probed, Pong, WorkerStats, Drained
    agent   -> worker       Rehearse, BatchingEnded                Rehearsed, BatchingEnded
    gateway -> agent        Hello, Activate, Excuse                Hello, NodeState, Heartbeat, Activated
    agent   -> controller   Hello, NodeState, Heartbeat, Report    Hello, Target, Measure, ReadArtifact
                            Measured, ArtifactPart, Prepared       Prepare
    gateway -> controller   Hello, Report, GatewayStats            Hello, RouteTable

What an agent or gateway holds of a controller (target, route table) it sends back to each that it meets:
that one may know less. A reply carries the stream of its request. Messages nobody asked for use stream 0.
`Failure` answers any request. Unknown kinds and unknown fields are ignored, so that versions can be mixed
during an upgrade.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache
from typing import Any

import msgspec

from understudy.wire.errors import Code, ProtocolError, UnderstudyError
from understudy.wire.frames import HEADER_BYTES_MAX, LARGE_BYTES, Buffer, Frame, encode_frame, frame_head
from understudy.wire.numbers import NonNegative
from understudy.wire.records import (
    AppVersion,
    ArtifactRef,
    Batching,
    BatchingVerdict,
    Contingency,
    Device,
    Environment,
    Event,
    Finite,
    Profile,
    Removal,
    Role,
    RouteTable,
    TensorSpec,
    VariantKey,
)

PROTOCOL = 1
ARTIFACT_PART_BYTES = 1024 * 1024


class Kind(IntEnum):
    INFER = 1
    RESULT = 2
    FAILURE = 3
    CANCEL = 4
    PING = 5
    PONG = 6
    HELLO = 10
    LOAD = 20
    LOADED = 21
    PROBE = 22
    PROBED = 23
    STATS = 24
    WORKER_STATS = 25
    DRAIN = 26
    DRAINED = 27
    BATCHING_ENDED = 28
    REHEARSE = 29
    NODE_STATE = 30
    HEARTBEAT = 31
    ACTIVATE = 32
    ACTIVATED = 33
    EXCUSE = 39
    TARGET = 34
    MEASURE = 35
    MEASURED = 36
    READ_ARTIFACT = 37
    ARTIFACT_PART = 38
    ROUTES = 40
    REPORT = 41
    GATEWAY_STATS = 42
    PREPARE = 43
    PREPARED = 44
    REHEARSED = 50


class Infer(msgspec.Struct, array_like=True):
    """Header of a request; the payload is the client's body as it came."""

    timeout_us: int  # what is left of the deadline when the frame was written
    json_bytes: int = -1  # length of the JSON part of a body with binary tensors; -1: all JSON


class Result(msgspec.Struct, array_like=True):
    """Header of an answer; the payload is the response body for the client."""

    infer_us: int = 0
    queue_us: int = 0
    rows: int = 1  # rows of the batch that it was part of
    json_bytes: int = -1


class Failure(msgspec.Struct):
    code: Code
    message: str
    context: dict[str, Any] = {}
    traceback: str = ""  # of the model's own code

    def error(self) -> UnderstudyError:
        error = UnderstudyError(self.code, self.message, **self.context)
        error.traceback = self.traceback
        return error


class Cancel(msgspec.Struct, array_like=True):
    """Nobody waits any more for the answer on this stream. Best effort; no reply."""


class Ping(msgspec.Struct, array_like=True):
    pass


class Pong(msgspec.Struct, array_like=True):
    pass


class Hello(msgspec.Struct):
    """First message in both directions of every link but those to workers."""

    role: str  # gateway | agent | controller
    name: str
    protocol: int = PROTOCOL
    incarnation: int = 0  # grows with each start of the process
    address: str = ""  # where this process listens for frames, if it does
    site: str = ""
    memory_mb: NonNegative = 0.0
    cores: NonNegative = 0.0
    devices: tuple[Device, ...] = ()
    revision: int = 0  # newest route table or target that it holds
    sandbox: str = ""  # of a node's models: its tier, and in parentheses what it lacks here


class Load(msgspec.Struct):
    """Turn a blank worker into a replica. Answered by `Loaded` after a real inference succeeded."""

    replica: str
    app: str
    version: int
    variant: str
    runtime: str
    path: str  # verified file (or unpacked directory) on local disk
    options: dict[str, Any] = {}
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    batching: Batching = Batching()
    probe: dict[str, Any] | None = None
    queue_rows_max: int = 256
    measure_latency_runs: int = 1  # inferences timed after loading; 1: the mandatory first one
    request_memory_mb: float = 0.0  # for requests that are queued and running; 0: not limited
    memory_per_byte: float = 0.0  # as in `Profile`
    output_per_byte: float = 0.0
    finite: Finite = Finite.REQUIRED
    missing: str = "refused"  # as in `AppVersion`
    verdict: BatchingVerdict | None = None  # None: requests run one at a time


class Loaded(msgspec.Struct):
    """Memory is 0 unless more than one latency run was asked for: only then is it read."""

    load_ms: NonNegative
    first_inference_ms: NonNegative
    latency_ms: NonNegative
    base_mb: NonNegative
    memory_mb: NonNegative
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...] = ()  # what was found to be other than the file or the manifest says
    memory_per_byte: NonNegative = 0.0  # as in `Profile`, and measured when memory is
    output_per_byte: NonNegative = 0.0
    verdict: BatchingVerdict | None = None  # of a variant that is measured, filled in by the agent


class Rehearse(msgspec.Struct):
    """Find out whether requests to the loaded model may share a batch.

    Takes some inferences. LOAD_FAILED where the app insists on batching against the evidence.
    """


class Rehearsed(msgspec.Struct):
    verdict: BatchingVerdict


class Probe(msgspec.Struct):
    """Run the probe input through the same queue and batcher as any request; or only a no-op, behind them."""

    inference: bool = True


class Probed(msgspec.Struct):
    latency_ms: float


class Stats(msgspec.Struct):
    pass


class WorkerStats(msgspec.Struct):
    pid: int
    state: str  # a core.lifecycle.WorkerPhase
    replica: str = ""
    app: str = ""
    version: int = 0
    variant: str = ""
    requests: int = 0
    failures: int = 0
    queued: int = 0
    pss_mb: NonNegative = 0.0
    infer_us_mean: float = 0.0
    batches: int = 0  # executed; one that stands still while something is queued is a model that hangs
    tcp_address: str = ""  # "tcp:host:port" if the worker listens there too
    batching_ended: str = ""  # why, if it was found to change answers


class BatchingEnded(msgspec.Struct):
    """Requests to the variant run one at a time from now on, because batching changed an answer.

    A worker tells its agent what it saw; an agent tells its workers what another one saw. Not answered.
    """

    reason: str


class Drain(msgspec.Struct):
    """Finish what is queued, refuse anything new with DRAINING, answer `Drained`, exit with status 0."""

    timeout_ms: float = 5000.0


class Drained(msgspec.Struct):
    finished: int


class ReplicaState(msgspec.Struct, frozen=True):
    """A replica as its agent sees it. `state` is a core.lifecycle.ReplicaPhase."""

    id: str  # unique per worker process
    app: str
    version: int
    variant: str
    role: Role
    state: str
    address: str = ""
    pid: int = 0
    memory_mb: float = 0.0
    restarts: int = 0
    activation: str = ""  # key of the contingency that created it
    detail: str = ""

    @property
    def key(self) -> VariantKey:
        return self.app, self.version, self.variant


class NodeState(msgspec.Struct):
    """Everything on a node. Sent whole, at once after each change and after each Hello."""

    node: str
    incarnation: int
    serial: int  # grows with each change; an older one is ignored
    target_revision: int
    replicas: tuple[ReplicaState, ...] = ()
    staged: tuple[str, ...] = ()  # digests
    quarantined: tuple[VariantKey, ...] = ()  # what crashes again and again here
    memory_used_mb: float = 0.0
    blank_workers: int = 0
    killed: tuple[str, ...] = ()  # workers that the agent has ended lately, so no request is to blame
    proven_ago_s: dict[str, float] = {}  # by replica: since an inference succeeded, when this was made
    trouble: tuple[str, ...] = ()  # of the node itself, a sentence each
    warning: str = ""  # of what will be trouble
    environments: dict[str, str] = {}  # by key: empty where it is ready, else what keeps it from being so
    unbatched: tuple[
        tuple[str, int, str, str], ...
    ] = ()  # (app, version, variant, reason), seen at work here


class Heartbeat(msgspec.Struct, array_like=True):
    node: str
    incarnation: int
    serial: int  # of the newest NodeState: a receiver that holds an older one knows that it missed one
    interval_ms: float
    lag_ms: float = 0.0  # how late the sender's own loop was


class Activate(msgspec.Struct):
    """Do `contingency` now. Idempotent by its key and version; any number of gateways may ask."""

    contingency: Contingency
    revision: int


class Activated(msgspec.Struct):
    key: str
    accepted: bool
    reason: str = ""


class Excuse(msgspec.Struct):
    """A request was found guilty of the end of these workers. No reply."""

    workers: tuple[str, ...]


class TargetReplica(msgspec.Struct, frozen=True):
    app: str
    version: int
    variant: str
    role: Role

    @property
    def key(self) -> VariantKey:
        return self.app, self.version, self.variant


class Target(msgspec.Struct):
    """What one node shall run. Replaces the node's former target if `revision` is not older."""

    revision: int
    apps: tuple[AppVersion, ...] = ()
    replicas: tuple[TargetReplica, ...] = ()
    contingencies: tuple[Contingency, ...] = ()
    stage: tuple[ArtifactRef, ...] = ()
    released: tuple[str, ...] = ()  # activation keys that are no longer needed
    quarantined: tuple[VariantKey, ...] = ()
    removed: tuple[Removal, ...] = ()  # as in a route table, to be remembered


class Measure(msgspec.Struct):
    """Profile one variant in a worker of its own."""

    app: AppVersion
    variant: str


class Measured(msgspec.Struct):
    profile: Profile
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...] = ()  # as in `Loaded`
    verdict: BatchingVerdict | None = None


class Prepare(msgspec.Struct):
    """Have this environment ready, whether a target calls for it or not. Answered when it is."""

    environment: Environment


class Prepared(msgspec.Struct):
    pass


class ReadArtifact(msgspec.Struct):
    """Read a staged copy from `offset` on, for a controller whose artifact store lost the file."""

    digest: str
    offset: int


class ArtifactPart(msgspec.Struct):
    """The next bytes, ARTIFACT_PART_BYTES at most; fewer at the end."""

    content: bytes


class Report(msgspec.Struct):
    """Events for the log. Kept (bounded) by the sender while no controller listens."""

    events: tuple[Event, ...]


class AppStats(msgspec.Struct):
    """What one gateway saw of an app since its previous report."""

    requests: int = 0
    failed: int = 0
    degraded: int = 0
    shed: int = 0
    retried: int = 0
    hedged: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    serving: str = ""  # variant of the replica that is asked first; empty while there is none
    ready: bool = False
    limited: int = 0  # refused because of their client's rate
    rejected: int = 0  # by their own fault: not counted as `failed`
    failing: str = ""  # what users meet in too large a share of requests, as a phrase


class GatewayStats(msgspec.Struct):
    gateway: str
    revision: int
    apps: dict[str, AppStats] = {}
    suspects: tuple[str, ...] = ()  # nodes
    http_address: str = ""  # HOST:PORT, after https:// where it speaks TLS


Message = (
    Infer | Result | Failure | Cancel | Ping | Pong | Hello | Load | Loaded | Probe | Probed | Stats
    | WorkerStats | Drain | Drained | BatchingEnded | Rehearse | Rehearsed | NodeState | Heartbeat | Activate
    | Excuse | Activated | Target | Measure | Measured | ReadArtifact | ArtifactPart | RouteTable | Report
    | GatewayStats | Prepare | Prepared
)  # fmt: skip

TYPES: dict[Kind, type] = {
    Kind.INFER: Infer,
    Kind.RESULT: Result,
    Kind.FAILURE: Failure,
    Kind.CANCEL: Cancel,
    Kind.PING: Ping,
    Kind.PONG: Pong,
    Kind.HELLO: Hello,
    Kind.LOAD: Load,
    Kind.LOADED: Loaded,
    Kind.PROBE: Probe,
    Kind.PROBED: Probed,
    Kind.STATS: Stats,
    Kind.WORKER_STATS: WorkerStats,
    Kind.DRAIN: Drain,
    Kind.DRAINED: Drained,
    Kind.BATCHING_ENDED: BatchingEnded,
    Kind.REHEARSE: Rehearse,
    Kind.REHEARSED: Rehearsed,
    Kind.NODE_STATE: NodeState,
    Kind.HEARTBEAT: Heartbeat,
    Kind.ACTIVATE: Activate,
    Kind.ACTIVATED: Activated,
    Kind.EXCUSE: Excuse,
    Kind.TARGET: Target,
    Kind.MEASURE: Measure,
    Kind.MEASURED: Measured,
    Kind.READ_ARTIFACT: ReadArtifact,
    Kind.ARTIFACT_PART: ArtifactPart,
    Kind.ROUTES: RouteTable,
    Kind.REPORT: Report,
    Kind.GATEWAY_STATS: GatewayStats,
    Kind.PREPARE: Prepare,
    Kind.PREPARED: Prepared,
}
KINDS: dict[type, Kind] = {type_: kind for kind, type_ in TYPES.items()}

# Small messages travel in the frame's header. These can be long, so they travel as payload, and so does any
# other that outgrows the header: its header is empty then.
_AS_PAYLOAD = frozenset(
    {
        Kind.FAILURE,
        Kind.LOAD,
        Kind.NODE_STATE,
        Kind.TARGET,
        Kind.MEASURE,
        Kind.ARTIFACT_PART,
        Kind.ROUTES,
        Kind.REPORT,
        Kind.GATEWAY_STATS,
    }
)

_INFER, _RESULT = int(Kind.INFER), int(Kind.RESULT)
_encode = msgspec.msgpack.Encoder().encode
_decoders: dict[int, Callable[[Buffer], Any]] = {
    kind: msgspec.msgpack.Decoder(type_).decode for kind, type_ in TYPES.items()
}


def encode_message(message: Message, stream: int = 0, payload: Buffer = b"") -> bytes:
    """`message` as one frame. Only Infer and Result take a `payload` of their own."""
    kind = KINDS[type(message)]
    content = _encode(message)
    if kind in _AS_PAYLOAD or len(content) > HEADER_BYTES_MAX:
        return encode_frame(kind, stream, b"", content)
    return encode_frame(kind, stream, content, payload)


def encode_infer(
    timeout_s: float, stream: int, body: Buffer, json_bytes: int = -1, flags: int = 0
) -> tuple[bytes, Buffer]:
    """An Infer as a frame, and what follows it if the body is too large to be copied.

    What is left of the deadline is rounded down to ms if it is more than that.
    """
    timeout_us = int(timeout_s * 1e6)
    if timeout_us > 1000:
        timeout_us -= timeout_us % 1000
    return _frame_parts(_INFER, stream, _infer_header(timeout_us, json_bytes), body, flags)


def encode_result(result: Result, stream: int, body: Buffer) -> tuple[bytes, Buffer]:
    """A Result as a frame, and what follows it if the body is too large to be copied."""
    return _frame_parts(_RESULT, stream, _encode(result), body)


def _frame_parts(
    kind: int, stream: int, header: bytes, payload: Buffer, flags: int = 0
) -> tuple[bytes, Buffer]:
    if len(payload) < LARGE_BYTES:
        return encode_frame(kind, stream, header, payload, flags), b""
    return frame_head(kind, stream, header, len(payload), flags), payload


@lru_cache(maxsize=4096)  # most requests have their app's whole deadline before them
def _infer_header(timeout_us: int, json_bytes: int) -> bytes:
    return _encode(Infer(timeout_us, json_bytes))


def decode_message(frame: Frame) -> Message | None:
    """The message in `frame`; None for a kind this version doesn't know.

    Raises `ProtocolError` if the content is not what the kind promises.
    """
    decode = _decoders.get(frame.kind)
    if decode is None:
        return None
    try:
        message: Message = decode(frame.header or frame.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed {Kind(frame.kind).name} message: {error}") from error
    return message


_ANSWERS = (Result, Failure)  # a union would be made anew at each call


def decode_answer(frame: Frame) -> Result | Failure:
    """What answers an Infer. Raises `ProtocolError` for anything else."""
    message = decode_message(frame)
    if not isinstance(message, _ANSWERS):
        raise ProtocolError("an answer that is neither a result nor a failure", kind=frame.kind)
    return message
