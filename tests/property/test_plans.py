"""Plans for random small clusters: against brute force, against a naive replay, and against themselves."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.core.planning import objective
from understudy.core.planning.choices import choices_of
from understudy.core.planning.footprint import busy, load_ms, replica_mb
from understudy.core.planning.heuristic import draft_plan
from understudy.core.planning.objective import Bin, Problem, Scenario, score
from understudy.core.planning.placement import PlacementProgram
from understudy.core.planning.plan import PlanInput, devices_of, make_plan, problem_of
from understudy.core.planning.replay import replay
from understudy.core.planning.search import PLACEMENT_GAP
from understudy.failures import to_survive
from understudy.settings.plan import PlanSettings
from understudy.wire.records import (
    AppVersion,
    ArtifactRef,
    Contingency,
    Criticality,
    Device,
    Environment,
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
    environments = [None, Environment(python="/e0"), Environment(python="/e1")]
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
            environment=draw(st.sampled_from(environments)),
        )
        for i, (size_mb, accuracy) in enumerate(zip(sizes_mb, accuracies, strict=True))
    )


SURVIVE = [("node", "site"), ("node",), ("site", "node:n0+node:n1"), ("any-2",), ("any-3", "site")]


@st.composite
def nodes_of(draw: st.DrawFn, nodes_max: int, memory_mb: tuple[int, int]) -> tuple[NodeInfo, ...]:
    found = []
    for i in range(draw(st.integers(1, nodes_max))):
        site = draw(st.sampled_from(["a", "b", "c", "b/x", "b/y"]))
        sizes = draw(st.lists(st.integers(*memory_mb), min_size=1, max_size=2))
        cores = draw(st.sampled_from([0.0, 0.0, 1.0, 2.5]))
        devices = tuple(Device(f"d{k}", float(mb), cores) for k, mb in enumerate(sizes))
        if len(devices) == 1:
            found.append(NodeInfo(f"n{i}", site, "", float(sizes[0]), cores))
        else:
            found.append(NodeInfo(f"n{i}", site, "", float(sum(sizes)), 0.0, devices))
    return tuple(found)


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
    rates: tuple[float, ...] = (0.0, 200.0, 900.0),
    survive: st.SearchStrategy[tuple[str, ...]] | None = None,
) -> PlanInput:
    nodes = draw(nodes_of(nodes_max, memory_mb))
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
                requests_per_s=draw(st.sampled_from(rates)),
            )
        )
    keys = {v.environment_key for app in apps for v in app.variants} - {""}
    pairs = [(node.name, key) for node in nodes for key in sorted(keys)]
    lacking = frozenset(draw(st.sets(st.sampled_from(pairs))) if pairs else ())
    wishes = draw(st.just(PlanSettings().survive) if survive is None else survive)
    return PlanInput(nodes, tuple(apps), settings=PlanSettings(survive=wishes), lacking=lacking)


@slowly
@pytest.mark.parametrize("method", ["auto", "heuristic"])
@given(facts=clusters(survive=st.sampled_from(SURVIVE)))
def test_every_plan_stands_up_to_its_replay(method: str, facts: PlanInput) -> None:
    facts = msgspec.structs.replace(facts, settings=msgspec.structs.replace(facts.settings, method=method))
    plan = make_plan(facts, 1, "test")
    verdict = replay(plan, facts.apps, facts.nodes, facts.settings.survive, facts.lacking)
    assert verdict.violations == ()
    assert verdict.outcomes == plan.outcomes
    cold = {(o.app, o.failure) for o in plan.outcomes if o.how == "cold" and "any" not in o.failure}
    assert cold == {(c.app, c.failure) for c in plan.contingencies if "any" not in c.failure}
    assert plan.unplaced.keys() == {a.app for a in facts.apps} - {p.app for p in plan.placements}
    assert plan.moved == len(plan.placements)


@slowly
@given(clusters(survive=st.sampled_from(SURVIVE)))
def test_the_heuristic_adds_up_the_same_prices(facts: PlanInput) -> None:
    facts = msgspec.structs.replace(facts, current=make_plan(facts, 1, "test"))
    for current in (None, facts.current):
        problem = problem_of(msgspec.structs.replace(facts, current=current))
        if problem.bins and problem.apps:
            draft = draft_plan(problem, choices_of(problem), current)
            assert abs(draft.loss - (objective.ideal(problem) - score(problem, draft.plan))) < 1e-6
            assert draft.loss >= draft.bound.loss - 1e-6


@slowly
@given(clusters())
def test_the_same_facts_move_nothing(facts: PlanInput) -> None:
    plan = make_plan(facts, 1, "test")
    again = make_plan(msgspec.structs.replace(facts, current=plan), 2, "test")
    assert again.placements == plan.placements
    assert again.contingencies == plan.contingencies
    assert make_plan(facts, 1, "test").placements == plan.placements


@slowly
@given(clusters(nodes_max=4, memory_mb=(1000, 2000), rates=(0.0,)), st.data())
def test_with_room_a_lost_node_moves_only_what_was_on_it(facts: PlanInput, data: st.DataObject) -> None:
    plan = make_plan(facts, 1, "test")
    lost = data.draw(st.sampled_from(facts.nodes))
    left = tuple(node for node in facts.nodes if node != lost)
    after = make_plan(msgspec.structs.replace(facts, nodes=left, current=plan), 2, "node lost")
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
    solution = PlacementProgram(problem, choices_of(problem)).solve(time_limit_s=5.0, gap=0.0)
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
    for choice in itertools.product(*(list(all_placements(app, problem)) for app in problem.apps)):
        placements = tuple(itertools.chain.from_iterable(choice))
        plan = Plan(revision=1, placements=placements)
        if all(min(left) >= 0 for left in room(problem, plan).values()):
            found = [best_contingencies(problem, plan, scenario) for scenario in problem.scenarios]
            yield msgspec.structs.replace(plan, contingencies=tuple(itertools.chain.from_iterable(found)))


def all_placements(app: AppVersion, problem: Problem) -> Iterator[tuple[Placement, ...]]:
    yield ()
    places = [
        (variant, at)
        for variant, at in itertools.product(app.variants, problem.bins)
        if (at.node, variant.environment_key) not in problem.lacking
    ]
    for variant, at in places:
        primary = Placement(app.app, app.version, variant.name, at.node, Role.PRIMARY, at.device)
        yield (primary,)
        if app.criticality is Criticality.CRITICAL:
            for standby, other in places:
                if other.node != at.node:
                    placed = Placement(
                        app.app, app.version, standby.name, other.node, Role.STANDBY, other.device
                    )
                    yield primary, placed


def room(problem: Problem, plan: Plan) -> dict[tuple[str, str], list[float]]:
    """By device: MB and cores that are left."""
    left = {(at.node, at.device): [at.memory_mb, at.cores] for at in problem.bins}
    apps = {app.app: app for app in problem.apps}
    for placed in plan.placements:
        variant = apps[placed.app].variant(placed.variant)
        assert variant is not None
        take(left[placed.node, placed.device], apps[placed.app], variant)
    return left


def take(left: list[float], app: AppVersion, *variants: Variant) -> None:
    left[0] -= sum(replica_mb(variant) for variant in variants)
    left[1] -= max(busy(app, variant) for variant in variants)


def best_contingencies(problem: Problem, plan: Plan, scenario: Scenario) -> list[Contingency]:
    silenced = []
    for app in problem.apps:
        nodes = [p.node for p in plan.placements if p.app == app.app]
        if nodes and all(node in scenario.lost for node in nodes):
            silenced.append(app)
    best: tuple[float, list[tuple[AppVersion, Variant, Variant, Bin]]] = (float("inf"), [])
    for answers in itertools.product(*(list(all_answers(app, problem, scenario)) for app in silenced)):
        left = room(problem, plan)
        loss = 0.0
        for app, answer in zip(silenced, answers, strict=True):
            if answer is None:
                loss += objective.silent_loss(app)
                continue
            _, first, variant, at = answer
            take(left[at.node, at.device], app, *{v.name: v for v in (first, variant)}.values())
            loss += objective.cold_loss(app, first, variant)
        if all(min(free) >= 0 for free in left.values()) and loss < best[0]:
            best = (loss, [answer for answer in answers if answer is not None])
    return [
        Contingency(app.app, app.version, name, at.node, first.name, variant.name, at.device)
        for app, first, variant, at in best[1]
        for name in scenario.names
    ]


def all_answers(
    app: AppVersion, problem: Problem, scenario: Scenario
) -> Iterator[tuple[AppVersion, Variant, Variant, Bin] | None]:
    yield None
    for at in problem.bins:
        if at.node in scenario.lost:
            continue
        for first, variant in itertools.product(app.variants, app.variants):
            gain_ms = load_ms(variant) - load_ms(first)
            if any((at.node, v.environment_key) in problem.lacking for v in (first, variant)):
                continue
            if first == variant or gain_ms > objective.PROGRESSIVE_GAIN_MS:
                yield app, first, variant, at


# The verifier against a naive one, on plans that nobody would make


@st.composite
def careless_plans(draw: st.DrawFn) -> tuple[PlanInput, Plan]:
    facts = draw(clusters(nodes_max=4, survive=st.sampled_from(SURVIVE)))
    places = [
        (app, variant, node.name, device.name)
        for app in facts.apps
        for variant in app.variants
        for node in facts.nodes
        for device in devices_of(node)
    ]
    place = st.sampled_from(places)
    placements = tuple(
        Placement(app.app, app.version, variant.name, node, draw(st.sampled_from([*Role][:2])), device)
        for app, variant, node, device in draw(st.lists(place, max_size=6))
    )
    failures = [*to_survive(facts.nodes, facts.settings.survive), "any-2", "any-3"]
    contingencies: dict[str, Contingency] = {}
    for app, variant, node, device in draw(st.lists(place, max_size=8)):
        first = draw(st.sampled_from(app.variants))
        failure = draw(st.sampled_from(failures))
        c = Contingency(app.app, app.version, failure, node, first.name, variant.name, device)
        contingencies[c.key] = c
    return facts, Plan(revision=1, placements=placements, contingencies=tuple(contingencies.values()))


HOW = ("none", "cold", "warm", "unaffected")  # worst first


@given(careless_plans())
def test_the_verifier_sees_what_a_naive_one_sees(case: tuple[PlanInput, Plan]) -> None:
    facts, plan = case
    verdict = replay(plan, facts.apps, facts.nodes, facts.settings.survive)
    overfull = {v.split(" need")[0] for v in verdict.violations if v.startswith("node ")}
    expected_overfull = overfull_in(facts, plan, "", frozenset())
    expected = []
    for failure, lost in to_survive(facts.nodes, facts.settings.survive).items():
        expected_overfull |= overfull_in(facts, plan, failure, lost)
        for app in facts.apps:
            answer = naive_outcome(plan, app, failure, lost)
            if answer.how != "unaffected":
                expected.append((failure, app.app, answer.how, answer.accuracy))
    several = max((int(w[-1]) for w in facts.settings.survive if w.startswith("any")), default=0)
    several = min(several, len(facts.nodes) - 1)
    if several:
        losses = [frozenset(c) for c in itertools.combinations([n.name for n in facts.nodes], several)]
        for lost in losses:
            expected_overfull |= overfull_in(facts, plan, f"any-{several}", lost)
        for app in facts.apps:
            answers = [naive_outcome(plan, app, f"any-{several}", lost) for lost in losses]
            worst = min(answers, key=lambda o: (HOW.index(o.how), o.accuracy))
            if worst.how != "unaffected":
                expected.append((f"any-{several}", app.app, worst.how, worst.accuracy))
    assert overfull == expected_overfull
    found = [(o.failure, o.app, o.how, o.accuracy) for o in verdict.outcomes]
    assert sorted(found) == sorted(expected)


def overfull_in(facts: PlanInput, plan: Plan, failure: str, lost: frozenset[str]) -> set[str]:
    """Names of the devices that need more than they have, tried by brute force."""
    mb: dict[tuple[str, str], float] = defaultdict(float)
    needed: dict[tuple[str, str], float] = defaultdict(float)
    for app in facts.apps:
        for placed in plan.placements:
            if placed.app == app.app and placed.node not in lost:
                mb[placed.node, placed.device] += replica_mb(named(app, placed.variant))
                needed[placed.node, placed.device] += busy(app, named(app, placed.variant))
        acting = naive_answer(plan, app, failure, lost) if failure else None
        if acting is not None:
            loaded = [named(app, name) for name in {acting.first, acting.variant}]
            mb[acting.node, acting.device] += sum(map(replica_mb, loaded))
            needed[acting.node, acting.device] += max(busy(app, variant) for variant in loaded)
    return {
        f"node {node.name}" + (f" device {device.name}" if device.name else "")
        for node in facts.nodes
        for device in devices_of(node)
        if mb[node.name, device.name] > device.memory_mb
        or needed[node.name, device.name] > (device.cores or math.inf)
    }


def named(app: AppVersion, name: str) -> Variant:
    [found] = [variant for variant in app.variants if variant.name == name]
    return found


def naive_answer(plan: Plan, app: AppVersion, failure: str, lost: frozenset[str]) -> Contingency | None:
    """The contingency that acts; of "any-K" the first of the chain whose node is left."""
    nodes = {p.node for p in plan.placements if p.app == app.app}
    if not any(p.app == app.app and p.role is Role.PRIMARY for p in plan.placements) and "any" in failure:
        return None
    if not nodes or not nodes <= lost:
        return None
    staged = {c.failure: c for c in plan.contingencies if c.app == app.app}
    if not failure.startswith("any-"):
        acting = staged.get(failure)
        return acting if acting is not None and acting.node not in lost else None
    while True:
        acting = staged.get(f"any-{len(nodes)}" if len(nodes) > 1 else f"node:{min(nodes, default='')}")
        if acting is None or acting.node in nodes:
            return None
        if acting.node not in lost:
            return acting
        nodes = nodes | {acting.node}


def naive_outcome(plan: Plan, app: AppVersion, failure: str, lost: frozenset[str]) -> Outcome:
    placed = sorted((p for p in plan.placements if p.app == app.app), key=lambda p: app.rank(p.variant))
    left = [p for p in placed if p.node not in lost]
    primaries = [p for p in placed if p.role is Role.PRIMARY]
    several = failure.startswith("any-")
    if several and (not primaries or any(p in left for p in primaries)):
        return Outcome(failure, app.app, "unaffected", None, None, 2.0, 0)
    if all(p in left for p in primaries) and (primaries or not any(p.node in lost for p in placed)):
        return Outcome(failure, app.app, "unaffected", None, None, 2.0, 0)
    if not placed:
        return Outcome(failure, app.app, "unaffected", None, None, 2.0, 0)
    if left:
        accuracy = named(app, left[0].variant).accuracy
        return Outcome(failure, app.app, "warm", left[0].variant, None, accuracy, 0)
    acting = naive_answer(plan, app, failure, lost)
    if acting is not None:
        accuracy = named(app, acting.variant).accuracy
        return Outcome(failure, app.app, "cold", acting.variant, None, accuracy, 0)
    return Outcome(failure, app.app, "none", None, None, 0, 0)
