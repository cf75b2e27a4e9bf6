"""States of what a gateway sees, and how it changes them by itself. What agents report comes over that."""

from __future__ import annotations

from enum import StrEnum

from understudy.core.lifecycle import Table, advance


class Seen(StrEnum):
    """A replica, as a gateway sees it. Only READY ones get requests; UNKNOWN is what a newer agent says."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    FAILING = "failing"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"
    DRAINING = "draining"
    STOPPED = "stopped"
    LOST = "lost"  # its connection broke, and its agent has said nothing since
    UNKNOWN = "unknown"


KNOWN = frozenset(map(str, Seen))
CONNECTED = frozenset({Seen.READY, Seen.FAILING})  # worth a connection
# Its node is at work on it: one that ends may be making room for its successor.
COMING = frozenset({Seen.STARTING, Seen.LOADING, Seen.DRAINING})
REACHABLE = CONNECTED | {Seen.LOST}

SEEN: Table[Seen] = {
    (Seen.READY, "link_broke"): Seen.LOST,
    (Seen.LOST, "link_made"): Seen.READY,
    (Seen.READY, "turned_away"): Seen.DRAINING,
}


def reported(state: str) -> Seen:
    """What its agent says."""
    return Seen(state) if state in KNOWN else Seen.UNKNOWN


def seen(state: Seen, event: str) -> Seen:
    """The next state. Breaks an invariant if `event` can't happen in `state`."""
    return advance(SEEN, state, event)


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
