"""Settings of a controller."""

from __future__ import annotations

from understudy.settings import Count, Name, NonNegative, Positive, Settings


class ControllerTuning(Settings, frozen=True):
    lease_ms: Positive = 1500.0  # no heartbeat for this long: the node is dead
    suspect_ms: Positive = 500.0  # no heartbeat for this long: the node is suspect
    start_grace_ms: Positive = 3000.0  # after a start, for nodes and gateways to be heard of
    stability_window_s: Positive = 5.0  # a returned node waits this long, doubling with each flap
    stability_window_s_max: Positive = 300.0
    flap_memory_s: Positive = 600.0
    reconcile_interval_ms: Positive = 100.0
    events_max: Count = 50_000  # rows kept in the event log
    versions_max: Count = 20  # per app, kept in the store
    manifests_max: Count = 8  # files that an app was deployed from, the newest: for `up` to see what changed
    removals_max: Count = 1000  # of apps, the newest: told to gateways and agents
    artifacts_check_s: Positive = 10.0  # between two looks at whether the artifact store has what is served
    upload_bytes_max: Count = 8 * 1024**3
    uploads_max: Count = 8  # at once
    artifacts_bytes_max: Count = 1024**4  # of all that is stored
    artifact_grace_s: Positive = 3600.0  # no version needs it, nobody asked for it: it is deleted
    collect_interval_s: Positive = 60.0
    release_after_s: NonNegative = 1.0  # primaries ready for this long before anything is taken away
    store_timeout_s: Positive = 1.0  # publishing waits no longer than this for the store
    events_pending_max: Count = 5000  # kept in memory while the store is away
    deployments_max: Count = 1000  # remembered; waiting and running ones among them. Beyond it: BUSY
    deployment_memory_s: Positive = 60.0  # an end that nobody has asked for yet is kept this long
    deployment_traceback_bytes_max: Count = 16 * 1024
    static_bytes_max: Count = 64 * 1024  # of an app's static answer, as JSON
    probe_bytes_max: Count = 8 * 1024**2
    options_bytes_max: Count = 64 * 1024  # of one variant
    apps_bytes_max: Count = 24 * 1024**2  # of all apps as they are sent; a message has two versions of each
    environment_timeout_s: Positive = 600.0  # for a node to get the packages of a variant ready
    profile_timeout_s: Positive = 120.0  # of one variant, beyond its load_timeout_s
    profile_attempts_max: Count = 3  # of one variant, each on another node if there is one
    quarantine_pause_s: Positive = 60.0  # then one node tries the variant; doubles each time that it fails
    quarantine_pause_s_max: Positive = 3600.0
    trial_s: Positive = 10.0  # ready for so long on trial, and not crashing: it is well
    trial_timeout_s: Positive = 180.0  # for the node that tries it
    placing_timeout_s: Positive = 120.0  # plan committed -> primary ready, beyond a declared load_timeout_s


class ControllerConfig(Settings, frozen=True):
    name: Name = "c1"
    http: str = "127.0.0.1:8090"
    listen: str = ""
    hosts: tuple[str, ...] = ()  # other names that it may be asked by, as in the Host header
