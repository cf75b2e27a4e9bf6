"""The plan: where replicas live, and what happens when something is lost.

Lives here: the facts that a plan is made from, and what comes out. Who finds it is in `search`, the prices
are in `objective`, the check is in `replay`, the words in `weaknesses`.
"""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from understudy.core.planning.bound import Prices
from understudy.core.planning.choices import Choices, choices_of
from understudy.core.planning.footprint import replica_mb
from understudy.core.planning.objective import Bin, Lack, Place, Problem, Scenario, place
from understudy.core.planning.replay import replay
from understudy.core.planning.search import find_plan
from understudy.core.planning.weaknesses import unplaced_reasons, weaknesses
from understudy.failures import any_count, any_of, lost_nodes, sites_of, to_survive
from understudy.invariants import check
from understudy.settings.plan import PlanSettings
from understudy.wire.records import AppVersion, Device, NodeInfo, Plan, Role, Variant, VariantKey


class PlanInput(msgspec.Struct, frozen=True):
    """Facts that a plan is made from. `nodes` are those that may hold replicas now."""

    nodes: tuple[NodeInfo, ...]
    apps: tuple[AppVersion, ...]
    current: Plan | None = None
    quarantined: frozenset[VariantKey] = frozenset()
    settings: PlanSettings = PlanSettings()
    lacking: frozenset[Lack] = frozenset()


def make_plan(facts: PlanInput, revision: int, reason: str) -> Plan:
    """A plan for `facts`, checked by replay; the same facts give the same plan. See `Planner`."""
    return Planner().plan(facts, revision, reason)


class Planner:
    """Makes one plan after the other, and remembers what apps cost that are still the same.

    Blocks for `settings.time_limit_s` at most beyond what the heuristic takes, mostly without holding the
    interpreter's lock: run it in a thread, one plan at a time. Raises `ConfigError` if the exact method is
    asked for and HiGHS isn't installed.
    """

    def __init__(self) -> None:
        self._settings = PlanSettings()
        self._known: dict[str, Choices] = {}
        self._prices: Prices | None = None

    def plan(self, facts: PlanInput, revision: int, reason: str) -> Plan:
        # Large plans are hundreds of thousands of records, none of them garbage; walking them again and again
        # would be a third of the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._plan(facts, revision, reason)
        finally:
            if collecting:
                gc.enable()

    def _plan(self, facts: PlanInput, revision: int, reason: str) -> Plan:
        names = [app.app for app in facts.apps]
        check(len(set(names)) == len(names), "an app is planned in one version")
        problem = problem_of(facts)
        nodes = usable_nodes(facts)
        plan = Plan(revision=revision, reason=reason)
        if problem.apps and nodes:
            found, self._prices = find_plan(problem, self._choices(problem), facts.current, self._prices)
            plan = msgspec.structs.replace(found, revision=revision, reason=reason)
        unplaced = unplaced_reasons(plan, facts.apps, problem.apps, nodes, facts.lacking)
        plan = msgspec.structs.replace(plan, unplaced=unplaced)
        verdict = replay(plan, problem.apps, nodes, facts.settings.survive, facts.lacking)
        plan = msgspec.structs.replace(plan, outcomes=verdict.outcomes)
        weak = weaknesses(plan, problem.apps, nodes, facts.settings, facts.lacking)
        return msgspec.structs.replace(plan, warnings=(*verdict.violations, *weak))

    def _choices(self, problem: Problem) -> list[Choices]:
        if problem.settings != self._settings:
            self._settings, self._known, self._prices = problem.settings, {}, None
        choices = choices_of(problem, self._known)
        self._known = {c.app.app: c for c in choices}
        return choices


def overhead(plan: Plan, apps: tuple[AppVersion, ...]) -> float:
    """Memory of standbys and of the room that contingencies need, as a fraction of the primaries' memory.

    Room is shared between failures: a node reserves for the worst of them, not for their sum.
    """
    sizes = {(app.app, v.name): replica_mb(v) for app in apps for v in app.variants}
    primaries_mb = standbys_mb = 0.0
    for placed in plan.placements:
        size_mb = sizes.get((placed.app, placed.variant), 0.0)
        if placed.role is Role.PRIMARY:
            primaries_mb += size_mb
        else:
            standbys_mb += size_mb
    needed_mb: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for c in plan.contingencies:
        both = {c.first, c.variant}
        needed_mb[c.node][c.failure] += sum(sizes.get((c.app, variant), 0.0) for variant in both)
    reserved_mb = sum(max(by_failure.values()) for by_failure in needed_mb.values())
    return (standbys_mb + reserved_mb) / primaries_mb if primaries_mb else 0.0


