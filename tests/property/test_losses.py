"""A loss as it is told beforehand: what the proof of the plan says, and what gateways and agents would do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from test_plans import SURVIVE, clusters, named, slowly

from understudy.core.gateway.activation import LAST_RESORT, choose
from understudy.core.planning.footprint import replica_mb
from understudy.core.planning.plan import PlanInput, make_plan
from understudy.core.questions.losses import Stage, Standing
from understudy.core.questions.records import Answered
from understudy.failures import to_survive
from understudy.wire.records import Outcome, Plan


def standing(facts: PlanInput, plan: Plan) -> Standing:
    return Standing(plan, facts.apps, facts.nodes)


def told(answer: Answered | Outcome) -> tuple[object, ...]:
    return answer.app, answer.how, answer.variant, answer.node, answer.accuracy


@slowly
@given(clusters(survive=st.sampled_from(SURVIVE)))
def test_a_lost_node_goes_as_the_plan_proves(facts: PlanInput) -> None:
    """Where the proof leaves somebody silent, the last resort of one may take the room of another."""
    plan = make_plan(facts, 1, "test")
    stage = Stage(standing(facts, plan))
    for failure, lost in to_survive(facts.nodes, ("node",)).items():
        if not any(failure == other for other in to_survive(facts.nodes, facts.settings.survive)):
            continue
        proof = [outcome for outcome in plan.outcomes if outcome.failure == failure]
        answers = stage.play(lost).answers
        assert {answer.app for answer in answers} == {outcome.app for outcome in proof}
        if all(outcome.how in ("warm", "cold") for outcome in proof):
            assert sorted(map(told, answers)) == sorted(map(told, proof))
            assert {a.planned_for for a in answers if a.how == "cold"} <= {failure}


@slowly
@given(clusters(survive=st.sampled_from(SURVIVE)), st.data())
def test_whatever_is_lost_goes_as_gateways_choose(facts: PlanInput, data: st.DataObject) -> None:
    plan = make_plan(facts, 1, "test")
    names = [node.name for node in facts.nodes]
    lost = frozenset(data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True)))
    played = Stage(standing(facts, plan)).play(lost)
    apps = {app.app: app for app in facts.apps}
    used_mb = {node.name: 0.0 for node in facts.nodes}
    for placed in plan.placements:
        used_mb[placed.node] += replica_mb(named(apps[placed.app], placed.variant))
    memory_mb = {node.name: node.memory_mb for node in facts.nodes}
    for answer in played.answers:
        hosts = {placed.node for placed in plan.placements if placed.app == answer.app}
        contingencies = [c for c in plan.contingencies if c.app == answer.app]
        alive = frozenset(names) - lost
        first = choose(apps[answer.app], contingencies, facts.nodes, alive, hosts, ())
        if answer.how == "warm":
            assert answer.node in hosts - lost
        elif answer.how == "cold":
            assert first is not None
            assert answer.planned_for == LAST_RESORT or answer.planned_for in {
                c.failure for c in contingencies
            }
            if first.node == answer.node:
                assert answer.planned_for == first.failure
                assert answer.variant in (first.first, first.variant)
        else:
            needed_mb = replica_mb(apps[answer.app].smallest)
            held = {fill.node: fill.swapping_mb for fill in played.fills}
            for node in alive:
                assert needed_mb > memory_mb[node] - held.get(node, used_mb[node]) - 1e-6
    for fill in played.fills:
        assert fill.before_mb == used_mb[fill.node]
        assert fill.before_mb <= fill.after_mb <= fill.swapping_mb <= fill.memory_mb + 1e-6
        loaded = [a for a in played.answers if a.how == "cold" and a.node == fill.node]
        loaded_mb = [replica_mb(named(apps[a.app], a.variant or "")) for a in loaded]
        assert abs(fill.before_mb + sum(loaded_mb) - fill.after_mb) < 1e-6


@slowly
@given(clusters(survive=st.just(("any-2",)), memory_mb=(150, 400), rates=(0.0,)))
def test_of_whichever_two_nodes_no_worse_than_proven(facts: PlanInput) -> None:
    plan = make_plan(facts, 1, "test")
    loss = Stage(standing(facts, plan)).play_any(2)
    proven = {outcome.app: outcome for outcome in plan.outcomes if outcome.failure == "any-2"}
    if len(facts.nodes) > 2 and all(outcome.how in ("warm", "cold") for outcome in proven.values()):
        for answer in loss.worst:
            assert answer.how in ("warm", "cold")
            assert answer.app not in proven or answer.accuracy >= proven[answer.app].accuracy
