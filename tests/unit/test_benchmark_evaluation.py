"""The replayer and the simpler schemes of the evaluation, on clusters made by hand; what its file holds."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.evaluation import figures as f
from benchmarks.evaluation.__main__ import SWEEPS
from benchmarks.evaluation.families import ladders, table
from benchmarks.evaluation.page import summary
from benchmarks.evaluation.recorded import recorded
from benchmarks.evaluation.replayer import Answer, Played, Protection, Room, Running, Way, play
from benchmarks.evaluation.schemes import (
    FULL_COLD,
    FULL_WARM,
    FULL_WARM_CRITICAL,
    ONE_STEP,
    SCHEMES,
    SMALLEST,
    UNDERSTUDY,
    protections,
    understudy_plan,
)
from benchmarks.evaluation.times import MAIN_TIMING, TIMINGS, parts_ms
from benchmarks.evaluation.workloads import MIXES, Cluster, Failure, cluster, failures

from understudy.wire.records import (
    AppVersion,
    Contingency,
    Criticality,
    NodeInfo,
    Placement,
    Plan,
    Role,
    Variant,
)

LARGE, MIDDLE, SMALL = (ladders()["resnet"][rung] for rung in (0, 2, 4))  # 1,099, 325 and 199 MB
CRITICAL, STANDARD = Criticality.CRITICAL, Criticality.STANDARD
FAILURE = Failure("node:a", frozenset({"a"}))


def app(name: str, criticality: Criticality = STANDARD) -> AppVersion:
    return AppVersion(name, 1, (LARGE, MIDDLE, SMALL), criticality=criticality)


def nodes(**memory_mb: float) -> tuple[NodeInfo, ...]:
    """A site for each but c, which is in b's."""
    return tuple(NodeInfo(name, {"c": "b"}.get(name, name), "", mb) for name, mb in memory_mb.items())


def primary(name: str, node: str) -> Placement:
    return Placement(name, 1, LARGE.name, node, Role.PRIMARY)


def of(scheme: str, made: Cluster, plan: Plan, survive: tuple[str, ...] = ("node",)) -> Protection:
    return next(found for found in protections(made, plan, survive) if found.scheme == scheme)


def answers(protection: Protection, made: Cluster, failure: Failure = FAILURE) -> dict[str, Answer]:
    return {answer.app.app: answer for answer in play(made, protection, [failure]).answers}


def test_a_way_back_needs_room_for_both_of_its_variants_at_once() -> None:
    both_mb = 325.0 + 199.0
    for free_mb, last in ((both_mb, MIDDLE), (both_mb - 1, SMALL), (198.0, None)):
        made = Cluster(nodes(a=1099, b=free_mb), (app("x"),))
        ways = Protection("", {"x": Running(LARGE, "a")}, {}, lambda *_: iter([Way(SMALL, MIDDLE, "b")]))
        answer = answers(ways, made)["x"]
        assert (answer.how, answer.last) == ("cold" if last else "none", last)
        assert answer.first == (SMALL if last else None)


def test_what_a_failure_loads_leaves_less_for_the_next_app_and_nothing_for_the_next_failure() -> None:
    made = Cluster(nodes(a=2198, b=1099 + 199), (app("x"), app("y", CRITICAL), app("z")))
    primaries = {"x": Running(LARGE, "a"), "y": Running(LARGE, "a"), "z": Running(LARGE, "b")}
    smallest = Protection("", primaries, {}, lambda *_: iter([Way(SMALL, SMALL, "b")]))
    for failed in (1, 3):
        played = play(made, smallest, [FAILURE] * failed)
        assert [(a.app.app, a.how) for a in played.answers] == [("y", "cold"), ("x", "none")] * failed
        assert played.reserved_mb["b"] == 199


def test_a_standby_answers_unless_it_is_lost_too() -> None:
    made = Cluster(nodes(a=1099, b=325, c=1099), (app("x"),))
    warm = Protection("", {"x": Running(LARGE, "a")}, {"x": Running(MIDDLE, "b")}, lambda *_: iter(()))
    assert answers(warm, made)["x"].how == "warm"
    assert answers(warm, made)["x"].last == MIDDLE
    assert answers(warm, made, Failure("nodes:a+b", frozenset({"a", "b"})))["x"].how == "none"
    assert answers(warm, made, Failure("node:b", frozenset({"b"}))) == {}


def test_best_fit_takes_the_least_room_that_is_enough() -> None:
    room = Room({"a": 500.0, "b": 200.0, "c": 300.0})
    assert room.best_fit(250.0) == "c"
    assert room.best_fit(250.0, frozenset({"c"})) == "a"
    room.take("c", 100.0)
    assert room.best_fit(250.0) == "a"
    assert room.best_fit(200.0) == "b"
    assert room.best_fit(501.0) is None
    assert room.free_mb("c") == 200.0
    assert room.free_mb("lost") == 0.0


