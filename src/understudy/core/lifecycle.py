"""Lifecycles as tables: state x event -> state. A pair that is missing is a broken invariant.

Diagrams in the docs are drawn from these tables.
"""

from __future__ import annotations

from understudy.invariants import check

Table = dict[tuple[str, str], str]

# A replica, as its agent sees it. `ready` and `failing` replicas are loaded; only `ready` ones get traffic.
REPLICA: Table = {
    ("starting", "worker_started"): "loading",
    ("starting", "crashed"): "backoff",
    ("loading", "loaded"): "ready",
    ("loading", "load_failed"): "backoff",
    ("loading", "crashed"): "backoff",
    ("ready", "probe_failed"): "failing",
    ("ready", "crashed"): "backoff",
    ("failing", "probe_passed"): "ready",
    ("failing", "gave_up"): "backoff",
    ("failing", "crashed"): "backoff",
    ("backoff", "retried"): "starting",
    ("backoff", "crash_looped"): "quarantined",
    ("starting", "released"): "stopped",
    ("loading", "released"): "draining",
    ("ready", "released"): "draining",
    ("failing", "released"): "draining",
    ("backoff", "released"): "stopped",
    ("quarantined", "released"): "stopped",
    ("draining", "drained"): "stopped",
    ("draining", "crashed"): "stopped",
}
REPLICA_STATES = ("starting", "loading", "ready", "failing", "backoff", "quarantined", "draining", "stopped")

# A node, as the controller sees it. Only `ready` nodes get primaries; `returning` ones wait, empty.
NODE: Table = {
    ("unknown", "hello"): "ready",
    ("unknown", "lease_lost"): "dead",
    ("ready", "heartbeat_missed"): "suspect",
    ("ready", "link_lost"): "suspect",
    ("suspect", "heartbeat"): "ready",
    ("suspect", "hello"): "ready",
    ("suspect", "lease_lost"): "dead",
    ("dead", "hello"): "returning",
    ("returning", "stable"): "ready",
    ("returning", "heartbeat_missed"): "dead",
    ("returning", "link_lost"): "dead",
    ("ready", "drain_asked"): "drained",
    ("drained", "undrain_asked"): "ready",
    ("drained", "lease_lost"): "dead",
}
NODE_STATES = ("unknown", "ready", "suspect", "dead", "returning", "drained")


def advance(table: Table, state: str, event: str) -> str:
    """The next state. Breaks an invariant if `event` can't happen in `state`."""
    check((state, event) in table, f"{event!r} can't happen in state {state!r}")
    return table[(state, event)]


def permits(table: Table, state: str, event: str) -> bool:
    return (state, event) in table
