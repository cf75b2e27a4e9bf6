"""What a plan looks like, scenario by scenario."""

from __future__ import annotations

import sys

import msgspec
import pytest

from understudy.core.planning.plan import PlanInput, make_plan, overhead
from understudy.core.planning.replay import replay
from understudy.failures import to_survive
from understudy.settings.plan import PlanSettings
from understudy.wire.errors import ConfigError
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

WORKER_MB = 40.0
DEFAULTS = PlanSettings()


def variant(name: str, replica_mb: float, accuracy: float, load_ms: float) -> Variant:
    profile = Profile(WORKER_MB, replica_mb - WORKER_MB, load_ms, 1.0)
    return Variant(name, "onnx", ArtifactRef("0" * 64, 1_000_000, name), accuracy, profile=profile)


def app(
    name: str,
    *,
    criticality: Criticality = Criticality.STANDARD,
    large_mb: float = 100.0,
    small_mb: float = 50.0,
    small_accuracy: float = 0.94,
    replicas: int = 1,
) -> AppVersion:
    """A family of a large variant (accuracy 0.95, loads in 200 ms) and a small one (20 ms)."""
    return AppVersion(
        name,
        1,
        (variant("large", large_mb, 0.95, 200.0), variant("small", small_mb, small_accuracy, 20.0)),
        criticality=criticality,
        replicas=replicas,
    )


def cluster(memory_mb: float, *sites: str) -> tuple[NodeInfo, ...]:
    """Nodes n1, n2, … of one size, in these sites."""
    return tuple(NodeInfo(f"n{i}", site, "", memory_mb) for i, site in enumerate(sites, start=1))


def planned(
    nodes: tuple[NodeInfo, ...],
    *apps: AppVersion,
    current: Plan | None = None,
    quarantined: frozenset[tuple[str, int, str]] = frozenset(),
    settings: PlanSettings = DEFAULTS,
) -> Plan:
    facts = PlanInput(nodes, apps, current, quarantined, settings)
    plan = make_plan(facts, revision=1, reason="test")
    assert replay(plan, apps, nodes, settings.survive).violations == ()
    return plan


def replicas(plan: Plan, role: Role = Role.PRIMARY, app: str | None = None) -> list[tuple[str, str, str]]:
    return [(p.app, p.variant, p.node) for p in plan.placements if p.role is role and app in (None, p.app)]


def node_of(plan: Plan, app: str, role: Role = Role.PRIMARY) -> str:
    [(_, _, node)] = replicas(plan, role, app)
    return node


def outcome(plan: Plan, app: str, failure: str) -> Outcome:
    [found] = [o for o in plan.outcomes if (o.app, o.failure) == (app, failure)]
    return found


def places(plan: Plan) -> set[tuple[str, str, str]]:
    return {(p.app, p.variant, p.node) for p in plan.placements}


# Failures to survive


def test_each_node_and_each_of_several_sites_is_a_failure() -> None:
    nodes = cluster(100, "b", "a", "a")
    assert tuple(to_survive(nodes, ("node", "site"))) == ("node:n1", "node:n2", "node:n3", "site:a", "site:b")
    assert tuple(to_survive(nodes, ("site",))) == ("site:a", "site:b")
    assert tuple(to_survive(cluster(100, "a", "a"), ("node", "site"))) == ("node:n1", "node:n2")


# Placing


def test_with_room_everything_is_full_size_and_answers_every_failure() -> None:
    plan = planned(cluster(1000, "a", "a", "b"), *(app(f"app{i}") for i in range(6)))
    assert {variant for _, variant, _ in replicas(plan)} == {"large"}
    assert {o.how for o in plan.outcomes} == {"cold"}
    assert plan.warnings == ()
    assert plan.unplaced == {}


def test_primaries_are_spread_so_that_a_node_silences_few() -> None:
    plan = planned(cluster(1000, "a", "a", "a"), *(app(f"app{i}") for i in range(6)))
    nodes = [node for _, _, node in replicas(plan)]
    assert sorted(nodes.count(node) for node in set(nodes)) == [2, 2, 2]


def test_without_room_the_best_variant_that_fits_is_placed() -> None:
    plan = planned(cluster(60, "a"), app("digits"))
    assert replicas(plan) == [("digits", "small", "n1")]
    assert any("'digits' runs by 'small'" in warning for warning in plan.warnings)


