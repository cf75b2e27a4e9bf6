"""Which contingency to ask for when an app has no ready replica left."""

from __future__ import annotations

from collections.abc import Iterable, Set
from zlib import crc32

import msgspec

from understudy.failures import any_count, lost_nodes
from understudy.wire.records import AppVersion, Contingency, NodeInfo

LAST_RESORT = "any"
LAST_RESORT_S = 0.1  # after an app's loss: by then whatever was lost with it has been missed, too


class PendingActivation(msgspec.Struct):
    """An `Activate` on its way. Times in seconds, monotonic."""

    contingency: Contingency
    asked_at: float
    accepted: bool = False


def choose(
    app: AppVersion,
    contingencies: Iterable[Contingency],
    nodes: Iterable[NodeInfo],
    alive: Set[str],
    hosts: Set[str],
    refused: Iterable[str],
) -> Contingency | None:
    """Which of its `contingencies` to ask for, or None if no living node is left to ask.

    First the one planned for what was lost: a site's if several and most of its nodes are gone, the largest
    such site's; else that of the node which hosted the app (`hosts`), gone or not: if only the worker died,
    its node's loss is the nearest that was planned for, and the variant planned for a whole site's is smaller
    than it need be. Then the further ways back from whichever nodes were lost, in their order, and any whose
    node lives; at last the smallest variant on any living node, in an order that differs by app but not by
    gateway.
    """
    living = alive - set(refused)
    nodes = tuple(nodes)

    def preference(c: Contingency) -> tuple[int, int, str]:
        if several := any_count(c.failure):
            return 3, several, c.failure
        struck = lost_nodes(c.failure, nodes)
        wide = not c.failure.startswith("node:") or "+" in c.failure
        if wide and hosts & struck and all(_is_lost(domain, nodes, alive) for domain in c.failure.split("+")):
            return 0, -len(struck), c.failure
        if not wide and hosts & struck:
            return (2 if struck & alive else 1), 0, c.failure
        return (5 if wide or struck & alive else 4), 0, c.failure

    planned = [c for c in contingencies if c.version == app.version and c.node in living]
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


LOAD_FACTOR = 3.0  # times what it was measured to take


def load_ms_max(app: AppVersion, contingency: Contingency) -> float:
    """How long its first answer may take to load: as the manifest says, else by its profile; 0: not known."""
    variant = app.variant(contingency.first)
    if variant is None:
        return 0.0
    if variant.load_timeout_s is not None:
        return variant.load_timeout_s * 1000
    return variant.profile.load_ms * LOAD_FACTOR if variant.profile is not None else 0.0


def gives_way(
    choice: Contingency, pending: Iterable[PendingActivation | None], lost_at: float, now: float
) -> bool:
    """What nobody planned for may not take the room that others were promised: those ask first."""
    if choice.failure != LAST_RESORT:
        return False
    rivals = [a for a in pending if a is not None and a.contingency.node == choice.node]
    promised = any(a.contingency.failure != LAST_RESORT and not a.accepted for a in rivals)
    return promised or now - lost_at < LAST_RESORT_S


def _is_lost(domain: str, nodes: tuple[NodeInfo, ...], alive: Set[str]) -> bool:
    """Is it the site that is gone, rather than a node in it?"""
    names = lost_nodes(domain, nodes)
    gone = len(names - alive)
    if domain.startswith("node:"):
        return gone == len(names) > 0
    return gone > 1 and 2 * gone > len(names)