def test_whole_copies_go_to_critical_apps_first_and_to_other_sites() -> None:
    made = Cluster(nodes(a=2198, b=1099, c=1100), (app("x"), app("y", CRITICAL)))
    plan = Plan(1, (primary("x", "a"), primary("y", "a")))
    one_room = Cluster(made.nodes[:2], made.apps)
    assert of(FULL_WARM, one_room, plan).standbys == {"y": Running(LARGE, "b")}
    assert of(FULL_WARM, made, plan).standbys == {"y": Running(LARGE, "b"), "x": Running(LARGE, "c")}
    assert of(FULL_WARM_CRITICAL, made, plan).standbys.keys() == {"y"}
    assert of(SMALLEST, made, plan).standbys == {"y": Running(SMALL, "b")}
    on_b = Plan(1, (primary("x", "a"), primary("y", "b")))
    spare = Cluster(nodes(a=2198, b=1099, c=1099), made.apps)
    assert of(FULL_WARM_CRITICAL, spare, on_b, ("node",)).standbys == {"y": Running(LARGE, "a")}
    roomy = Cluster(nodes(a=2300, b=1099, c=1099), made.apps)
    assert of(FULL_WARM_CRITICAL, roomy, on_b, ("node",)).standbys == {"y": Running(LARGE, "c")}
    assert of(FULL_WARM_CRITICAL, roomy, on_b, ("node", "site")).standbys == {"y": Running(LARGE, "a")}


def test_cold_schemes_load_one_variant_where_it_fits_best() -> None:
    made = Cluster(nodes(a=2198, b=1200, c=300), (app("x"), app("y")))
    plan = Plan(1, (primary("x", "a"), primary("y", "a")))
    full = answers(of(FULL_COLD, made, plan), made)
    assert [(full[name].how, full[name].last) for name in "xy"] == [("cold", LARGE), ("none", None)]
    small = play(made, of(SMALLEST, made, plan), [FAILURE])
    assert [answer.last for answer in small.answers] == [SMALL, SMALL]
    assert small.reserved_mb == {"c": 199.0, "b": 199.0}


def test_a_plan_s_contingencies_are_tried_as_gateways_ask_for_them() -> None:
    made = Cluster(nodes(a=1099, b=2000, c=2000), (app("x"),))
    planned = [
        Contingency("x", 1, failure, node, SMALL.name, variant.name)
        for failure, node, variant in (("node:a", "b", LARGE), ("any-2", "c", MIDDLE), ("site:a", "c", SMALL))
    ]
    plan = Plan(1, (primary("x", "a"),), tuple(planned))
    one_step = answers(of(ONE_STEP, made, plan), made)["x"]
    assert (one_step.first, one_step.last) == (LARGE, LARGE)
    for lost, name, last in (
        ("a", "node:a", LARGE),
        ("a", "site:a", SMALL),
        ("ab", "nodes:a+b", MIDDLE),
    ):
        answer = answers(of(UNDERSTUDY, made, plan), made, Failure(name, frozenset(lost)))["x"]
        assert (answer.first, answer.last) == (SMALL, last)


@pytest.mark.parametrize("headroom", [0.1, 0.5])
def test_two_replays_that_share_nothing_agree_on_a_plan(headroom: float) -> None:
    """This one, and the planner's own, whose outcomes are in the plan."""
    made = cluster(4, 10, "slices", headroom, seed=1)
    plan = understudy_plan(made, ("node",), time_limit_s=1.0).plan
    played = play(made, of(UNDERSTUDY, made, plan), failures(made.nodes, "node", 1, 1))
    found = {(a.app.app, a.failure, a.how, a.last and a.last.name) for a in played.answers}
    planned = {(o.app, o.failure, o.how, o.variant) for o in plan.outcomes if o.how != "unaffected"}
    assert found == planned
    assert len(found) == len(made.apps)


def test_figures_count_pairs_apps_and_accuracy() -> None:
    made = Cluster(nodes(a=2198, b=1200), (app("x"), app("y")))
    primaries = {"x": Running(LARGE, "a"), "y": Running(LARGE, "a")}
    x, y = made.apps
    played = Played([Answer(x, "node:a", "cold", SMALL, MIDDLE), Answer(y, "node:a", "none")], {"b": 524.0})
    found = f.sample(
        made, Protection("s", primaries, {}, lambda *_: iter(())), played, 2, detailed=True
    ).scalars
    lost_pct = 100 * (1 - MIDDLE.accuracy / LARGE.accuracy)
    assert (found[f.RECOVERED], found[f.PROTECTED], found[f.WARM]) == (50.0, 50.0, 0.0)
    assert found[f.FIRST_LOST] == pytest.approx(100 * (1 - SMALL.accuracy / LARGE.accuracy))
    assert found[f.AFTER_LOST] == pytest.approx(lost_pct)
    assert found[f.ALL_LOST] == pytest.approx((lost_pct + 100) / 4)
    assert found[f.OVERHEAD] == pytest.approx(100 * 524 / 2198)
    assert found[f"{f.MTTR_COLD_MEAN}, {MAIN_TIMING}"] == pytest.approx(sum(found[p] for p in f.PARTS))
    assert found[f.PARTS[2]] == table()[SMALL.name].first_inference_ms