# The problem


def problem_of(facts: PlanInput) -> Problem:
    """What is to be decided: usable variants on usable memory, failures that take the same nodes as one."""
    nodes = usable_nodes(facts)
    names: dict[frozenset[str], list[str]] = defaultdict(list)
    for failure, lost in to_survive(nodes, facts.settings.survive).items():
        if len(lost) < len(nodes):
            names[lost].append(failure)
    current = facts.current or Plan(revision=0)
    return Problem(
        bins=tuple(
            Bin(node.name, device.name, node.site, device.memory_mb, device.cores or math.inf)
            for node in _far_apart(nodes)
            for device in devices_of(node)
        ),
        apps=_usable_apps(facts),
        scenarios=tuple(Scenario(tuple(same), lost) for lost, same in names.items()),
        settings=facts.settings,
        any_of=max(0, min(any_of(facts.settings.survive), len(nodes) - 1)),
        existing=_existing(current, nodes),
        staged=frozenset(current.contingencies),
        lacking=facts.lacking,
    )


def usable_nodes(facts: PlanInput) -> tuple[NodeInfo, ...]:
    """Nodes and their devices by the memory that may be used, sorted by name."""
    reserve_mb = facts.settings.node_reserve_mb
    usable = []
    for node in sorted(facts.nodes, key=lambda node: node.name):
        devices = tuple(
            msgspec.structs.replace(device, memory_mb=device.memory_mb - reserve_mb)
            for device in node.devices
            if device.memory_mb > reserve_mb
        )
        memory_mb = (
            sum(device.memory_mb for device in devices) if node.devices else node.memory_mb - reserve_mb
        )
        if memory_mb > 0:
            usable.append(msgspec.structs.replace(node, memory_mb=memory_mb, devices=devices))
    return tuple(usable)


def devices_of(node: NodeInfo) -> tuple[Device, ...]:
    """What replicas are placed on: the node's devices, or the whole node if it has none."""
    return node.devices or (Device("", node.memory_mb, node.cores),)


def _far_apart(nodes: Iterable[NodeInfo]) -> list[NodeInfo]:
    """In an order in which neighbours lie as far apart as can be: what is left over lies so, too."""
    places: dict[str, int] = {}  # of each site among its neighbours
    sites: dict[str, int] = {}  # in each site, so far
    members: dict[str, int] = {}  # nodes in each site, so far
    keys = {}
    for node in nodes:
        key = []
        parent = ""
        for site in sites_of(node.site):
            if site not in places:
                places[site] = sites[parent] = sites.get(parent, 0) + 1
            key.append(places[site])
            parent = site
        inside = members[node.site] = members.get(node.site, 0) + 1
        keys[node.name] = (inside, *reversed(key))
    return sorted(nodes, key=lambda node: keys[node.name])


def _usable_apps(facts: PlanInput) -> tuple[AppVersion, ...]:
    """Apps by their variants that aren't quarantined and quick enough; those without any are left out.

    If no variant is quick enough for the app's objective, the quickest is better than none.
    """
    usable = []
    for app in facts.apps:
        variants = app.variants
        if facts.quarantined:
            variants = tuple(v for v in variants if (app.app, app.version, v.name) not in facts.quarantined)
        if facts.lacking:  # ready nowhere is as good as quarantined
            variants = tuple(v for v in variants if _is_ready_somewhere(v, facts))
        if app.objective_ms is not None and variants:
            quick = tuple(v for v in variants if _latency_ms(v) <= app.objective_ms)
            variants = quick or (min(variants, key=_latency_ms),)
        if variants:
            same = len(variants) == len(app.variants)
            usable.append(app if same else msgspec.structs.replace(app, variants=variants))
    return tuple(usable)


def _is_ready_somewhere(variant: Variant, facts: PlanInput) -> bool:
    return any((node.name, variant.environment_key) not in facts.lacking for node in facts.nodes)


def _latency_ms(variant: Variant) -> float:
    return variant.profile.latency_ms if variant.profile is not None else 0.0


def _existing(current: Plan, nodes: tuple[NodeInfo, ...]) -> frozenset[Place]:
    """What runs already: current replicas on `nodes`, and what was activated for apps that lost theirs."""
    alive = {node.name for node in nodes}
    left = [placed for placed in current.placements if placed.node in alive]
    silenced = {placed.app for placed in current.placements} - {placed.app for placed in left}
    activated = {
        (c.app, c.version, c.variant, c.node, c.device)
        for c in current.contingencies
        if c.app in silenced
        and c.node in alive
        and (any_count(c.failure) or not lost_nodes(c.failure, nodes))
    }
    return frozenset({place(placed) for placed in left} | activated)