def test_criticality_decides_who_stays_out() -> None:
    apps = [app("lesser", criticality=Criticality.BEST_EFFORT), app("normal")]
    plan = planned(cluster(60, "a"), *apps, app("vital", criticality=Criticality.CRITICAL))
    assert [name for name, _, _ in replicas(plan)] == ["vital"]
    assert plan.unplaced.keys() == {"lesser", "normal"}
    reason = "no room for its smallest variant (needs 50 MB, best node n1 has 10 MB)"
    assert plan.unplaced["normal"] == reason


def test_a_quarantined_variant_is_not_used() -> None:
    quarantined = frozenset({("digits", 1, "large")})
    plan = planned(cluster(500, "a", "b"), app("digits"), quarantined=quarantined)
    assert [variant for _, variant, _ in replicas(plan)] == ["small"]
    assert all(c.variant == c.first == "small" for c in plan.contingencies)


def test_an_app_without_any_usable_variant_says_so() -> None:
    quarantined = frozenset({("digits", 1, "large"), ("digits", 1, "small")})
    facts = PlanInput(cluster(500, "a", "b"), (app("digits"), app("other")), None, quarantined)
    plan = make_plan(facts, 1, "test")
    assert "quarantined" in plan.unplaced["digits"]
    assert [name for name, _, _ in replicas(plan)] == ["other"]


def test_no_node_is_no_error() -> None:
    plan = make_plan(PlanInput((), (app("digits"),)), 7, "all nodes died")
    assert plan.unplaced == {"digits": "no node is available"}
    assert (plan.revision, plan.reason, plan.placements) == (7, "all nodes died", ())


def test_the_reserve_of_a_node_stays_free() -> None:
    plan = planned(cluster(130, "a"), app("digits"), settings=PlanSettings(node_reserve_mb=50))
    assert replicas(plan) == [("digits", "small", "n1")]


def test_an_unprofiled_variant_is_estimated_from_its_file() -> None:
    unmeasured = Variant("net", "onnx", ArtifactRef("0" * 64, 100_000_000, "net.onnx"), 0.9)
    plan = planned(cluster(150, "a"), AppVersion("digits", 1, (unmeasured,)))
    reason = "no room for its smallest variant (needs 195 MB, best node n1 has 150 MB)"
    assert plan.unplaced == {"digits": reason}


def test_replicas_are_spread_over_sites_and_nodes() -> None:
    plan = planned(cluster(500, "a", "a", "b", "b"), app("digits", replicas=2))
    sites = {"n1": "a", "n2": "a", "n3": "b", "n4": "b"}
    assert {sites[node] for _, _, node in replicas(plan)} == {"a", "b"}
    assert {o.how for o in plan.outcomes} == {"warm"}
    assert plan.contingencies == ()


def test_replicas_share_a_node_rather_than_be_missing() -> None:
    assert len(replicas(planned(cluster(500, "a"), app("digits", replicas=3)))) == 3


def test_missing_replicas_are_a_warning() -> None:
    plan = planned(cluster(110, "a"), app("digits", replicas=3))
    assert replicas(plan) == [("digits", "small", "n1")] * 2
    assert any("has 2 of 3 replicas" in warning for warning in plan.warnings)


# Protecting


def test_a_critical_app_is_warm_in_another_site() -> None:
    vital = app("vital", criticality=Criticality.CRITICAL)
    plan = planned(cluster(500, "a", "a", "b"), vital)
    sites = {"n1": "a", "n2": "a", "n3": "b"}
    assert sites[node_of(plan, "vital")] != sites[node_of(plan, "vital", Role.STANDBY)]
    assert {o.how for o in plan.outcomes} == {"warm"}


def test_a_standby_that_cannot_leave_the_site_leaves_the_node() -> None:
    vital = app("vital", criticality=Criticality.CRITICAL)
    nodes = (*cluster(500, "a", "a"), NodeInfo("n3", "b", "", 30.0))
    plan = planned(nodes, vital)
    assert {node_of(plan, "vital"), node_of(plan, "vital", Role.STANDBY)} == {"n1", "n2"}
    [warning] = [w for w in plan.warnings if "standby" in w]
    assert warning.startswith("critical app 'vital' has its standby in the same site as its primary, 'a'")


