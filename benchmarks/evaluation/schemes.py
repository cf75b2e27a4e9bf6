"""Understudy's plan, and the simpler schemes that it is compared with.

All of them start from the primaries that Understudy's plan has placed, so that what differs is what protects
them. The simpler ones are greedy, best fit, critical apps first. Their warm standbys keep off the primary's
node (and off its site, if sites are to be survived, where that is possible). Their cold standbys reserve
nothing: a node is chosen when the failure is there, by best fit into what is free on those that are left.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.evaluation.replayer import Protection, Room, Running, Way, by_rank, free_room
from benchmarks.evaluation.workloads import Cluster, Failure
from understudy.core.planning.footprint import replica_mb
from understudy.core.planning.plan import PlanInput, make_plan
from understudy.settings.plan import PlanSettings
from understudy.wire.records import AppVersion, Contingency, Criticality, Plan, Role, Variant

UNDERSTUDY = "Understudy"
ONE_STEP = "no progressive step"
FULL_WARM = "full-size warm"
FULL_COLD = "full-size cold"
FULL_WARM_CRITICAL = "warm for critical"
SMALLEST = "smallest only"
SCHEMES = (UNDERSTUDY, ONE_STEP, FULL_WARM, FULL_COLD, FULL_WARM_CRITICAL, SMALLEST)


@dataclass(frozen=True, slots=True)
class Planned:
    plan: Plan
    plan_s: float  # CPU time of making and checking it


def understudy_plan(
    cluster: Cluster, survive: tuple[str, ...], time_limit_s: float = PlanSettings().time_limit_s
) -> Planned:
    """The plan that the controller would make, for a cluster that is empty so far."""
    settings = PlanSettings(survive=survive, time_limit_s=time_limit_s)
    started_s = time.process_time()
    plan = make_plan(PlanInput(cluster.nodes, cluster.apps, settings=settings), 1, "evaluation")
    return Planned(plan, time.process_time() - started_s)


def protections(cluster: Cluster, plan: Plan, survive: tuple[str, ...]) -> Iterator[Protection]:
    """Every scheme's, in the order of `SCHEMES`."""
    apps = {app.app: app for app in cluster.apps}
    primaries, standbys = _running(plan, apps, Role.PRIMARY), _running(plan, apps, Role.STANDBY)
    yield Protection(UNDERSTUDY, primaries, standbys, _Contingencies(plan, progressive=True))
    yield Protection(ONE_STEP, primaries, standbys, _Contingencies(plan, progressive=False))
    apart = "site" in survive

    def warm(choice: Choice, criticality: Criticality | None = None) -> dict[str, Running]:
        wanted = [app for app in cluster.apps if criticality in (None, app.criticality)]
        return _standbys(cluster, primaries, wanted, choice, apart)

    critical = Criticality.CRITICAL
    yield Protection(FULL_WARM, primaries, warm(_full_size), _nothing)
    yield Protection(FULL_COLD, primaries, {}, _cold(_full_size))
    yield Protection(FULL_WARM_CRITICAL, primaries, warm(_full_size, critical), _cold(_full_size))
    yield Protection(SMALLEST, primaries, warm(_smallest, critical), _cold(_smallest))


def _running(plan: Plan, apps: dict[str, AppVersion], role: Role) -> dict[str, Running]:
    placed = [p for p in plan.placements if p.role is role]
    return {p.app: Running(_variant(apps[p.app], p.variant), p.node) for p in placed}


def _variant(app: AppVersion, name: str) -> Variant:
    return next(variant for variant in app.variants if variant.name == name)


class _Contingencies:
    """The ways back of a plan, in the order in which a gateway asks for them.

    First the one for the site if the site is lost, then the one for the node that held the primary, then the
    second backup, then any other. The gateways' last resort, the smallest variant on any node, is left out:
    nothing reserves room for it, or stages its file.
    """

    def __init__(self, plan: Plan, *, progressive: bool) -> None:
        self._progressive = progressive
        self._by_app: dict[str, list[Contingency]] = defaultdict(list)
        for contingency in plan.contingencies:
            self._by_app[contingency.app].append(contingency)
        self._host = {p.app: p.node for p in plan.placements if p.role is Role.PRIMARY}

    def __call__(self, app: AppVersion, failure: Failure, room: Room) -> Iterator[Way]:
        order = (failure.name, f"node:{self._host[app.app]}", "any-2")

        def preference(contingency: Contingency) -> tuple[int, str]:
            name = contingency.failure
            return order.index(name) if name in order else len(order), name

        for contingency in sorted(self._by_app[app.app], key=preference):
            last = _variant(app, contingency.variant)
            first = _variant(app, contingency.first) if self._progressive else last
            yield Way(first, last, contingency.node)


# The simpler schemes

Choice = Callable[[AppVersion], Variant]


def _full_size(app: AppVersion) -> Variant:
    return app.full_size


def _smallest(app: AppVersion) -> Variant:
    return app.smallest


def _standbys(
    cluster: Cluster, primaries: dict[str, Running], apps: list[AppVersion], choice: Choice, apart: bool
) -> dict[str, Running]:
    site_of = {node.name: node.site for node in cluster.nodes}
    nodes_of: dict[str, list[str]] = defaultdict(list)
    for info in cluster.nodes:
        nodes_of[info.site].append(info.name)
    room = Room(free_room(cluster, primaries))
    standbys = {}
    for app in by_rank(app for app in apps if app.app in primaries):
        variant, home = choice(app), primaries[app.app].node
        size_mb = replica_mb(variant)
        node = room.best_fit(size_mb, frozenset(nodes_of[site_of[home]])) if apart else None
        node = node or room.best_fit(size_mb, frozenset({home}))
        if node is not None:
            room.take(node, size_mb)
            standbys[app.app] = Running(variant, node)
    return standbys


def _nothing(app: AppVersion, failure: Failure, room: Room) -> Iterator[Way]:
    return iter(())


def _cold(choice: Choice) -> Callable[[AppVersion, Failure, Room], Iterator[Way]]:
    def ways_back(app: AppVersion, failure: Failure, room: Room) -> Iterator[Way]:
        variant = choice(app)
        node = room.best_fit(replica_mb(variant))
        if node is not None:
            yield Way(variant, variant, node)

    return ways_back
