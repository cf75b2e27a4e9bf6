"""Every setting, typed, with its unit in its name and its limits beside it.

The only module that reads configuration files and the environment. One file describes a cluster; each
process is told the file and its own name. Unknown fields are refused with the nearest known name.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec
from msgspec import Meta

from understudy.failures import PlanSettings, Site, mistake_in
from understudy.security import AuthSettings, TlsSettings
from understudy.settings import (
    Count,
    Datatype,
    FallbackLink,
    Fraction,
    Name,
    NonNegative,
    Positive,
    Settings,
)
from understudy.wire.errors import ConfigError
from understudy.wire.records import Criticality, fallback_mistake

T = TypeVar("T")


class HttpLimits(Settings, frozen=True):
    """What a client may ask of a gateway."""

    connections_max: Count = 10_000  # and as many over gRPC
    header_bytes_max: Count = 16_384  # request line and all headers
    headers_max: Count = 100
    body_bytes_max: Count = 64 * 1024 * 1024
    body_bytes_total_max: Count = 512 * 1024 * 1024  # bodies held at once, over all connections
    pipeline_max: Count = 64  # requests read ahead on one connection
    header_timeout_s: Positive = 10.0  # first byte of a request -> end of its headers
    body_timeout_s: Positive = 30.0  # end of headers -> end of body
    idle_timeout_s: Positive = 75.0  # between requests
    write_timeout_s: Positive = 30.0  # a client that doesn't read its answers
    drain_timeout_s: Positive = 10.0


class GrpcLimits(Settings, frozen=True):
    """What a gRPC client may ask beyond that; the bounds on bodies and draining are those of HTTP."""

    calls_max: Count = 4096  # at once, over all connections; a stream is one
    streams_max: Count = 1024  # calls at once on one connection
    stream_pipeline_max: Count = 16  # requests of one ModelStreamInfer that are in flight together
    metadata_bytes_max: Count = 16_384
    idle_timeout_s: Positive = 300.0  # a connection without a call
    connection_age_s_max: Positive | None = None  # a client then makes a new one; see docs/protocol.md
    ping_interval_s: Positive = 30.0  # on a silent connection, to notice a client that vanished
    ping_timeout_s: Positive = 10.0
    ping_interval_s_min: Positive = 5.0  # a client that pings more often is disconnected


class AdmissionSettings(Settings, frozen=True):
    """Bounds on what one gateway holds, and when it refuses."""

    inflight_max: Count = 1536  # per app; the limit that adapts to latency stays below
    inflight_min: Count = 2  # that limit goes no lower, per replica in use: one runs, one is next
    waiting_max: Count = 1024  # per app, parked until a replica is ready
    inflight_total_max: Count = 8192  # over all apps; beyond half of it each has its fair share only
    lag_ms_max: Positive = 30.0  # own loop later than this on average: shed by criticality
    lag_inflight_min: Annotated[int, Meta(ge=0)] = 64  # with fewer over all apps, others make it late
    deadline_ms_max: Positive = 300_000.0
    retry_after_s: Count = 1
    clients_max: Count = 10_000  # per app with a rate limit, remembered at once
    brownout_after_ms: Positive = 1000.0  # of overload, until smaller variants help out
    brownout_calm_ms: Positive = 5000.0  # without overflow, until they no longer do


class RetrySettings(Settings, frozen=True):
    budget_fraction: Fraction = 0.2  # of the requests of the last 10 s
    budget_min: Count = 3
    attempts_max: Count = 4
    poison_kills: Count = 2  # workers that a request may take down before it is refused
    poison_verdict_ms: Positive = 25.0  # wait for news of the node before a request is blamed


class HedgeSettings(Settings, frozen=True):
    enabled: bool = True
    quantile: Fraction = 0.95
    factor: Positive = 1.0  # times the live quantile
    delay_ms_min: Positive = 4.0
    delay_ms_max: Positive = 1000.0
    budget_fraction: Fraction = 0.05


class BreakerSettings(Settings, frozen=True):
    """When a replica is taken out of rotation for what it answers (Envoy's outlier detection, tightened)."""

    consecutive_failures: Count = 3
    failure_fraction: Fraction = 0.5
    calls_min: Count = 20
    window_s: Positive = 10.0
    open_s: Positive = 5.0  # times the number of ejections in a row
    open_s_max: Positive = 120.0
    jitter_fraction: Fraction = 0.2
    panic_fraction: Fraction = 0.5  # fewer healthy replicas than this: use all
    latency_factor: Annotated[float, Meta(gt=1)] = 5.0  # median above so many times that of its equals
    latency_ms_min: NonNegative = 5.0  # nobody is ejected for answering sooner than this
    failure_margin_fraction: Fraction = 0.1  # failed fraction above that of its equals (and significantly)
    slow_start_s: NonNegative = 10.0  # a new or re-admitted replica's share grows for so long; 0: at once


class PoisonSettings(Settings, frozen=True):
    """Requests that took down workers; their bytes are refused at once when they come again."""

    entries_max: Count = 1000
    memory_s: Positive = 600.0


class LastGoodSettings(Settings, frozen=True):
    """Answers that a gateway keeps for apps with `last-good` in their fallback chain, over all of them."""

    entries_max: Count = 10_000
    bytes_max: Count = 64 * 1024 * 1024
    age_s_max: Positive = 600.0


class SuspicionSettings(Settings, frozen=True):
    """When a silent peer is routed around. Local and reversible."""

    heartbeats_missed: Count = 3
    deviations: Positive = 4.0  # of the observed jitter, added to the expected arrival
    silence_ms_min: Positive = 20.0  # replica: oldest unanswered request and nothing else heard
    silence_factor: Positive = 8.0  # times the live p99 of the app
    readmit_heartbeats: Count = 6  # heard on time before a suspect node is trusted again
    self_lag_ms: Positive = 50.0  # own loop later than this: double all timeouts, declare nobody


class ActivationSettings(Settings, frozen=True):
    timeout_ms: Positive = 250.0  # no Activated within this: ask the next node
    ready_timeout_ms: Positive = 10_000.0  # accepted, but nothing ready: ask the next node


class GatewayTuning(Settings, frozen=True):
    http: HttpLimits = HttpLimits()
    grpc: GrpcLimits = GrpcLimits()
    admission: AdmissionSettings = AdmissionSettings()
    retry: RetrySettings = RetrySettings()
    hedge: HedgeSettings = HedgeSettings()
    breaker: BreakerSettings = BreakerSettings()
    suspicion: SuspicionSettings = SuspicionSettings()
    activation: ActivationSettings = ActivationSettings()
    poison: PoisonSettings = PoisonSettings()
    last_good: LastGoodSettings = LastGoodSettings()
    tick_ms: Positive = 2.0  # resolution of hedges, deadlines and suspicion
    stats_interval_ms: Positive = 500.0
    link_buffer_bytes_max: Count = 64 * 1024 * 1024  # unsent bytes to one worker
    events_max: Count = 1000  # kept while no controller listens
    pulse_ms: Positive = 100.0  # a serving process tells its parent that it lives
    pulse_timeout_s: Positive = 3.0  # without it: killed and replaced
    secrets_check_s: Positive = 5.0  # between looks at the files of certificates and keys


class WorkerTuning(Settings, frozen=True):
    queue_rows_max: Count = 256  # beyond it: BUSY at once
    frame_bytes_max: Count = 72 * 1024 * 1024
    orphan_timeout_s: Positive = 60.0  # without an agent and without a request: exit
    threads: Count = 1  # of one inference


class AgentTuning(Settings, frozen=True):
    blank_workers: Count = 2
    heartbeat_interval_ms: Positive = 50.0
    probe_interval_ms: Positive = 500.0
    probe_timeout_ms: Positive = 400.0
    probe_failures_restart: Count = 3  # in a row: kill and replace
    load_timeout_s: Positive = 120.0
    drain_timeout_ms: Positive = 5000.0
    backoff_ms: Positive = 50.0  # first restart is at once, then this, doubling
    backoff_ms_max: Positive = 10_000.0
    backoff_jitter_fraction: Fraction = 0.2
    crash_loop_count: Count = 5  # crashes within the window: quarantine
    crash_loop_window_s: Positive = 60.0
    memory_limit_factor: Positive = 2.0  # times the profile, where a variant declares no limit
    memory_limit_mb_min: Positive = 256.0
    progressive_skip_ms: NonNegative = 15.0  # load the target at once if it takes only this much longer
    waiting_max: Count = 64  # measurements asked for and not begun
    stage_bytes_max: Count = 64 * 1024**3
    events_max: Count = 1000


class ControllerTuning(Settings, frozen=True):
    lease_ms: Positive = 1500.0  # no heartbeat for this long: the node is dead
    suspect_ms: Positive = 500.0  # no heartbeat for this long: the node is suspect
    start_grace_ms: Positive = 3000.0  # after a start, nobody is declared dead before this
    stability_window_s: Positive = 5.0  # a returned node waits this long, doubling with each flap
    stability_window_s_max: Positive = 300.0
    flap_memory_s: Positive = 600.0
    reconcile_interval_ms: Positive = 100.0
    events_max: Count = 50_000  # rows kept in the event log
    versions_max: Count = 20  # per app, kept in the store
    upload_bytes_max: Count = 8 * 1024**3
    uploads_max: Count = 8  # at once
    release_after_s: NonNegative = 1.0  # primaries ready for this long before anything is taken away
    store_timeout_s: Positive = 1.0  # publishing waits no longer than this for the store
    events_pending_max: Count = 5000  # kept in memory while the store is away
    deployments_max: Count = 100  # remembered by the controller, the running ones among them
    profile_timeout_s: Positive = 120.0  # of one variant
    profile_attempts_max: Count = 3  # of one variant, each on another node if there is one
    placing_timeout_s: Positive = 120.0  # plan committed -> primary ready


class DeviceConfig(Settings, frozen=True):
    name: Name
    memory_mb: Positive
    cores: NonNegative = 0.0


class NodeConfig(Settings, frozen=True):
    name: Name
    memory_mb: Positive
    site: Site = "default"  # a path, the largest place first: "eu/room-2/rack-7"
    listen: str = ""  # "unix:/path" or "tcp:host:port"; default: a Unix socket in the run directory
    cores: NonNegative = 0.0  # for inference, like the one that profiled the variants; 0: not limited
    devices: tuple[DeviceConfig, ...] = ()  # parts that replicas are placed on, instead of the whole node
    worker_host: str = ""  # set on a cluster of many machines: workers listen on TCP at this address


class GatewayConfig(Settings, frozen=True):
    name: Name
    http: str = "127.0.0.1:8080"
    grpc: str = ""  # "host:port"; needs understudy[grpc]. Empty: no gRPC
    processes: Annotated[int, Meta(ge=1, le=64)] = 1  # that share the ports
    tls: TlsSettings | None = None


class ControllerConfig(Settings, frozen=True):
    name: Name = "c1"
    http: str = "127.0.0.1:8090"
    listen: str = ""


class ClusterConfig(Settings, frozen=True):
    """CLUSTER.toml. Relative paths are relative to the file."""

    nodes: tuple[NodeConfig, ...]
    name: Name = "understudy"
    data_dir: str = "understudy-data"
    run_dir: str = ""  # sockets; default: a short directory of its own under the system's for such files
    artifacts_dir: str = ""  # default: <data_dir>/artifacts
    gateways: tuple[GatewayConfig, ...] = (GatewayConfig(name="g1"),)
    controllers: tuple[ControllerConfig, ...] = (ControllerConfig(),)
    apps: tuple[str, ...] = ()  # manifests deployed by `understudy up`
    auth: AuthSettings | None = None
    gateway: GatewayTuning = GatewayTuning()
    agent: AgentTuning = AgentTuning()
    worker: WorkerTuning = WorkerTuning()
    controller: ControllerTuning = ControllerTuning()
    plan: PlanSettings = PlanSettings()

    def role_dir(self, role: str, name: str) -> Path:
        """State of one process across its restarts."""
        return Path(self.data_dir) / role / name

    def listen_address(self, role: str, name: str, configured: str) -> str:
        return configured or f"unix:{Path(self.run_dir) / f'{role}-{name}.sock'}"

    def node(self, name: str) -> NodeConfig:
        return _named(self.nodes, name, "node")

    def gateway_named(self, name: str) -> GatewayConfig:
        return _named(self.gateways, name, "gateway")

    def controller_named(self, name: str) -> ControllerConfig:
        return _named(self.controllers, name, "controller")

    def agent_address(self, name: str) -> str:
        return self.listen_address("agent", name, self.node(name).listen)

    def controller_addresses(self) -> list[str]:
        return [self.listen_address("controller", c.name, c.listen) for c in self.controllers]


class VariantManifest(Settings, frozen=True):
    name: Name
    runtime: Literal["onnx", "python"]
    artifact: str  # file, or directory with a model.py for the python runtime; relative to the manifest
    accuracy: Fraction
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    memory_limit_mb: Positive | None = None


class TensorSettings(Settings, frozen=True):
    """An input or output, where the runtime doesn't know it from the model itself."""

    name: str
    datatype: Datatype
    shape: tuple[Annotated[int, Meta(ge=-1)], ...]  # -1: any length


class ClientRateSettings(Settings, frozen=True):
    """What one client may ask of an app, at each process of a gateway. Beyond it: 429."""

    requests_per_s: Positive
    burst: Count = 10  # at once, after a pause


class BatchingSettings(Settings, frozen=True):
    rows_max: Count = 32
    wait_us: Annotated[int, Meta(ge=0)] = 0  # for more rows, when fewer are there


class AppManifest(Settings, frozen=True):
    """APP.toml: what a user deploys."""

    name: Name
    variants: Annotated[tuple[VariantManifest, ...], Meta(min_length=1, max_length=32)]
    criticality: Criticality = Criticality.STANDARD
    weight: Positive = 1.0
    replicas: Count = 1
    idempotent: bool = True
    deadline_ms: Positive = 1000.0
    objective_ms: Positive | None = None  # latency to keep, by slower variants never; default: deadline / 2
    brownout: bool = True  # when overloaded for long, ready smaller variants answer what would be shed
    client_rate: ClientRateSettings | None = None
    requests_per_s: NonNegative = 0.0  # expected of all clients; 0: not stated, so it takes no compute
    inputs: tuple[TensorSettings, ...] = ()
    outputs: tuple[TensorSettings, ...] = ()
    batching: BatchingSettings = BatchingSettings()
    static: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None
    fallback: tuple[FallbackLink, ...] | None = None  # default: smaller-variant, previous-version, static


N = TypeVar("N", NodeConfig, GatewayConfig, ControllerConfig)


def _named(items: tuple[N, ...], name: str, what: str) -> N:
    for item in items:
        if item.name == name:
            return item
    known = ", ".join(item.name for item in items)
    raise ConfigError(f"no {what} named {name!r} in the cluster file; it has: {known}")


def load_cluster(path: Path) -> ClusterConfig:
    """Read and check CLUSTER.toml; fill in the directories. Raises `ConfigError`."""
    config = read_toml(path, ClusterConfig)
    if not config.nodes:
        raise ConfigError(f"{path}: nodes: at least one [[nodes]] table is needed")
    for field in ("nodes", "gateways", "controllers"):
        names = [item.name for item in getattr(config, field)]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{path}: {field}: the name {name!r} is used twice")
    for gateway in config.gateways:
        if gateway.grpc and gateway.tls is not None and gateway.tls.version_min != "1.2":
            what = f"gateways: {gateway.name!r}: tls.version_min: the gRPC library can't refuse TLS 1.2"
            raise ConfigError(f"{path}: {what}")
    if mistake := mistake_in(config.plan.survive, {node.name: node.site for node in config.nodes}):
        raise ConfigError(f"{path}: plan.survive: {mistake}")
    folder = path.resolve().parent
    data_dir = folder / config.data_dir
    artifacts_dir = folder / config.artifacts_dir if config.artifacts_dir else data_dir / "artifacts"
    return msgspec.structs.replace(
        config,
        data_dir=str(data_dir),
        artifacts_dir=str(artifacts_dir),
        run_dir=str(folder / config.run_dir) if config.run_dir else _default_run_dir(data_dir),
        apps=tuple(str(folder / app) for app in config.apps),
        gateways=tuple(_with_tls_in(folder, gateway) for gateway in config.gateways),
        auth=_with_files_in(folder, config.auth),
    )


def _with_tls_in(folder: Path, gateway: GatewayConfig) -> GatewayConfig:
    tls = gateway.tls
    if tls is None:
        return gateway
    client_ca = str(folder / tls.client_ca) if tls.client_ca else ""
    located = msgspec.structs.replace(
        tls, cert=str(folder / tls.cert), key=str(folder / tls.key), client_ca=client_ca
    )
    return msgspec.structs.replace(gateway, tls=located)


def _with_files_in(folder: Path, auth: AuthSettings | None) -> AuthSettings | None:
    if auth is None:
        return None
    jwt = auth.jwt
    if jwt is not None:
        jwt = msgspec.structs.replace(jwt, jwks=_located(folder, jwt.jwks))
    return msgspec.structs.replace(auth, keys=_located(folder, auth.keys), jwt=jwt)


def _located(folder: Path, reference: str) -> str:
    file = reference.removeprefix("file:")
    return reference if file == reference else f"file:{folder / file}"


def read_secret(reference: str, bytes_max: int = 4 * 1024 * 1024) -> bytes:
    """What "file:PATH" or "env:NAME" refers to, at most `bytes_max` of it.

    Raises `ConfigError`, which never holds any of the content.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        if name not in os.environ:
            raise ConfigError(f"the environment has no {name}")
        content = os.environ[name].encode()
    elif kind == "file":
        try:
            with open(name, "rb") as file:
                content = file.read(bytes_max + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            raise ConfigError(f"{name}: can't be read: {reason}") from error
    else:
        raise ConfigError("a secret is given as file:PATH or env:NAME, never by itself")
    if len(content) > bytes_max:
        raise ConfigError(f"{reference}: too large", limit_bytes=bytes_max)
    return content


def _default_run_dir(data_dir: Path) -> str:
    # A Unix socket's path may have 107 bytes only, so it can't live under an arbitrary data directory.
    short = hashlib.sha256(str(data_dir).encode()).hexdigest()[:10]
    root = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"
    return f"{root}/understudy-{os.getuid()}-{short}"


def load_manifest(path: Path) -> AppManifest:
    """Read and check APP.toml. Raises `ConfigError`; artifacts are not opened here."""
    manifest = read_toml(path, AppManifest)
    names = [v.name for v in manifest.variants]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: variants: the name {name!r} is used twice")
    if manifest.fallback is not None:
        mistake = fallback_mistake(manifest.fallback, manifest.static is not None)
        if mistake:
            raise ConfigError(f"{path}: fallback: {mistake}")
    return manifest


def read_toml(path: Path, type_: type[T]) -> T:
    """`path` as `type_`. Raises `ConfigError` naming file and field, with the nearest valid name."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    return parse_toml(text, str(path), type_)


def parse_toml(text: bytes, source: str, type_: type[T]) -> T:
    """As `read_toml`, of a text that was read from `source`."""
    try:
        raw = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error
    try:
        return msgspec.convert(raw, type_)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {explain(str(error), type_)}") from error


_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]*)`")
_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")


def explain(message: str, type_: type) -> str:
    """A validation message as `path.of.field: what is wrong`, with the nearest known name."""
    at = _AT.search(message)
    path = at["path"] if at else ""
    what = _AT.sub("", message).removeprefix("Object ")
    unknown = _UNKNOWN.search(what)
    if not unknown:
        return f"{path or 'top level'}: {what[:1].lower()}{what[1:]}"
    field = unknown["field"]
    known = _fields_at(type_, path)
    near = difflib.get_close_matches(field, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
    return f"{path + '.' if path else ''}{field}: unknown field; {hint}"


def _fields_at(type_: Any, path: str) -> list[str]:
    for part in (p for p in re.split(r"\.|\[\.\.\.\]|\[\d+\]", path) if p):
        type_ = get_type_hints(type_).get(part)
        args = [a for a in getattr(type_, "__args__", ()) if isinstance(a, type)]
        if args:
            type_ = args[0]
    return list(getattr(type_, "__struct_fields__", ()))