def test_a_standby_is_small_where_little_accuracy_is_lost() -> None:
    """1 % of accuracy isn't worth twice the memory, however much room there is; 20 % is."""
    alike = app("alike", criticality=Criticality.CRITICAL, small_accuracy=0.945)
    steep = app("steep", criticality=Criticality.CRITICAL, small_accuracy=0.75)
    plan = planned(cluster(5000, "a", "b"), alike, steep)
    assert {name: variant for name, variant, _ in replicas(plan, Role.STANDBY)} == {
        "alike": "small",
        "steep": "large",
    }


def test_only_critical_apps_are_warm() -> None:
    plan = planned(cluster(5000, "a", "b"), app("normal"), app("lesser", criticality=Criticality.BEST_EFFORT))
    assert replicas(plan, Role.STANDBY) == []


def test_a_contingency_loads_the_quickest_variant_first() -> None:
    plan = planned(cluster(500, "a", "b"), app("digits"))
    assert {(c.first, c.variant) for c in plan.contingencies} == {("small", "large")}
    assert outcome(plan, "digits", f"node:{node_of(plan, 'digits')}").recovery_ms == pytest.approx(30.0)


def test_a_contingency_takes_one_step_where_both_do_not_fit() -> None:
    plan = planned(cluster(120, "a", "b"), app("digits"))
    assert {(c.first, c.variant) for c in plan.contingencies} == {("large", "large")}


def test_spare_room_is_shared_between_failures() -> None:
    """One node has room for one small variant, and it protects two apps: their nodes aren't lost together."""
    apps = [app("digits"), app("wine")]
    nodes = (*cluster(110, "a", "a"), NodeInfo("n3", "a", "", 60.0))
    plan = planned(nodes, *apps)
    assert {variant for _, variant, _ in replicas(plan)} == {"large"}
    assert {(c.failure, c.node) for c in plan.contingencies} == {("node:n1", "n3"), ("node:n2", "n3")}
    assert overhead(plan, tuple(apps)) == pytest.approx(0.25)


def test_best_effort_apps_stay_unprotected_first() -> None:
    lesser = app("lesser", criticality=Criticality.BEST_EFFORT, small_mb=90)
    plan = planned(cluster(160, "a", "b"), app("normal"), lesser)
    lost = {o.app for o in plan.outcomes if o.how == "none"}
    assert lost == {"lesser"}
    figures = "needs 90 MB, best node"
    assert any("'lesser' has no answer" in w and figures in w for w in plan.warnings)


def test_a_static_answer_is_named_as_such() -> None:
    static = msgspec.structs.replace(app("digits"), static={"outputs": []})
    plan = planned((*cluster(120, "a"), NodeInfo("n2", "b", "", 20.0)), static)
    assert outcome(plan, "digits", "node:n1").how == "static"
    assert any("has only its static answer if node:n1 or site:a is lost" in w for w in plan.warnings)


def test_a_single_node_is_one_warning() -> None:
    plan = planned(cluster(500, "a"), app("digits"), app("wine"))
    assert len(plan.warnings) == 1
    assert plan.warnings[0].startswith("the cluster has a single node, n1")


def test_a_single_site_is_a_warning() -> None:
    plan = planned(cluster(500, "a", "a"), app("digits"))
    assert [w.split(":")[0] for w in plan.warnings] == ["all nodes are in one site, 'a'"]


# Replanning


def test_the_same_facts_move_nothing() -> None:
    nodes = cluster(400, "a", "a", "b")
    apps = [app(f"app{i}", criticality=list(Criticality)[i % 3]) for i in range(6)]
    first = planned(nodes, *apps)
    again = planned(nodes, *apps, current=first)
    assert again.placements == first.placements
    assert again.contingencies == first.contingencies


def family(name: str, criticality: Criticality, *variants: Variant, **facts: float) -> AppVersion:
    return AppVersion(name, 1, variants, criticality=criticality, **facts)  # type: ignore[arg-type]


def test_a_replica_short_of_the_wanted_takes_no_room_from_a_better_apps_protection() -> None:
    nodes = (NodeInfo("n0", "a", "", 25.0), NodeInfo("n1", "a", "", 50.0))
    only = variant("only", 25.0, 0.7, 10.0)
    apps = (
        family("better", Criticality.STANDARD, only),
        family("least", Criticality.BEST_EFFORT, only, weight=0.5, replicas=2),
    )
    plan = planned(nodes, *apps)
    assert outcome(plan, "better", "node:n1").how == "cold"
    assert planned(nodes, *apps, current=plan).placements == plan.placements


