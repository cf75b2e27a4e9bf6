"""Plans for random small clusters: against brute force, against a naive replay, and against themselves."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.config import PlanSettings
from understudy.core.planning import objective
from understudy.core.planning.footprint import load_ms, replica_mb
from understudy.core.planning.objective import Problem, Scenario, score
from understudy.core.planning.placement import PlacementProgram
from understudy.core.planning.plan import PlanInput, failures, make_plan, problem_of
from understudy.core.planning.replay import lost_nodes, replay
from understudy.core.planning.search import PLACEMENT_GAP
from understudy.wire.records import (
    AppVersion,
    ArtifactRef,
    Contingency,
    Criticality,
    NodeInfo,
    Outcome,
    Placement,
    Plan,
    Profile,
    Role,
    Variant,
)

slowly = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def families(draw: st.DrawFn, name: str, variants_max: int) -> tuple[Variant, ...]:
    count = draw(st.integers(1, variants_max))
    sizes_mb = sorted(draw(st.lists(st.integers(5, 60), min_size=count, max_size=count)), reverse=True)
    accuracies = sorted(
        draw(st.lists(st.sampled_from([0.7, 0.8, 0.9, 0.95]), min_size=count, max_size=count)), reverse=True
    )
    return tuple(
        Variant(
            f"{name}{i}",
            "onnx",
            ArtifactRef("0" * 64, 1_000_000, "file"),
            accuracy,
            profile=Profile(20.0, float(size_mb), draw(st.sampled_from([10.0, 60.0, 400.0])), 1.0),
        )
        for i, (size_mb, accuracy) in enumerate(zip(sizes_mb, accuracies, strict=True))
    )


@st.composite
def clusters(
    draw: st.DrawFn,
    *,
    apps_max: int = 4,
    nodes_max: int = 4,
    variants_max: int = 3,
    replicas_max: int = 2,
    critical_max: int = 2,
    memory_mb: tuple[int, int] = (20, 250),
) -> PlanInput:
    nodes = tuple(
        NodeInfo(f"n{i}", draw(st.sampled_from("abc")), "", float(draw(st.integers(*memory_mb))))
        for i in range(draw(st.integers(1, nodes_max)))
    )
    apps = []
    for i in range(draw(st.integers(1, apps_max))):
        kinds = list(Criticality) if i < critical_max else [Criticality.STANDARD, Criticality.BEST_EFFORT]
        apps.append(
            AppVersion(
                f"app{i}",
                1,
                draw(families("v", variants_max)),
                criticality=draw(st.sampled_from(kinds)),
                weight=draw(st.sampled_from([0.5, 1.0, 2.0])),
                replicas=draw(st.integers(1, replicas_max)),
            )
        )
    return PlanInput(nodes, tuple(apps))


@slowly
@given(clusters())
def test_every_plan_stands_up_to_its_replay(facts: PlanInput) -> None:
    plan = make_plan(facts, 1, "test")
    threats = failures(facts.nodes, facts.settings)
    verdict = replay(plan, facts.apps, facts.nodes, threats)
    assert verdict.violations == ()
    assert verdict.outcomes == plan.outcomes
    assert len(plan.outcomes) == len(threats) * len(facts.apps)
    cold = {(o.app, o.failure) for o in plan.outcomes if o.how == "cold"}
    assert cold == {(c.app, c.failure) for c in plan.contingencies}
    assert plan.unplaced.keys() == {a.app for a in facts.apps} - {p.app for p in plan.placements}


@slowly
@given(clusters())
def test_the_same_facts_move_nothing(facts: PlanInput) -> None:
    plan = make_plan(facts, 1, "test")
    again = make_plan(msgspec.structs.replace(facts, current=plan), 2, "test")
    assert again.placements == plan.placements
    assert again.contingencies == plan.contingencies
    assert make_plan(facts, 1, "test").placements == plan.placements


@slowly
@given(clusters(nodes_max=4, memory_mb=(1000, 2000)), st.data())
def test_with_room_a_lost_node_moves_only_what_was_on_it(facts: PlanInput, data: st.DataObject) -> None:
    plan = make_plan(facts, 1, "test")
    lost = data.draw(st.sampled_from(facts.nodes))
    left = tuple(node for node in facts.nodes if node != lost)
    after = make_plan(PlanInput(left, facts.apps, plan), 2, "node lost")
    had = {objective.place(p) for p in plan.placements}
    have = {objective.place(p) for p in after.placements}
    hit = {p.app for p in plan.placements if p.node == lost.name}
    assert {app for app, *_ in have - had} <= hit
    if left:
        primaries = {p for p in plan.placements if p.role is Role.PRIMARY and p.node != lost.name}
        assert primaries <= set(after.placements)


@slowly
@given(clusters())
def test_the_program_adds_up_the_same_prices(facts: PlanInput) -> None:
    problem = problem_of(msgspec.structs.replace(facts, current=make_plan(facts, 1, "test")))
    solution = PlacementProgram(problem).solve(time_limit_s=5.0, gap=0.0)
    assert solution is not None
    assert abs(solution.loss - (objective.ideal(problem) - score(problem, solution.plan))) < 1e-4


# Brute force: all placements, and for each failure all contingencies


@slowly
@given(clusters(apps_max=2, nodes_max=3, variants_max=2, replicas_max=1, critical_max=1))
def test_no_plan_is_better(facts: PlanInput) -> None:
    facts = msgspec.structs.replace(facts, settings=PlanSettings(gap=0.0))
    problem = problem_of(facts)
    plan = make_plan(facts, 1, "test")
    best = max(score(problem, candidate) for candidate in all_plans(problem))
    assert abs(score(problem, plan) - plan.objective) < 1e-6
    assert best - 2 * PLACEMENT_GAP <= plan.objective <= best + 1e-6


def all_plans(problem: Problem) -> Iterator[Plan]:
    """Every sensible placement, each with the best contingencies for it."""
    for choice in itertools.product(*(list(all_placements(app, problem.nodes)) for app in problem.apps)):
        placements = tuple(itertools.chain.from_iterable(choice))
        plan = Plan(revision=1, placements=placements)
        if all(free_mb >= 0 for free_mb in room(problem, plan).values()):
            found = [best_contingencies(problem, plan, scenario) for scenario in problem.scenarios]
            yield msgspec.structs.replace(plan, contingencies=tuple(itertools.chain.from_iterable(found)))


def all_placements(app: AppVersion, nodes: tuple[NodeInfo, ...]) -> Iterator[tuple[Placement, ...]]:
    yield ()
    for variant, node in itertools.product(app.variants, nodes):
        primary = Placement(app.app, app.version, variant.name, node.name, Role.PRIMARY)
        yield (primary,)
        if app.criticality is Criticality.CRITICAL:
            for standby, other in itertools.product(app.variants, nodes):
                if other != node:
                    yield primary, Placement(app.app, app.version, standby.name, other.name, Role.STANDBY)


def room(problem: Problem, plan: Plan) -> dict[str, float]:
    free_mb = {node.name: node.memory_mb for node in problem.nodes}
    apps = {app.app: app for app in problem.apps}
    for placed in plan.placements:
        variant = apps[placed.app].variant(placed.variant)
        assert variant is not None
        free_mb[placed.node] -= replica_mb(variant)
    return free_mb


def best_contingencies(problem: Problem, plan: Plan, scenario: Scenario) -> list[Contingency]:
    silenced = []
    for app in problem.apps:
        nodes = [p.node for p in plan.placements if p.app == app.app]
        if nodes and all(node in scenario.lost for node in nodes):
            silenced.append(app)
    best: tuple[float, list[tuple[AppVersion, Variant, Variant, str]]] = (float("inf"), [])
    for answers in itertools.product(*(list(all_answers(app, problem, scenario)) for app in silenced)):
        free_mb = room(problem, plan)
        loss = 0.0
        for app, answer in zip(silenced, answers, strict=True):
            if answer is None:
                loss += objective.silent_loss(app)
                continue
            _, first, variant, node = answer
            free_mb[node] -= sum({v.name: replica_mb(v) for v in (first, variant)}.values())
            loss += objective.cold_loss(app, first, variant)
        if all(mb >= 0 for mb in free_mb.values()) and loss < best[0]:
            best = (loss, [answer for answer in answers if answer is not None])
    return [
        Contingency(app.app, app.version, name, node, first.name, variant.name)
        for app, first, variant, node in best[1]
        for name in scenario.names
    ]


def all_answers(
    app: AppVersion, problem: Problem, scenario: Scenario
) -> Iterator[tuple[AppVersion, Variant, Variant, str] | None]:
    yield None
    for node in problem.nodes:
        if node.name in scenario.lost:
            continue
        for first, variant in itertools.product(app.variants, app.variants):
            gain_ms = load_ms(variant) - load_ms(first)
            if first == variant or gain_ms > objective.PROGRESSIVE_GAIN_MS:
                yield app, first, variant, node.name


# The verifier against a naive one, on plans that nobody would make


@st.composite
def careless_plans(draw: st.DrawFn) -> tuple[PlanInput, Plan]:
    facts = draw(clusters(nodes_max=3))
    places = [(app, variant, node) for app in facts.apps for variant in app.variants for node in facts.nodes]
    place = st.sampled_from(places)
    placements = tuple(
        Placement(app.app, app.version, variant.name, node.name, draw(st.sampled_from([*Role][:2])))
        for app, variant, node in draw(st.lists(place, max_size=6))
    )
    threats = failures(facts.nodes, facts.settings)
    contingencies: dict[str, Contingency] = {}
    for app, variant, node in draw(st.lists(place, max_size=8)):
        first = draw(st.sampled_from(app.variants))
        failure = draw(st.sampled_from(threats))
        c = Contingency(app.app, app.version, failure, node.name, first.name, variant.name)
        contingencies[c.key] = c
    return facts, Plan(revision=1, placements=placements, contingencies=tuple(contingencies.values()))


@given(careless_plans())
def test_the_verifier_sees_what_a_naive_one_sees(case: tuple[PlanInput, Plan]) -> None:
    facts, plan = case
    threats = failures(facts.nodes, facts.settings)
    verdict = replay(plan, facts.apps, facts.nodes, threats)
    overfull = {v.split(" ")[1] for v in verdict.violations if v.startswith("node ")}
    expected_overfull = set()
    expected_outcomes = []
    for failure in ("", *threats):
        lost = lost_nodes(failure, facts.nodes)
        needed_mb: dict[str, float] = defaultdict(float)
        for app in facts.apps:
            left = [p for p in plan.placements if p.app == app.app and p.node not in lost]
            for placed in left:
                needed_mb[placed.node] += size_mb(app, placed.variant)
            answer = naive_outcome(plan, app, failure, lost)
            if failure:
                expected_outcomes.append((failure, app.app, answer.how, answer.variant))
            if answer.how == "cold":
                [acting] = [c for c in plan.contingencies if (c.app, c.failure) == (app.app, failure)]
                for variant in {acting.first, acting.variant}:
                    needed_mb[acting.node] += size_mb(app, variant)
        for node in facts.nodes:
            if needed_mb[node.name] > node.memory_mb:
                expected_overfull.add(node.name)
    assert overfull == expected_overfull
    assert [(o.failure, o.app, o.how, o.variant) for o in verdict.outcomes] == expected_outcomes


def size_mb(app: AppVersion, name: str) -> float:
    [found] = [replica_mb(v) for v in app.variants if v.name == name]
    return found


def naive_outcome(plan: Plan, app: AppVersion, failure: str, lost: frozenset[str]) -> Outcome:
    placed = sorted((p for p in plan.placements if p.app == app.app), key=lambda p: app.rank(p.variant))
    left = [p for p in placed if p.node not in lost]
    primaries = [p for p in placed if p.role is Role.PRIMARY]
    if primaries and all(p in left for p in primaries):
        return Outcome(failure, app.app, "unaffected", primaries[0].variant, None, 0, 0)
    if left:
        return Outcome(failure, app.app, "warm", left[0].variant, None, 0, 0)
    for c in plan.contingencies:
        if (c.app, c.failure) == (app.app, failure) and c.node not in lost:
            return Outcome(failure, app.app, "cold", c.variant, None, 0, 0)
    return Outcome(failure, app.app, "none", None, None, 0, 0)
