"""Settings of an agent."""

from __future__ import annotations

from typing import Literal

from understudy.settings import Count, Fraction, NonNegative, Positive, Settings


class SandboxSettings(Settings, frozen=True):
    """What surrounds models. A `tier` other than "best" must hold: else the agent doesn't start."""

    tier: Literal["best", "namespaces", "landlock", "none"] = "best"  # best: what the place allows
    readable: tuple[str, ...] = ()  # paths that models may read beside their own, such as datasets
    writable: tuple[str, ...] = ()  # and write to
    scratch_mb: Count = 512  # of files that a model may write, all of which are gone with its worker
    tasks_max: Count = 1024  # processes and threads of a worker
    packages_memory_mb: Count = 4096  # of what runs packages of a model before there is a worker


class AgentTuning(Settings, frozen=True):
    blank_workers: Count = 2
    heartbeat_interval_ms: Positive = 50.0
    probe_interval_ms: Positive = 500.0
    probe_timeout_ms: Positive = 400.0
    probe_failures_restart: Count = 3  # in a row: kill and replace
    probe_core_fraction: Fraction = 0.02  # of one core, for all probes of a node together
    hang_ms_min: Positive = 1000.0  # no batch is overdue before it has run for so long,
    hang_latency_factor: Positive = 8.0  # nor before so many times the variant's measured latency, per row
    hang_factor: Positive = 2.0  # times what a batch may take: kill and replace
    load_timeout_s: Positive = 120.0  # where a variant declares none
    rehearsal_timeout_s: Positive = 20.0  # of a variant that is measured; beyond it, it isn't batched
    drain_timeout_ms: Positive = 5000.0
    backoff_ms: Positive = 50.0  # first restart is at once, then this, doubling
    backoff_ms_max: Positive = 10_000.0
    backoff_jitter_fraction: Fraction = 0.2
    crash_loop_count: Count = 5  # crashes within the window: the variant is paused on this node
    crash_loop_window_s: Positive = 60.0
    crash_loop_pause_s: Positive = 60.0  # then it is tried again; doubles each time that it crashes anew
    crash_loop_pause_s_max: Positive = 3600.0
    memory_limit_factor: Positive = 2.0  # times the profile, where a variant declares no limit
    memory_limit_mb_min: Positive = 256.0
    request_memory_mb: Positive = 768.0  # per worker, queued and running; one request may take half of it
    progressive_skip_ms: NonNegative = 15.0  # load the target at once if it takes only this much longer
    waiting_max: Count = 64  # measurements asked for and not begun
    stage_bytes_max: Count = 64 * 1024**3
    worker_environment: tuple[str, ...] = ()  # that models see beside the usual variables, such as "AWS_*"
    sandbox: SandboxSettings = SandboxSettings()
    environments_max: Count = 16  # packages of models, or interpreters, that are kept ready
    events_max: Count = 1000