def test_one_of_two_equal_replicas_is_given_up_for_it() -> None:
    """Both on one node are equal records: two such plans differ by their counts only."""
    nodes = (NodeInfo("n0", "a", "", 200.0), NodeInfo("n1", "b", "", 89.0, 1.0))
    apps = (
        family(
            "least0",
            Criticality.BEST_EFFORT,
            variant("v0", 78.0, 0.95, 60.0),
            variant("v1", 30.0, 0.9, 400.0),
            replicas=2,
            requests_per_s=200.0,
        ),
        family(
            "least1",
            Criticality.BEST_EFFORT,
            variant("v0", 44.0, 0.9, 60.0),
            variant("v1", 29.0, 0.9, 60.0),
            replicas=2,
            requests_per_s=200.0,
        ),
        family(
            "better",
            Criticality.STANDARD,
            variant("v0", 75.0, 0.95, 400.0),
            variant("v1", 59.0, 0.8, 400.0),
            weight=2.0,
            requests_per_s=900.0,
        ),
        family("least2", Criticality.BEST_EFFORT, variant("v0", 48.0, 0.9, 60.0), requests_per_s=900.0),
    )
    plan = planned(nodes, *apps)
    assert outcome(plan, "better", "node:n1").how == "cold"
    assert planned(nodes, *apps, current=plan).placements == plan.placements


def test_a_lost_node_moves_only_what_was_on_it() -> None:
    nodes = cluster(600, "a", "a", "b")
    apps = [app(f"app{i}", criticality=list(Criticality)[i % 3]) for i in range(6)]
    first = planned(nodes, *apps)
    second = planned(nodes[1:], *apps, current=first)
    stayed = {place for place in places(first) if place[2] != "n1"}
    assert stayed <= places(second)
    assert {variant for _, variant, _ in replicas(second)} == {"large"}


def test_a_returned_node_attracts_what_was_cut_short_and_nothing_else() -> None:
    nodes = cluster(210, "a", "b", "c")
    apps = [app(f"app{i}") for i in range(4)]
    whole = planned(nodes, *apps)
    short = planned(nodes[:1], *apps, current=whole)
    assert [variant for _, variant, _ in replicas(short)].count("small") == 4
    back = planned(nodes, *apps, current=short)
    assert {variant for _, variant, _ in replicas(back)} == {"large"}


def test_a_returned_node_attracts_nothing_when_all_is_well() -> None:
    nodes = cluster(1000, "a", "b", "c")
    apps = [app(f"app{i}") for i in range(4)]
    first = planned(nodes[:2], *apps)
    assert places(planned(nodes, *apps, current=first)) == places(first)


def test_a_full_size_standby_becomes_the_primary() -> None:
    vital = app("vital", criticality=Criticality.CRITICAL, small_accuracy=0.5)
    nodes = cluster(500, "a", "b", "c")
    first = planned(nodes, vital)
    lost = node_of(first, "vital")
    second = planned(tuple(n for n in nodes if n.name != lost), vital, current=first)
    assert node_of(second, "vital") == node_of(first, "vital", Role.STANDBY)


def test_a_primary_comes_where_its_contingency_was_activated() -> None:
    nodes = cluster(500, "a", "b", "c", "d")
    first = planned(nodes, app("digits"))
    lost = node_of(first, "digits")
    [activated] = {c.node for c in first.contingencies if c.failure == f"node:{lost}"}
    second = planned(tuple(n for n in nodes if n.name != lost), app("digits"), current=first)
    assert node_of(second, "digits") == activated


def test_a_small_gain_moves_no_full_size_primary() -> None:
    """With both on n1, x would come back at full size from n2. That isn't worth stopping y for."""
    x = msgspec.structs.replace(app("x", small_accuracy=0.6), weight=2.0)
    y = app("y", small_accuracy=0.6)
    nodes = tuple(NodeInfo(name, "a", "", mb) for name, mb in (("n1", 200.0), ("n2", 110.0), ("n3", 60.0)))
    assert {node for _, _, node in replicas(planned(nodes, x, y))} == {"n1"}
    apart = (Placement("x", 1, "large", "n1", Role.PRIMARY), Placement("y", 1, "large", "n2", Role.PRIMARY))
    assert set(planned(nodes, x, y, current=Plan(1, apart)).placements) == set(apart)


