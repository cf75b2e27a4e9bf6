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
    lost: set[str],
    refused: Iterable[str],
) -> Contingency | None:
    """The contingency to ask for, or None if no living node is left to ask.

    First the ones planned for what was lost (`lost`: names of nodes), the widest domain first since it
    assumes least; then any whose node lives; at last the smallest variant on any living node, in an order
    that differs by app but not by gateway.
    """
    living = alive - set(refused)
    site_of = {node.name: node.site for node in nodes}
    lost_sites = {site_of[name] for name in lost if name in site_of}

    def preference(c: Contingency) -> tuple[int, str]:
        domain, _, name = c.failure.partition(":")
        if domain == "site" and name in lost_sites:
            return 0, c.failure
        if domain == "node" and name in lost:
            return 1, c.failure
        return 2, c.failure

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
