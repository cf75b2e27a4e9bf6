"""Failures by name: which nodes each takes away, and which of them a plan shall survive.

A failure is "node:NAME", "site:PATH", several of these joined by "+", or "any-K": whichever K nodes. A node's
site is a path, the largest place first ("eu/room-2/rack-7"); every prefix of it is a site that can be lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta

from understudy.wire.records import NodeInfo

_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"
_DOMAIN = rf"(node:{_NAME}|site:{_NAME}(/{_NAME})*)"

Site = Annotated[str, Meta(pattern=rf"^{_NAME}(/{_NAME}){{0,7}}$(?!\n)")]
_SURVIVABLE = re.compile(rf"node|site|any-[1-9]|{_DOMAIN}(\+{_DOMAIN})*")

ANY = "any-"


def mistake_in(survive: Iterable[str], sites: dict[str, str]) -> str:
    """What is wrong with the failures to survive, as a sentence; empty if nothing is. `sites`: by node."""
    for wish in survive:
        if not _SURVIVABLE.fullmatch(wish):
            known = '"node", "site", "any-2", "node:NAME", "site:PATH", or names joined by "+"'
            return f"{wish!r} is no failure; use {known}"
        for domain in wish.split("+"):
            kind, _, name = domain.partition(":")
            if kind == "node" and name and name not in sites:
                return f"{wish!r}: the cluster has no node {name!r}"
            if kind == "site" and name and not any(lies_in(site, name) for site in sites.values()):
                return f"{wish!r}: no node is in site {name!r}"
    return ""


def sites_of(site: str) -> tuple[str, ...]:
    """`site` and the sites that it lies in, the largest first."""
    parts = site.split("/")
    return tuple("/".join(parts[: i + 1]) for i in range(len(parts)))


def lies_in(site: str, other: str) -> bool:
    return site == other or site.startswith(other + "/")


def any_count(failure: str) -> int:
    """K of "any-K"; 0 for other failures."""
    return int(failure.removeprefix(ANY)) if failure.startswith(ANY) else 0


def lost_nodes(failure: str, nodes: Iterable[NodeInfo]) -> frozenset[str]:
    """The nodes that `failure` takes away. Not for "any-K"."""
    lost: set[str] = set()
    nodes = tuple(nodes)
    for domain in failure.split("+"):
        kind, _, name = domain.partition(":")
        if kind == "node":
            lost.update([node.name for node in nodes if node.name == name])
        elif kind == "site":
            below = f"{name}/"  # as `lies_in`, for many nodes
            lost.update([n.name for n in nodes if n.site == name or n.site.startswith(below)])
    return frozenset(lost)


def kind_of(failure: str) -> str:
    """What it has in common with failures that exclude it: "node", a level of sites; else itself."""
    kind, _, name = failure.partition(":")
    if "+" in failure or not name:
        return failure
    return f"{kind}/{name.count('/')}"


def to_survive(nodes: Iterable[NodeInfo], survive: Iterable[str]) -> dict[str, frozenset[str]]:
    """Failure -> the nodes it takes away, for each failure to survive. Of "any-K" only the single nodes.

    "site" means the sites of each level on which there are two or more. Failures that take no node away are
    left out.
    """
    nodes = sorted(nodes, key=lambda node: node.name)
    found: dict[str, frozenset[str]] = {}
    for wish in survive:
        if wish == "node" or wish.startswith(ANY):
            found |= {f"node:{node.name}": frozenset((node.name,)) for node in nodes}
        elif wish == "site":
            found |= _each_site(nodes)
        else:
            found |= {wish: lost} if (lost := lost_nodes(wish, nodes)) else {}
    return found


def any_of(survive: Iterable[str]) -> int:
    """The largest K of the "any-K" to survive; 0 if there is none of two or more."""
    largest = max(map(any_count, survive), default=0)
    return largest if largest > 1 else 0


def _each_site(nodes: Iterable[NodeInfo]) -> dict[str, frozenset[str]]:
    levels: dict[int, dict[str, set[str]]] = {}
    for node in nodes:
        for level, site in enumerate(sites_of(node.site)):
            levels.setdefault(level, {}).setdefault(site, set()).add(node.name)
    return {
        f"site:{site}": frozenset(levels[level][site])
        for level in sorted(levels)
        if len(levels[level]) > 1
        for site in sorted(levels[level])
    }