def test_a_new_app_moves_no_other() -> None:
    nodes = cluster(500, "a", "a", "b")
    apps = [app(f"app{i}") for i in range(4)]
    first = planned(nodes, *apps)
    assert places(first) <= places(planned(nodes, *apps, app("new"), current=first))


def test_an_overfull_node_is_relieved() -> None:
    """A plan made when less was known: measured sizes no longer fit."""
    wrong = tuple(Placement(f"app{i}", 1, "large", "n1", Role.PRIMARY) for i in range(3))
    current = Plan(revision=1, placements=wrong)
    plan = planned(cluster(210, "a", "b"), *(app(f"app{i}") for i in range(3)), current=current)
    assert len(places(plan) & {(p.app, p.variant, p.node) for p in wrong}) == 2


def test_a_missing_solver_names_the_extra_or_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    nodes, digits = cluster(500, "a"), app("digits")
    with pytest.raises(ConfigError, match=r"understudy\[controller\]"):
        planned(nodes, digits, settings=PlanSettings(method="exact"))
    assert planned(nodes, digits).method == "heuristic"


# The verifier


NODES = cluster(300, "a", "a", "b")
APPS = (app("digits"), app("vital", criticality=Criticality.CRITICAL))


def violations(plan: Plan, nodes: tuple[NodeInfo, ...] = NODES) -> str:
    return "\n".join(replay(plan, APPS, nodes, DEFAULTS.survive).violations)


@pytest.fixture(scope="module")
def good() -> Plan:
    return planned(NODES, *APPS)


def test_a_good_plan_has_no_violation(good: Plan) -> None:
    assert violations(good) == ""


def test_an_overfull_node_is_flagged(good: Plan) -> None:
    extra = tuple(Placement("digits", 1, "large", "n2", Role.STANDBY) for _ in range(3))
    bad = msgspec.structs.replace(good, placements=good.placements + extra)
    assert "node n2 needs" in violations(bad)
    assert "in normal operation" in violations(bad)


def test_too_little_room_while_swapping_is_flagged() -> None:
    placements = (Placement("digits", 1, "large", "n1", Role.PRIMARY),)
    nodes = cluster(120, "a", "a", "b")
    swap = tuple(
        Contingency("digits", 1, failure, "n3", "small", "large") for failure in ("node:n1", "site:a")
    )
    plan = Plan(revision=1, placements=placements, contingencies=swap, unplaced={"vital": "test"})
    assert "node n3 needs 150.0 MB while contingencies for node:n1 swap" in violations(plan, nodes)
    at_once = tuple(msgspec.structs.replace(c, first="large") for c in swap)
    assert violations(msgspec.structs.replace(plan, contingencies=at_once), nodes) == ""


def test_a_standby_beside_its_primary_is_flagged(good: Plan) -> None:
    beside = Placement("vital", 1, "small", node_of(good, "vital"), Role.STANDBY)
    bad = msgspec.structs.replace(good, placements=(*good.placements, beside))
    assert "the standby of 'vital' shares node" in violations(bad)


def test_a_missing_contingency_is_flagged(good: Plan) -> None:
    bad = msgspec.structs.replace(good, contingencies=())
    assert f"'digits' has no contingency for node:{node_of(good, 'digits')}" in violations(bad)


def test_a_contingency_on_the_lost_node_is_flagged(good: Plan) -> None:
    there = tuple(msgspec.structs.replace(c, node=node_of(good, "digits")) for c in good.contingencies)
    assert "which is lost itself" in violations(msgspec.structs.replace(good, contingencies=there))


def test_names_that_mean_nothing_are_flagged(good: Plan) -> None:
    stray = Placement("digits", 1, "large", "n9", Role.STANDBY)
    odd = Placement("digits", 2, "large", "n1", Role.STANDBY)
    found = violations(msgspec.structs.replace(good, placements=(*good.placements, stray, odd)))
    assert "unknown node 'n9'" in found
    assert "no variant 'large' in version 2" in found


def test_a_missing_primary_needs_a_reason(good: Plan) -> None:
    none = tuple(p for p in good.placements if p.app != "digits")
    assert "'digits' has no primary" in violations(msgspec.structs.replace(good, placements=none))
