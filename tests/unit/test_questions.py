"""Questions to a plan: who answers when something is lost, what nodes more or less change, and why."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from understudy.core.planning.plan import PlanInput, make_plan
from understudy.core.questions.answers import answer
from understudy.core.questions.losses import Stage, Standing
from understudy.core.questions.records import Answered, Loss, NewNode, PlanChange, Question, QuestionAnswered
from understudy.settings.plan import PlanSettings
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import (
    AppVersion,
    ArtifactRef,
    Contingency,
    Criticality,
    NodeInfo,
    Placement,
    Plan,
    Profile,
    Role,
    Variant,
)

CRITICAL = Criticality.CRITICAL


def variant(name: str, replica_mb: float, accuracy: float, load_ms: float) -> Variant:
    profile = Profile(40.0, replica_mb - 40.0, load_ms, 1.0)
    return Variant(name, "onnx", ArtifactRef(f"digest-{name}", 1, name), accuracy, profile=profile)


LARGE, SMALL = variant("large", 100.0, 0.95, 200.0), variant("small", 50.0, 0.9, 20.0)


def app(name: str, criticality: Criticality = Criticality.STANDARD, **fields: Any) -> AppVersion:
    return AppVersion(name, 1, (LARGE, SMALL), criticality, **fields)


def cluster(memory_mb: float, *sites: str) -> tuple[NodeInfo, ...]:
    return tuple(NodeInfo(f"n{i}", site, "", memory_mb) for i, site in enumerate(sites, start=1))


THREE = cluster(400.0, "eu/a", "eu/b", "us")


def asked(
    question: Question,
    *apps: AppVersion,
    nodes: tuple[NodeInfo, ...] = THREE,
    plan: Plan | None = None,
    away: frozenset[str] = frozenset(),
    settings: PlanSettings | None = None,
    quarantined: frozenset[tuple[str, int, str]] = frozenset(),
) -> QuestionAnswered:
    facts = PlanInput(nodes, apps, None, quarantined, settings or PlanSettings())
    plan = plan or make_plan(facts, 1, "test")
    standing = Standing(plan, apps, nodes, away, quarantined)
    return answer(question, standing, msgspec.structs.replace(facts, current=plan))


def loss_of(*domains: str, apps: tuple[AppVersion, ...], **facts: Any) -> Loss:
    loss = asked(Question(fail=domains), *apps, **facts).loss
    assert loss is not None
    return loss


def by_app(loss: Loss) -> dict[str, Answered]:
    return {answered.app: answered for answered in loss.apps}


def placed(app: str, variant: str, node: str, role: Role = Role.PRIMARY) -> Placement:
    return Placement(app, 1, variant, node, role)


PLAN = Plan(
    revision=7,
    placements=(
        placed("vital", "large", "n1"),
        placed("vital", "small", "n2", Role.STANDBY),
        placed("plain", "large", "n1"),
        placed("other", "large", "n3"),
    ),
    contingencies=(
        Contingency("plain", 1, "node:n1", "n2", "small", "large"),
        Contingency("plain", 1, "site:eu", "n3", "small", "small"),
        Contingency("other", 1, "node:n3", "n2", "small", "small"),
    ),
)
APPS = (app("vital", CRITICAL), app("plain"), app("other"))


# A loss


def test_a_lost_node_is_answered_as_planned() -> None:
    loss = loss_of("n1", apps=APPS, plan=PLAN)
    answers = by_app(loss)
    assert (loss.failure, loss.lost, loss.unaffected) == ("node:n1", ("n1",), 1)
    warm, cold = answers["vital"], answers["plain"]
    assert (warm.how, warm.variant, warm.node, warm.recovery_ms) == ("warm", "small", "n2", 5.0)
    assert (cold.how, cold.first, cold.variant, cold.node) == ("cold", "small", "large", "n2")
    assert (cold.planned_for, cold.recovery_ms, cold.accuracy_lost) == ("node:n1", 30.0, 0.0)
    [fill] = loss.fills
    assert (fill.node, fill.before_mb, fill.swapping_mb, fill.after_mb) == ("n2", 50.0, 200.0, 150.0)


def test_what_was_not_planned_for_is_answered_as_gateways_and_agents_would() -> None:
    nodes = cluster(199.0, "eu/a", "eu/b", "us")
    loss = loss_of("n1", "n3", apps=APPS, plan=PLAN, nodes=nodes)
    answers = by_app(loss)
    assert loss.failure == "node:n1+node:n3"
    # Both ask n2, which has 149 MB free: each gets its small variant, and the large one doesn't fit beside.
    assert {(a.app, a.variant, a.node) for a in loss.apps} == {
        ("vital", "small", "n2"),
        ("plain", "small", "n2"),
        ("other", "small", "n2"),
    }
    assert answers["plain"].accuracy_lost == pytest.approx(1 - 0.9 / 0.95)


def test_who_is_left_without_an_answer_is_told_why() -> None:
    fallback = ("smaller-variant", "app:vital")
    apps = (app("vital", CRITICAL), app("plain", fallback=fallback), app("other", static={"outputs": []}))
    loss = loss_of("n1", "n3", apps=apps, plan=PLAN, nodes=cluster(80.0, "eu/a", "eu/b", "us"))
    answers = by_app(loss)
    assert (answers["plain"].how, answers["other"].how) == ("none", "static")
    assert answers["plain"].why == "n2: memory: needs 50 MB, 30 MB free; asked instead: vital"


def test_nodes_that_are_away_already_count_as_lost() -> None:
    found = asked(Question(fail=("n2",)), *APPS, plan=PLAN, away=frozenset({"n1"}))
    assert found.away == ("n1",)
    assert found.loss is not None
    assert {(a.app, a.how, a.node) for a in found.loss.apps} == {
        ("vital", "cold", "n3"),
        ("plain", "cold", "n3"),
    }


def test_a_contingency_on_a_node_that_is_away_is_passed_over() -> None:
    found = asked(Question(fail=("n1",)), *APPS, plan=PLAN, away=frozenset({"n2"}))
    assert found.loss is not None
    assert (by_app(found.loss)["plain"].node, by_app(found.loss)["plain"].planned_for) == ("n3", "site:eu")


def test_when_everything_is_lost_nobody_answers_and_nothing_is_planned() -> None:
    loss = loss_of("eu", "us", apps=APPS, plan=PLAN)
    assert {a.how for a in loss.apps} == {"none"}
    assert {a.why for a in loss.apps} == {"no node is left"}
    assert loss.next_plan is None


def test_the_next_plan_is_told() -> None:
    loss = loss_of("n1", apps=APPS)
    assert loss.next_plan is not None
    assert (loss.next_plan.full_size, loss.next_plan.unplaced, loss.next_plan.unanswered) == (3, (), 0)
    tight = loss_of("n1", apps=APPS, nodes=cluster(200.0, "eu/a", "eu/b"))
    assert tight.next_plan is not None
    assert tight.next_plan.smaller + len(tight.next_plan.unplaced) > 0
    assert tight.next_plan.unanswered == 3 - len(tight.next_plan.unplaced)


def test_of_whichever_two_nodes_the_worst_is_told() -> None:
    found = asked(Question(fail=("any-2",)), *APPS, plan=PLAN, nodes=cluster(150.0, "eu/a", "eu/b", "us"))
    loss = found.any_loss
    assert loss is not None
    assert (loss.failure, loss.tried, loss.possible, loss.unaffected) == ("any-2", 3, 3, 0)
    worst = {answered.app: answered for answered in loss.worst}
    # "other" is asked for first, "plain" next: on n2 there is room for two small ones beside the standby.
    assert worst["vital"].lost == ("n1", "n2")
    assert (worst["vital"].how, worst["plain"].how) == ("none", "cold")
    assert loss.hurting[0].unanswered == ("vital",)


def test_many_nodes_are_not_all_combined() -> None:
    nodes = cluster(1000.0, *["eu"] * 300)
    placements = tuple(placed(f"app{i}", "large", f"n{1 + i % 300}") for i in range(600))
    apps = tuple(app(f"app{i}") for i in range(600))
    loss = Stage(Standing(Plan(1, placements), apps, nodes)).play_any(2)
    assert loss.possible == 300 * 299 // 2
    assert 0 < loss.tried < loss.possible
    assert {answered.how for answered in loss.worst} == {"cold"}


@pytest.mark.parametrize(
    ("fail", "code", "message"),
    [
        (("n4",), Code.NOT_FOUND, "no node or site is called 'n4'; did you mean 'n3'?"),
        (("eu/aa",), Code.NOT_FOUND, "did you mean 'eu/a'?"),
        (("node:eu",), Code.NOT_FOUND, "no node or site is called 'eu'"),
        (("any-2", "n1"), Code.INVALID_ARGUMENT, '"any-K" stands alone'),
        (("any-0",), Code.INVALID_ARGUMENT, '"any-K" stands alone'),
        (("any-two",), Code.INVALID_ARGUMENT, '"any-K" stands alone'),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(fail: tuple[str, ...], code: Code, message: str) -> None:
    with pytest.raises(UnderstudyError) as refused:
        asked(Question(fail=fail), *APPS, plan=PLAN)
    assert refused.value.code is code
    assert message in str(refused.value)


@pytest.mark.parametrize("question", [Question(), Question(fail=("n1",), explain="plain")])
def test_one_thing_at_a_time(question: Question) -> None:
    with pytest.raises(UnderstudyError, match="one thing at a time"):
        asked(question, *APPS, plan=PLAN)


def test_names_of_sites_and_nodes_can_be_mixed() -> None:
    assert loss_of("eu/a+n3", apps=APPS, plan=PLAN).failure == "site:eu/a+node:n3"
    assert loss_of("site:eu", "node:n3", apps=APPS, plan=PLAN).lost == ("n1", "n2", "n3")


# Nodes that come or go


def change_of(question: Question, *apps: AppVersion, **facts: Any) -> PlanChange:
    change = asked(question, *apps, **facts).change
    assert change is not None
    return change


def test_a_node_more_protects_what_was_not() -> None:
    tight = cluster(120.0, "a", "b")
    change = change_of(Question(add=(NewNode(400.0),)), app("one"), app("two"), nodes=tight)
    assert change.added == ("new-1",)
    before, after = ({kept.kind: kept.answered for kept in f.kept} for f in (change.before, change.after))
    assert before["node"] == 0
    assert after["node"] == 2
    assert change.after.retained > change.before.retained
    assert len(change.warnings_gone) == 2
    assert all("has no answer if" in warning for warning in change.warnings_gone)
    assert change.warnings_new == ()


def test_a_node_less_is_told_with_what_has_to_move() -> None:
    change = change_of(Question(remove=("n3",)), *APPS)
    assert (change.removed, change.after.nodes, change.after.placed) == (("n3",), 2, 3)
    assert change.moved == len(change.starts) > 0
    assert all(" on n3" not in start for start in change.starts)


def test_critical_apps_that_become_warm_are_counted() -> None:
    change = change_of(Question(add=(NewNode(400.0, "n9", "b"),)), app("vital", CRITICAL), nodes=THREE[:1])
    assert [kept.critical_warm for kept in change.before.kept] == [0]
    assert {(kept.kind, kept.critical_warm) for kept in change.after.kept} >= {("node", 1), ("site", 1)}
    assert change.starts == ("vital/small on n9",) or change.starts == ("vital/large on n9",)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question(remove=("n4",)), "no node is called 'n4'; did you mean 'n3'?"),
        (Question(add=(NewNode(10.0, "n1"),)), "there is a node 'n1' already"),
        (Question(add=(NewNode(10.0, "x"), NewNode(10.0, "x"))), "there is a node 'x' already"),
    ],
)
def test_names_of_nodes_that_come_or_go_are_checked(question: Question, message: str) -> None:
    with pytest.raises(UnderstudyError) as refused:
        asked(question, *APPS, plan=PLAN)
    assert message in str(refused.value)


# Why


def explained(name: str, *apps: AppVersion, **facts: Any) -> dict[str, str]:
    explanation = asked(Question(explain=name), *apps, **facts).explanation
    assert explanation is not None
    return {reason.about: "\n".join(reason.sentences) for reason in explanation.reasons}


def test_a_full_size_app_is_explained() -> None:
    said = explained("plain", app("plain"))
    assert "It runs as 'large', its full-size variant (accuracy 0.95, 100 MB)" in said["place"]
    assert "There is room for it on" in said["place"]
    assert "larger" not in said
    assert "standby" not in said
    assert "cold" in said["failures"]
    assert "of the 7 failures to survive don't affect it" in said["failures"]


def test_what_a_larger_variant_lacks_is_told_in_figures() -> None:
    said = explained("plain", app("plain"), nodes=cluster(70.0, "a", "b"))
    assert "number 2 of its 2 variants" in said["place"]
    assert said["larger"] == (
        "'large' (accuracy 0.95) needs 100 MB; n1 has most, 70 MB with its present replica gone: "
        "30 MB are missing there."
    )


def test_whichever_two_nodes_are_explained_together() -> None:
    said = explained("plain", app("plain"), settings=PlanSettings(survive=("any-2",)))
    assert "If the worst 2 nodes are lost, " in said["failures"]
    assert "2 of the 3 failures to survive don't affect it." in said["failures"]


def test_an_app_without_a_place_is_explained() -> None:
    said = explained("plain", app("plain"), nodes=cluster(30.0, "a", "b"))
    assert "It has no place: no room for its smallest variant (needs 50 MB" in said["place"]
    assert "20 MB are missing there" in said["larger"]
    assert "warm" not in said


def test_the_size_of_a_standby_is_explained_by_its_price() -> None:
    said = explained("vital", app("vital", CRITICAL))
    assert "Its standby is" in said["standby"]
    assert "'large' 0.100 + 0.000 = 0.100 (100 MB)" in said["standby"]
    assert "'small' 0.050 + " in said["standby"]
    assert said["warm"] == "It is warm in every failure to survive."


def test_what_it_takes_to_be_warm_is_tried_out() -> None:
    said = explained("plain", app("plain"))
    assert "its criticality is 'standard'" in said["warm"]
    assert 'With criticality = "critical" it would be warm by' in said["warm"]
    assert "replicas that start: 1" in said["warm"]


def test_the_memory_that_warmth_lacks_is_told() -> None:
    nodes = (NodeInfo("n1", "a", "", 150.0), NodeInfo("n2", "b", "", 30.0))
    said = explained("vital", app("vital", CRITICAL), nodes=nodes)
    assert "needs 50 MB for 'small' on a node that isn't lost together with its primary" in said["warm"]
    assert "n2 has most, 30 MB free: 20 MB are missing there" in said["warm"]
    said = explained("plain", app("plain"), nodes=nodes)
    assert "Critical, it wouldn't be warm either." in said["warm"]


def test_variants_that_are_left_out_are_named() -> None:
    quarantined = frozenset({("plain", 1, "large")})
    said = explained("plain", app("plain"), quarantined=quarantined)
    assert "'large' is in quarantine" in said["place"]
    assert "understudy quarantine clear plain large" in said["place"]
    slow = msgspec.structs.replace(LARGE, profile=Profile(40.0, 60.0, 10.0, 80.0))
    said = explained("slow", AppVersion("slow", 1, (slow, SMALL), objective_ms=20.0))
    assert "'large' takes 80 ms, more than the app's objective_ms = 20" in said["place"]


def test_a_version_that_is_not_planned_yet_is_explained() -> None:
    newer = msgspec.structs.replace(app("plain"), version=2, variants=(SMALL,))
    said = explained("plain", newer, plan=PLAN)
    assert "it is not in the plan yet" in said["place"]


def test_an_app_whose_variants_are_all_in_quarantine_is_explained() -> None:
    quarantined = frozenset({("plain", 1, "large"), ("plain", 1, "small")})
    said = explained("plain", *APPS, plan=PLAN, quarantined=quarantined)
    assert "'large' is in quarantine" in said["place"]
    assert "warm" not in said


def test_an_unknown_app_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnderstudyError, match="no app is called 'plan'; did you mean 'plain'"):
        asked(Question(explain="plan"), *APPS, plan=PLAN)
