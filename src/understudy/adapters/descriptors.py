"""How many files and sockets this process may have open."""

from __future__ import annotations

import resource


def raise_limit() -> int:
    """Raise the soft limit to the hard one, for this process and those it starts; the limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def clients_max(wanted: int, ports: int = 1) -> int:
    """How many connections of clients, at most `wanted` on each port, leave room for what a process needs.

    Without that room an accepted client takes the descriptor with which a lost worker would be replaced.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(min(wanted, (limit - min(256, limit // 2)) // ports), 1)
