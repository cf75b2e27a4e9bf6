"""What a plan can't promise, as sentences for people: single points of failure and unmet wishes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from understudy.core.planning.footprint import replica_mb
from understudy.core.planning.objective import Lack, placements_by_app
from understudy.failures import lost_nodes
from understudy.settings.plan import PlanSettings
from understudy.wire.records import (
    AppVersion,
    Contingency,
    Criticality,
    Device,
    NodeInfo,
    Outcome,
    Placement,
    Plan,
    Role,
)

SENTENCES_MAX = 200


def unplaced_reasons(
    plan: Plan,
    wanted: Iterable[AppVersion],
    usable: Iterable[AppVersion],
    nodes: tuple[NodeInfo, ...],
    lacking: Collection[Lack] = (),
) -> dict[str, str]:
    """Why each app of `wanted` that has no primary has none. `usable` are apps by their usable variants."""
    placed = {p.app for p in plan.placements if p.role is Role.PRIMARY}
    usable_by_name = {app.app: app for app in usable}
    reasons = {}
    room: _Room | None = None
    for app in wanted:
        if app.app in placed:
            continue
        if app.app not in usable_by_name and (lack := _lacking(app, nodes, lacking)):
            reasons[app.app] = f"none of its variants can run anywhere{lack}"
        elif app.app not in usable_by_name:
            reasons[app.app] = "every variant is quarantined; deploy a new version or clear the quarantine"
        elif not nodes:
            reasons[app.app] = "no node is available"
        else:
            room = room or _Room(plan, tuple(usable_by_name.values()), nodes, lacking)
            reasons[app.app] = room.lack(usable_by_name[app.app], "")
    return reasons


def weaknesses(
    plan: Plan,
    apps: tuple[AppVersion, ...],
    nodes: tuple[NodeInfo, ...],
    settings: PlanSettings,
    lacking: Collection[Lack] = (),
) -> tuple[str, ...]:
    """One sentence for each weakness of a plan that was replayed (`outcomes` are read), the first of many."""
    room = _Room(plan, apps, nodes, lacking)
    found = _of_cluster(nodes, settings)
    found += [f"app {app!r} isn't placed: {reason}" for app, reason in sorted(plan.unplaced.items())]
    placements = placements_by_app(plan)
    silenced: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in plan.outcomes:
        if outcome.how in ("none", "static"):
            silenced[outcome.app].append(outcome)
    for app in apps:
        if app.app not in placements:
            continue
        found += _of_placements(app, placements[app.app], room)
        found += _of_standby(app, placements[app.app], room, settings)
        found += _of_outcomes(app, silenced[app.app], room)
    if len(found) > SENTENCES_MAX:
        found[SENTENCES_MAX:] = [f"and {len(found) - SENTENCES_MAX} more like these"]
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
    app: AppVersion, placements: list[Placement], room: _Room, settings: PlanSettings
) -> list[str]:
    """Critical apps are warm against every failure to survive, or a sentence says why not."""
    if app.criticality is not Criticality.CRITICAL or len(room.nodes) < 2 or not settings.survive:
        return []
    if len({p.node for p in placements}) < 2:
        return [
            f"critical app {app.app!r} has no warm standby: no other node has room for its smallest variant"
        ]
    sites = {room.site_of[p.node] for p in placements}
    if "site" in settings.survive and len(sites) == 1 and len(set(room.site_of.values())) > 1:
        return [
            f"critical app {app.app!r} has its standby in the same site as its primary, {sites.pop()!r}: "
            "no other site has room for it"
        ]
    return []


def _of_outcomes(app: AppVersion, silenced: list[Outcome], room: _Room) -> list[str]:
    failures_by_reason: dict[str, list[str]] = defaultdict(list)
    for outcome in silenced:
        if len(room.lost(outcome.failure)) == len(room.nodes):
            continue  # said once, for the whole cluster
        what = "no answer" if outcome.how == "none" else "only its static answer"
        reason = room.lack(app, outcome.failure)
        failures_by_reason[f"{what}|{reason}"].append(outcome.failure)
    found = []
    for key, failures in failures_by_reason.items():
        what, _, reason = key.partition("|")
        found.append(f"app {app.app!r} has {what} if {' or '.join(failures)} is lost: {reason}")
    return found


def _lacking(app: AppVersion, nodes: tuple[NodeInfo, ...], lacking: Collection[Lack]) -> str:
    """Where the packages of variants of `app` aren't ready, to be added to a sentence."""
    keys = {variant.environment_key for variant in app.variants}
    names = sorted({node.name for node in nodes for key in keys if (node.name, key) in lacking})
    return f"; packages of its variants aren't ready on {', '.join(names)}" if names else ""


class _Room:
    """Free memory per device, in normal operation and in a failure."""

    def __init__(
        self,
        plan: Plan,
        apps: tuple[AppVersion, ...],
        nodes: tuple[NodeInfo, ...],
        lacking: Collection[Lack],
    ) -> None:
        self.nodes = nodes
        self._lacking = lacking
        self.site_of = {node.name: node.site for node in nodes}
        self._sizes = {app.app: {v.name: v for v in app.variants} for app in apps}
        self._free_mb: dict[tuple[str, str], float] = {}
        for node in nodes:
            devices = node.devices or (Device("", node.memory_mb),)
            self._free_mb |= {(node.name, device.name): device.memory_mb for device in devices}
        for placed in plan.placements:
            self._free_mb[placed.node, placed.device] -= replica_mb(self._sizes[placed.app][placed.variant])
        self._staged: dict[str, list[Contingency]] = defaultdict(list)
        for c in plan.contingencies:
            self._staged[c.failure].append(c)
        self._lost: dict[str, frozenset[str]] = {"": frozenset()}
        self._best: dict[str, tuple[str, float]] = {}

    def lost(self, failure: str) -> frozenset[str]:
        if failure not in self._lost:
            self._lost[failure] = lost_nodes(failure, self.nodes)
        return self._lost[failure]

    def best(self, failure: str) -> tuple[str, float]:
        """Where most room is left in `failure`, and how much."""
        if failure not in self._best:
            lost = self.lost(failure)
            free = {at: mb for at, mb in self._free_mb.items() if at[0] not in lost}
            for c in self._staged[failure]:
                both = {c.first, c.variant}
                free[c.node, c.device] -= sum(replica_mb(self._sizes[c.app][name]) for name in both)
            at = max(free, key=lambda at: free[at])
            self._best[failure] = " device ".join(filter(None, at)), max(0.0, free[at])
        return self._best[failure]

    def lack(self, app: AppVersion, failure: str) -> str:
        name, free_mb = self.best(failure)
        needed_mb = min(replica_mb(variant) for variant in app.variants)
        figures = f"needs {needed_mb:.0f} MB, best node {name} has {free_mb:.0f} MB"
        lack = _lacking(app, self.nodes, self._lacking)
        if free_mb >= needed_mb and lack:
            return f"no room where it can run ({figures}){lack}"
        if free_mb >= needed_mb:
            return f"the room that is left protects apps that are worth more ({figures})"
        return f"no room for its smallest variant ({figures}){lack}"

    def left(self) -> str:
        name, free_mb = self.best("")
        return f"best node {name} has {free_mb:.0f} MB left"
