"""Plays failures against a protection scheme, and says who answers with what.

Lives here: what a failure does, for every scheme alike. It knows neither how Understudy plans nor how it
replays its own plans: a scheme is where replicas run, and which ways back it would try.

A failure silences the apps whose primary it takes. A standby that is left answers at once. Otherwise the
ways back that the scheme names are tried in turn, critical apps before others: a way needs room for what it
loads first and for what replaces it, both at once, and where only the first fits it stays with that. Room
that was taken is gone for all others in the same failure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from benchmarks.evaluation.workloads import Cluster, Failure
from understudy.core.planning.footprint import replica_mb
from understudy.wire.records import AppVersion, Criticality, Variant

ROUNDING_MB = 0.01
ORDER = (Criticality.CRITICAL, Criticality.STANDARD, Criticality.BEST_EFFORT)


@dataclass(frozen=True, slots=True)
class Running:
    variant: Variant
    node: str


@dataclass(frozen=True, slots=True)
class Way:
    """Load `first` on `node`, then `last` beside it; equal when one step is enough."""

    first: Variant
    last: Variant
    node: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Who answers for a silenced app. `how`: warm, cold or none; no variants and no node then."""

    app: AppVersion
    failure: str
    how: str
    first: Variant | None = None
    last: Variant | None = None
    node: str = ""


class Room:
    """Free memory of the nodes that are left, smallest first."""

    def __init__(self, free_mb: dict[str, float]) -> None:
        self._free_mb = dict(free_mb)
        self._ordered = sorted((mb, node) for node, mb in free_mb.items())

    def free_mb(self, node: str) -> float:
        """None at all on a node that is lost."""
        return self._free_mb.get(node, 0.0)

    def take(self, node: str, mb: float) -> None:
        before = self._free_mb[node]
        del self._ordered[bisect_left(self._ordered, (before, node))]
        self._free_mb[node] = before - mb
        insort(self._ordered, (before - mb, node))

    def best_fit(self, mb: float, barred: frozenset[str] = frozenset()) -> str | None:
        """The node with the least room that is enough, but none of `barred`."""
        start = bisect_left(self._ordered, (mb - ROUNDING_MB, ""))
        return next((node for _, node in self._ordered[start:] if node not in barred), None)


WaysBack = Callable[[AppVersion, Failure, Room], Iterable[Way]]


@dataclass(frozen=True, slots=True)
class Protection:
    """What a scheme has prepared, by app. `ways_back` is asked when an app has no replica left."""

    scheme: str
    primaries: dict[str, Running]
    standbys: dict[str, Running]
    ways_back: WaysBack


@dataclass(slots=True)
class Played:
    """`reserved_mb`: per node the most that any one failure loaded there."""

    answers: list[Answer] = field(default_factory=list)
    reserved_mb: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def by_rank(apps: Iterable[AppVersion]) -> list[AppVersion]:
    """Critical first, then the heavier, then by name: the order in which schemes give room away."""
    return sorted(apps, key=lambda app: (ORDER.index(app.criticality), -app.weight, app.app))


def free_room(cluster: Cluster, *running: dict[str, Running]) -> dict[str, float]:
    free_mb = {node.name: node.memory_mb for node in cluster.nodes}
    for replicas in running:
        for replica in replicas.values():
            free_mb[replica.node] -= replica_mb(replica.variant)
    return free_mb


def play(cluster: Cluster, protection: Protection, failures: Iterable[Failure]) -> Played:
    apps_on: dict[str, list[AppVersion]] = defaultdict(list)
    for app in by_rank(cluster.apps):
        if app.app in protection.primaries:
            apps_on[protection.primaries[app.app].node].append(app)
    free_mb = free_room(cluster, protection.primaries, protection.standbys)
    played = Played()
    for failure in failures:
        room = Room({node: mb for node, mb in free_mb.items() if node not in failure.lost})
        loaded_mb: dict[str, float] = defaultdict(float)
        for app in by_rank(app for node in failure.lost for app in apps_on[node]):
            answer, taken_mb = _answer(app, failure, protection, room)
            loaded_mb[answer.node] += taken_mb
            played.answers.append(answer)
        for node, mb in loaded_mb.items():
            played.reserved_mb[node] = max(played.reserved_mb[node], mb)
    return played


def _answer(app: AppVersion, failure: Failure, protection: Protection, room: Room) -> tuple[Answer, float]:
    """The answer, and what it takes of its node's room."""
    standby = protection.standbys.get(app.app)
    if standby is not None and standby.node not in failure.lost:
        return Answer(app, failure.name, "warm", standby.variant, standby.variant, standby.node), 0.0
    for way in protection.ways_back(app, failure, room):
        first_mb = replica_mb(way.first)
        both_mb = first_mb if way.first == way.last else first_mb + replica_mb(way.last)
        free_mb = room.free_mb(way.node) + ROUNDING_MB
        if first_mb > free_mb:
            continue
        last, taken_mb = (way.last, both_mb) if both_mb <= free_mb else (way.first, first_mb)
        room.take(way.node, taken_mb)
        return Answer(app, failure.name, "cold", way.first, last, way.node), taken_mb
    return Answer(app, failure.name, "none"), 0.0
