"""The plan: where replicas live, and what happens when something is lost.

Lives here: the facts that a plan is made from, and what comes out. The steps of the search are in `search`,
the program in `placement`, the prices in `objective`, the check in `replay`, the words in `weaknesses`.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec

from understudy.config import PlanSettings
from understudy.core.planning.footprint import replica_mb
from understudy.core.planning.objective import Place, Problem, Scenario, place
from understudy.core.planning.replay import lost_nodes, replay
from understudy.core.planning.search import find_plan
from understudy.core.planning.weaknesses import unplaced_reasons, weaknesses
from understudy.invariants import check
from understudy.wire.records import AppVersion, NodeInfo, Plan, Role


class PlanInput(msgspec.Struct, frozen=True):
    """Facts that a plan is made from. `nodes` are those that may hold replicas now."""

    nodes: tuple[NodeInfo, ...]
    apps: tuple[AppVersion, ...]
    current: Plan | None = None
    quarantined: frozenset[tuple[str, int, str]] = frozenset()  # (app, version, variant)
    settings: PlanSettings = PlanSettings()


def make_plan(facts: PlanInput, revision: int, reason: str) -> Plan:
    """A plan for `facts`, checked by replay; the same facts give the same plan.

    Blocks for `settings.time_limit_s` at most (give or take the building of the program), without holding
    the interpreter's lock: run it in a thread. Raises `ConfigError` if HiGHS isn't installed, and TIMEOUT
    if the limit was too short for any plan: the current one is then the best there is.
    """
    names = [app.app for app in facts.apps]
    check(len(set(names)) == len(names), "an app is planned in one version")
    problem = problem_of(facts)
    apps, nodes = problem.apps, problem.nodes
    threats = failures(nodes, facts.settings)
    plan = Plan(revision=revision, reason=reason)
    if apps and nodes:
        found = find_plan(problem, facts.current)
        plan = msgspec.structs.replace(found, revision=revision, reason=reason)
    unplaced = unplaced_reasons(plan, facts.apps, apps, nodes)
    plan = msgspec.structs.replace(plan, unplaced=unplaced)
    verdict = replay(plan, apps, nodes, threats)
    plan = msgspec.structs.replace(plan, outcomes=verdict.outcomes)
    warnings = (*verdict.violations, *weaknesses(plan, apps, nodes, facts.settings))
    return msgspec.structs.replace(plan, warnings=warnings)


def failures(nodes: tuple[NodeInfo, ...], settings: PlanSettings) -> tuple[str, ...]:
    """What the plan has to survive: "node:n1", …, and "site:a", … where there are two sites or more."""
    sites = sorted({node.site for node in nodes})
    threats = [f"node:{name}" for name in sorted(node.name for node in nodes) if "node" in settings.survive]
    threats += [f"site:{site}" for site in sites if "site" in settings.survive and len(sites) > 1]
    return tuple(threats)


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
    apps, nodes = _usable_apps(facts), _usable_nodes(facts)
    names: dict[frozenset[str], list[str]] = defaultdict(list)
    for failure in failures(nodes, facts.settings):
        lost = lost_nodes(failure, nodes)
        if len(lost) < len(nodes):
            names[lost].append(failure)
    current = facts.current or Plan(revision=0)
    return Problem(
        nodes=nodes,
        apps=apps,
        scenarios=tuple(Scenario(tuple(same), lost, len(same)) for lost, same in names.items()),
        settings=facts.settings,
        existing=_existing(current, nodes),
        staged=frozenset(current.contingencies),
    )


def _usable_apps(facts: PlanInput) -> tuple[AppVersion, ...]:
    """Apps by their variants that aren't quarantined; those without any are left out."""
    usable = []
    for app in facts.apps:
        variants = tuple(v for v in app.variants if (app.app, app.version, v.name) not in facts.quarantined)
        if variants:
            usable.append(msgspec.structs.replace(app, variants=variants))
    return tuple(usable)


def _usable_nodes(facts: PlanInput) -> tuple[NodeInfo, ...]:
    """Nodes by the memory that may be used."""
    reserve_mb = facts.settings.node_reserve_mb
    nodes = sorted(facts.nodes, key=lambda node: node.name)
    return tuple(
        msgspec.structs.replace(node, memory_mb=node.memory_mb - reserve_mb)
        for node in nodes
        if node.memory_mb > reserve_mb
    )


def _existing(current: Plan, nodes: tuple[NodeInfo, ...]) -> frozenset[Place]:
    """What runs already: current replicas on `nodes`, and what was activated for apps that lost theirs."""
    alive = {node.name for node in nodes}
    domains = {f"node:{node.name}" for node in nodes} | {f"site:{node.site}" for node in nodes}
    left = [placed for placed in current.placements if placed.node in alive]
    silenced = {placed.app for placed in current.placements} - {placed.app for placed in left}
    activated = {
        (c.app, c.version, c.variant, c.node)
        for c in current.contingencies
        if c.app in silenced and c.failure not in domains and c.node in alive
    }
    return frozenset({place(placed) for placed in left} | activated)
