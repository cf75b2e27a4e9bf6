"""Clusters from a seed: apps out of the published families, on nodes with some more room than they need."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from benchmarks.evaluation.families import ladders
from understudy.core.planning.footprint import replica_mb
from understudy.wire.records import AppVersion, Criticality, NodeInfo

SHARES = {Criticality.CRITICAL: 0.2, Criticality.BEST_EFFORT: 0.2}  # the others are standard
NODES_PER_SITE = 10
SITES_MIN = 3
MIXES = ("families", "slices")


@dataclass(frozen=True, slots=True)
class Failure:
    """`name` is the plan's for the loss of one node or site."""

    name: str
    lost: frozenset[str]


@dataclass(frozen=True, slots=True)
class Cluster:
    nodes: tuple[NodeInfo, ...]
    apps: tuple[AppVersion, ...]


def cluster(nodes: int, apps: int, mix: str, headroom: float, seed: int) -> Cluster:
    """Equal nodes with `headroom` (a fraction) more memory than all full-size variants need.

    Families take turns. In the mix "families" an app has the whole ladder of its family, in "slices" only
    what is below a random rung, which is then its full-size variant; two rungs at least.
    """
    rng = random.Random(f"{seed}/{mix}/{apps}")
    families = list(ladders().items())
    rng.shuffle(families)
    classes = [c for c, share in SHARES.items() for _ in range(round(share * apps))]
    classes += [Criticality.STANDARD] * (apps - len(classes))
    rng.shuffle(classes)
    turns = itertools.cycle(families)
    made = []
    for number, criticality in enumerate(classes):
        family, ladder = next(turns)
        top = rng.randrange(len(ladder) - 1) if mix == "slices" else 0
        made.append(AppVersion(f"{number:05}-{family}", 1, ladder[top:], criticality=criticality))
    needed_mb = sum(replica_mb(app.full_size) for app in made)
    memory_mb = (1 + headroom) * needed_mb / nodes
    sites = max(SITES_MIN, nodes // NODES_PER_SITE)
    infos = (NodeInfo(f"n{i:04}", f"r{i % sites:03}", "", memory_mb) for i in range(nodes))
    return Cluster(tuple(infos), tuple(made))


def failures(nodes: tuple[NodeInfo, ...], kind: str, count_max: int, seed: int) -> list[Failure]:
    """Every loss of "node" or "site"; of "two nodes" every pair, or `count_max` pairs drawn from `seed`."""
    if kind == "node":
        return [Failure(f"node:{node.name}", frozenset({node.name})) for node in nodes]
    if kind == "site":
        return [
            Failure(f"site:{site}", frozenset(node.name for node in nodes if node.site == site))
            for site in sorted({node.site for node in nodes})
        ]
    names = [node.name for node in nodes]
    pairs = len(names) * (len(names) - 1) // 2
    if pairs <= count_max:
        drawn = list(itertools.combinations(names, 2))
    else:
        rng = random.Random(seed)
        drawn = [(a, b) for a, b in (rng.sample(names, 2) for _ in range(count_max))]
    return [Failure(f"nodes:{a}+{b}", frozenset({a, b})) for a, b in drawn]
