"""Settings of a gateway: its bounds on clients, and when it retries, hedges, suspects and refuses."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from understudy.settings import Count, Fraction, Name, NonNegative, Positive, Settings
from understudy.settings.security import TlsSettings

OTHER_BODY_BYTES_MAX = 64 * 1024  # of what isn't inference


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


class CorsSettings(Settings, frozen=True):
    """Which web pages may use this gateway from a browser. Without origins none may."""

    origins: tuple[str, ...] = ()  # such as "https://shop.example"; "*": any
    headers: tuple[str, ...] = ()  # that pages may send, beyond those of the protocols served here
    max_age_s: Count = 600  # for which a browser remembers that it was allowed


class GrpcLimits(Settings, frozen=True):
    """What a gRPC client may ask beyond that; the bounds on bodies and draining are those of HTTP."""

    calls_max: Count = 4096  # at once, over all connections; a stream is one
    streams_max: Count = 1024  # calls at once on one connection
    watches_max: Count = 512  # of health and reflection, streams at once over all connections
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
    lag_inflight_min: Annotated[int, Meta(ge=0, le=2**53)] = (
        64  # with fewer over all apps, others make it late
    )
    deadline_ms_max: Positive = 300_000.0
    retry_after_s: Count = 1
    clients_max: Count = 10_000  # per app with a rate limit, remembered at once
    brownout_after_ms: Positive = 1000.0  # of overload, until smaller variants help out
    brownout_calm_ms: Positive = 5000.0  # without overflow, until they no longer do


class RetrySettings(Settings, frozen=True):
    budget_fraction: Fraction = 0.2  # of the requests of the last 10 s
    budget_min: Count = 3
    attempts_max: Count = 4
    poison_kills: Count = 2  # workers that a request may take down, alone on them, before it is refused
    deaths_max: Count = 4  # workers that may die with it, alone or not, before it isn't tried again
    trial_ms: Positive = 250.0  # a suspect is tried alone for so long, before the next one is
    poison_verdict_ms: Positive = 25.0  # wait for news of the node before a request is blamed


class HedgeSettings(Settings, frozen=True):
    enabled: bool = True
    quantile: Fraction = 0.95
    factor: Positive = 1.0  # times the live quantile
    delay_ms_min: Positive = 4.0
    delay_ms_max: Positive = 1000.0
    budget_fraction: Fraction = 0.05
    unproven_s: Positive = 30.0  # without an inference that succeeded: a replica gets half of the patience


class BreakerSettings(Settings, frozen=True):
    """When a replica is taken out of rotation for what it answers (what counts: `core.gateway.conduct`)."""

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


class HealthSettings(Settings, frozen=True):
    """When an app is said to fail its users, and what is remembered of that."""

    window_s: Positive = 60.0
    failing_fraction: Fraction = 0.05  # of the requests in the window, and at least:
    failures_min: Count = 3
    failures_max: Count = 100  # records kept per app and process, the newest
    event_interval_s: Positive = 10.0  # per app and code, between two `request.failed`
    readiness: Literal["replicas", "users"] = "replicas"  # "users": an app that fails its users isn't ready


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
    ready_timeout_ms: Positive = (
        10_000.0  # accepted, but nothing ready: ask the next node; longer for what loads longer
    )


class GatewayTuning(Settings, frozen=True):
    http: HttpLimits = HttpLimits()
    cors: CorsSettings = CorsSettings()
    grpc: GrpcLimits = GrpcLimits()
    admission: AdmissionSettings = AdmissionSettings()
    retry: RetrySettings = RetrySettings()
    hedge: HedgeSettings = HedgeSettings()
    breaker: BreakerSettings = BreakerSettings()
    suspicion: SuspicionSettings = SuspicionSettings()
    activation: ActivationSettings = ActivationSettings()
    health: HealthSettings = HealthSettings()
    poison: PoisonSettings = PoisonSettings()
    last_good: LastGoodSettings = LastGoodSettings()
    tick_ms: Positive = 2.0  # resolution of hedges, deadlines and suspicion
    stats_interval_ms: Positive = 500.0
    link_buffer_bytes_max: Count = 64 * 1024 * 1024  # unsent to a worker: others get what comes
    events_max: Count = 1000  # kept while no controller listens
    pulse_ms: Positive = 100.0  # a serving process tells its parent that it lives
    pulse_timeout_s: Positive = 3.0  # without it: killed and replaced
    secrets_check_s: Positive = 5.0  # between looks at the files of certificates and keys


class GatewayConfig(Settings, frozen=True):
    name: Name
    http: str = "127.0.0.1:8080"
    grpc: str = ""  # "host:port"; needs understudy[grpc]. Empty: no gRPC
    processes: Annotated[int, Meta(ge=1, le=64)] = 1  # that share the ports
    tls: TlsSettings | None = None
    hosts: tuple[str, ...] = ()  # other names that it may be asked by, where only this machine reaches it

    @property
    def process_names(self) -> list[str]:
        if self.processes == 1:
            return [self.name]
        return [f"{self.name}.{number + 1}" for number in range(self.processes)]
