"""Which contingency to ask for when an app has no ready replica left."""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

import msgspec

from understudy.wire.records import AppVersion, Contingency, NodeInfo

LAST_RESORT = "any"


class Activation(msgspec.Struct):
    """An `Activate` on its way. Times in seconds, monotonic."""

    contingency: Contingency
    asked_at: float
    accepted: bool = False


def choose(
    app: AppVersion,
    contingencies: Iterable[Contingency],
    nodes: Iterable[NodeInfo],
    alive: set[str],
    hosts: set[str],
    refused: Iterable[str],
) -> Contingency | None:
    """The contingency to ask for, or None if no living node is left to ask.

    First the one planned for what was lost: a site's if several and most of its nodes are gone, else that
    of the node which hosted the app (`hosts`), gone or not: if only the worker died, its node's loss is the
    nearest that was planned for, and the variant planned for a whole site's is smaller than it need be.
    Then any whose node lives; at last the smallest variant on any living node, in an order that differs by
    app but not by gateway.
    """
    living = alive - set(refused)
    sites: dict[str, list[str]] = {}
    for node in nodes:
        sites.setdefault(node.site, []).append(node.name)
    lost_sites = {site for site, names in sites.items() if _is_lost(names, alive)}

    def preference(c: Contingency) -> tuple[int, str]:
        domain, _, name = c.failure.partition(":")
        if domain == "site" and name in lost_sites and any(host in sites[name] for host in hosts):
            return 0, c.failure
        if domain == "node" and name in hosts:
            return (1 if name not in alive else 2), c.failure
        if domain == "node" and name not in alive:
            return 3, c.failure
        return 4, c.failure

    planned = [c for c in contingencies if c.app == app.app and c.version == app.version and c.node in living]
    if planned:
        return min(planned, key=preference)
    rest = sorted(living, key=lambda node: crc32(f"{app.app}/{node}".encode()))
    if not rest:
        return None
    smallest = app.smallest.name
    return Contingency(
        app=app.app,
        version=app.version,
        failure=LAST_RESORT,
        node=rest[0],
        first=smallest,
        variant=smallest,
    )


def _is_lost(names: list[str], alive: set[str]) -> bool:
    """Is it the site that is gone, rather than a node in it?"""
    gone = sum(name not in alive for name in names)
    return gone > 1 and 2 * gone > len(names)
