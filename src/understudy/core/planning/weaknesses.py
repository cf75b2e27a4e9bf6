"""What a plan can't promise, as sentences for people: single points of failure and unmet wishes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from understudy.config import PlanSettings
from understudy.core.planning.footprint import replica_mb
from understudy.core.planning.replay import lost_nodes
from understudy.wire.records import AppVersion, Criticality, NodeInfo, Placement, Plan, Role


def unplaced_reasons(
    plan: Plan, wanted: Iterable[AppVersion], usable: Iterable[AppVersion], nodes: tuple[NodeInfo, ...]
) -> dict[str, str]:
    """Why each app of `wanted` that has no primary has none. `usable` are apps by their usable variants."""
    placed = {p.app for p in plan.placements if p.role is Role.PRIMARY}
    usable_by_name = {app.app: app for app in usable}
    reasons = {}
    for app in wanted:
        if app.app in placed:
            continue
        if app.app not in usable_by_name:
            reasons[app.app] = "every variant is quarantined; deploy a new version or clear the quarantine"
        elif not nodes:
            reasons[app.app] = "no node is available"
        else:
            room = _Room(plan, tuple(usable_by_name.values()), nodes)
            reasons[app.app] = room.lack(usable_by_name[app.app], frozenset())
    return reasons


def weaknesses(
    plan: Plan, apps: tuple[AppVersion, ...], nodes: tuple[NodeInfo, ...], settings: PlanSettings
) -> tuple[str, ...]:
    """One sentence for each weakness of a plan that was replayed (`outcomes` are read)."""
    room = _Room(plan, apps, nodes)
    found = _of_cluster(nodes, settings)
    found += [f"app {app!r} isn't placed: {reason}" for app, reason in sorted(plan.unplaced.items())]
    for app in apps:
        placements = [p for p in plan.placements if p.app == app.app]
        if not placements:
            continue
        found += _of_placements(app, placements, room)
        found += _of_standby(app, placements, nodes, settings)
        found += _of_outcomes(app, plan, room)
    return tuple(found)


def _of_cluster(nodes: tuple[NodeInfo, ...], settings: PlanSettings) -> list[str]:
    if len(nodes) == 1 and settings.survive:
        return [
            f"the cluster has a single node, {nodes[0].name}: nothing answers while it is down; add a node"
        ]
    sites = {node.site for node in nodes}
    if len(sites) == 1 and "site" in settings.survive:
        return [f"all nodes are in one site, {sites.pop()!r}: its loss isn't survived; add a node in another"]
    return []


def _of_placements(app: AppVersion, placements: list[Placement], room: _Room) -> list[str]:
    primaries = [p for p in placements if p.role is Role.PRIMARY]
    found = []
    if len(primaries) < app.replicas:
        found.append(f"app {app.app!r} has {len(primaries)} of {app.replicas} replicas: {room.left()}")
    smaller = sorted({p.variant for p in primaries} - {app.full_size.name}, key=app.rank)
    if smaller:
        needed_mb = replica_mb(app.full_size)
        found.append(
            f"app {app.app!r} runs by {' and '.join(map(repr, smaller))}: its full-size variant "
            f"{app.full_size.name!r} needs {needed_mb:.0f} MB, {room.left()}"
        )
    return found


def _of_standby(
    app: AppVersion, placements: list[Placement], nodes: tuple[NodeInfo, ...], settings: PlanSettings
) -> list[str]:
    """Critical apps are warm against every failure to survive, or a sentence says why not."""
    if app.criticality is not Criticality.CRITICAL or len(nodes) < 2 or not settings.survive:
        return []
    if len({p.node for p in placements}) < 2:
        return [
            f"critical app {app.app!r} has no warm standby: no other node has room for its smallest variant"
        ]
    site_of = {node.name: node.site for node in nodes}
    sites = {site_of[p.node] for p in placements}
    if "site" in settings.survive and len(sites) == 1 and len(set(site_of.values())) > 1:
        return [
            f"critical app {app.app!r} has its standby in the same site as its primary, {sites.pop()!r}: "
            "no other site has room for it"
        ]
    return []


def _of_outcomes(app: AppVersion, plan: Plan, room: _Room) -> list[str]:
    failures_by_reason: dict[str, list[str]] = defaultdict(list)
    for outcome in plan.outcomes:
        if outcome.app != app.app or outcome.how not in ("none", "static"):
            continue
        lost = lost_nodes(outcome.failure, room.nodes)
        if len(lost) == len(room.nodes):
            continue  # said once, for the whole cluster
        what = "no answer" if outcome.how == "none" else "only its static answer"
        reason = room.lack(app, lost, outcome.failure)
        failures_by_reason[f"{what}|{reason}"].append(outcome.failure)
    found = []
    for key, failures in failures_by_reason.items():
        what, _, reason = key.partition("|")
        found.append(f"app {app.app!r} has {what} if {' or '.join(failures)} is lost: {reason}")
    return found


class _Room:
    """Free memory per node, in normal operation and in a failure."""

    def __init__(self, plan: Plan, apps: tuple[AppVersion, ...], nodes: tuple[NodeInfo, ...]) -> None:
        self.nodes = nodes
        sizes = {(app.app, v.name): replica_mb(v) for app in apps for v in app.variants}
        self._free_mb = {node.name: node.memory_mb for node in nodes}
        for placed in plan.placements:
            self._free_mb[placed.node] -= sizes[placed.app, placed.variant]
        self._reserved_mb: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for c in plan.contingencies:
            both = {c.first, c.variant}
            self._reserved_mb[c.failure][c.node] += sum(sizes[c.app, variant] for variant in both)

    def best(self, lost: frozenset[str], failure: str) -> tuple[str, float]:
        """The node with most room left in `failure`, and how much."""
        reserved = self._reserved_mb.get(failure, {})
        free = {name: mb - reserved.get(name, 0.0) for name, mb in self._free_mb.items() if name not in lost}
        name = max(free, key=lambda name: free[name])
        return name, max(0.0, free[name])

    def lack(self, app: AppVersion, lost: frozenset[str], failure: str = "") -> str:
        name, free_mb = self.best(lost, failure)
        needed_mb = min(replica_mb(variant) for variant in app.variants)
        figures = f"needs {needed_mb:.0f} MB, best node {name} has {free_mb:.0f} MB"
        if free_mb >= needed_mb:
            return f"the room that is left protects apps that are worth more ({figures})"
        return f"no room for its smallest variant ({figures})"

    def left(self) -> str:
        name, free_mb = self.best(frozenset(), "")
        return f"best node {name} has {free_mb:.0f} MB left"