def test_loads_in_turn_wait_for_those_before_them_on_the_same_node() -> None:
    played = [Answer(app("x"), "node:a", "cold", SMALL, LARGE, node) for node in "bbc"]
    played.append(Answer(app("y"), "node:a", "warm", SMALL, SMALL, "b"))
    at_once, in_turn = (parts_ms(played, TIMINGS[name]) for name in (MAIN_TIMING, "A2 in turn"))
    own_ms = at_once[0][1] + at_once[0][2]
    waits = [late[1] - early[1] for early, late in zip(at_once, in_turn, strict=True)]
    assert waits == [0.0, pytest.approx(own_ms), 0.0, 0.0]
    assert at_once[3] == (at_once[3][0], 0.0, table()[SMALL.name].latency_ms)


def test_clusters_come_from_their_seed() -> None:
    for mix in MIXES:
        made = cluster(5, 27, mix, 0.25, seed=3)
        assert made == cluster(5, 27, mix, 0.25, seed=3)
        assert made != cluster(5, 27, mix, 0.25, seed=4)
        needed_mb = sum(_mb(app.full_size) for app in made.apps)
        assert sum(node.memory_mb for node in made.nodes) == pytest.approx(1.25 * needed_mb)
        assert sum(app.criticality is CRITICAL for app in made.apps) == 5
        for ladder in (app.variants for app in made.apps):
            assert len(ladder) >= 2
            steps = list(itertools.pairwise(ladder))
            assert all(a.accuracy > b.accuracy and _mb(a) > _mb(b) for a, b in steps)


def test_every_pair_of_few_nodes_fails_and_a_sample_of_many() -> None:
    few = cluster(5, 27, "slices", 0.25, seed=1).nodes
    assert len({failure.lost for failure in failures(few, "two nodes", 500, 1)}) == 10
    assert len(failures(few, "two nodes", 9, 1)) == 9
    assert {len(failure.lost) for failure in failures(few, "two nodes", 9, 1)} == {2}
    assert set().union(*(failure.lost for failure in failures(few, "site", 9, 1))) == {n.name for n in few}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "evaluation.json"
    return json.loads(path.read_text())


def test_the_results_hold_every_case_and_what_the_docs_show_of_them(result: dict[str, Any]) -> None:
    found = recorded(result["rows"])
    for sweep in SWEEPS:
        size = (sweep.nodes, sweep.apps, sweep.mix)
        for kind in sweep.kinds:
            cases = found.cases(size, kind)
            assert [case.headroom for case in cases] == list(sweep.headrooms)
            for case, scheme in itertools.product(cases, SCHEMES):
                assert found.value(case, scheme, f.PROTECTED) is not None
                recovered = found.value(case, scheme, f.RECOVERED) or 0.0
                timings = TIMINGS if kind == "node" else [MAIN_TIMING]
                times = [found.value(case, scheme, f"{f.MTTR_MEAN}, {timing}") for timing in timings]
                assert (None in times) == (recovered == 0.0)
    page = "\n".join(summary(result))
    assert all(aim["name"] in page for aim in result["aims"])


def test_what_the_page_says_is_in_the_results(result: dict[str, Any]) -> None:
    found = recorded(result["rows"])

    def value(case: f.Case, scheme: str, figure: str, of: str = "median") -> float:
        known = found.value(case, scheme, figure, of)
        assert known is not None, (str(case), scheme, figure)
        return known

    mean = f"{f.MTTR_MEAN}, {MAIN_TIMING}"
    for size in found.sweeps():
        for case in found.cases(size, "node"):
            if case.headroom >= (0.1 if case.nodes >= 100 else 0.2 if case.nodes >= 20 else 0.3):
                assert value(case, UNDERSTUDY, f.PROTECTED, "min") == 100.0, str(case)
            if case.nodes >= 20:
                assert value(case, FULL_COLD, f.PROTECTED) >= 90.0, str(case)
                assert value(case, FULL_COLD, mean) >= 1.8 * value(case, UNDERSTUDY, mean), str(case)
                turns = f"{f.MTTR_MEAN}, A2 in turn"
                assert value(case, FULL_COLD, turns) > value(case, UNDERSTUDY, turns), str(case)
            if case.nodes >= 20 and case.headroom >= 0.2:
                assert value(case, UNDERSTUDY, mean) <= 0.7 * value(case, ONE_STEP, mean), str(case)
    for case in found.cases((100, 1000, "slices"), "two nodes"):
        planned, chosen = (value(case, scheme, f.PROTECTED) for scheme in (UNDERSTUDY, SMALLEST))
        assert planned < chosen if case.headroom < 0.1 else planned == 100.0, str(case)


def _mb(variant: Variant) -> float:
    assert variant.profile is not None
    return variant.profile.replica_mb
