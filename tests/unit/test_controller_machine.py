"""When the controller plans, what it publishes, and what it refuses to believe."""

from __future__ import annotations

import msgspec
import pytest
from controller_world import World, app, primary

from understudy.core.controller import events as ev
from understudy.core.controller.reasons import NAMED_MAX, moves, what_changed
from understudy.core.controller.stored import PlanFacts, recall
from understudy.core.planning.plan import PlanInput
from understudy.settings.plan import PlanSettings
from understudy.wire.messages import NodeState
from understudy.wire.records import Placement, Plan, Role, RouteTable


@pytest.fixture
def world() -> World:
    world = World()
    world.join("n1", "n2", "n3")
    world.deploy(app("a"))
    world.run(5)
    world.effects.clear()
    return world


def routes(world: World) -> list[ev.SendRoutes]:
    return world.seen(ev.SendRoutes)


# Planning


def test_nothing_is_planned_while_nothing_changes(world: World) -> None:
    world.run(60)
    assert world.effects == []


def test_apps_deployed_while_a_plan_is_made_are_in_the_next_one(world: World) -> None:
    world.answer_plans = False
    world.deploy(app("b"))
    world.run(0.2)
    (first,) = world.plans()
    world.deploy(app("c"))
    world.run(5)
    assert world.plans() == [first]  # one at a time
    world.answer(first)
    assert "plan.published" in world.kinds()  # it lacks the newest app, and is right for the others
    world.answer_plans = True
    world.run(0.2)
    assert [a.app for a in world.plans()[-1].input.apps] == ["a", "b", "c"]
    assert world.plans()[-1].reason == "c version 1 deployed"


def test_a_plan_for_a_node_that_died_meanwhile_is_discarded(world: World) -> None:
    world.answer_plans = False
    world.placing = lambda facts: [primary(app, "n2") for app in facts.apps]
    world.deploy(app("b"))
    world.run(0.2)
    world.kill("n2")
    world.run(2)
    world.answer(world.plans()[0])
    assert "plan.discarded" in world.kinds()
    assert "plan.published" not in world.kinds()
    world.placing = lambda facts: [primary(app, "n1") for app in facts.apps]
    world.answer_plans = True
    world.run(0.2)
    assert world.kinds()[-1] == "plan.published"


@pytest.mark.parametrize("change", ["version", "quarantine", "removal"])
def test_a_plan_for_what_is_no_more_is_discarded(world: World, change: str) -> None:
    world.answer_plans = False
    world.deploy(app("b"))
    world.run(0.2)
    if change == "version":
        world.deploy(app("b", version=2))
    elif change == "removal":
        world.step(ev.Removed("b"))
    else:
        quarantine(world, "n1", ("b", 1, "full"))
        quarantine(world, "n2", ("b", 1, "full"))
    world.answer(world.plans()[0])
    assert "plan.discarded" in world.kinds()


def test_a_failing_planner_is_asked_again_after_a_while(world: World) -> None:
    world.answer_plans = False
    world.deploy(app("b"))
    world.run(0.2)
    world.step(ev.PlanningFailed("no solver"))
    assert world.machine.planning.error == "no solver"
    world.run(0.8)
    assert len(world.plans()) == 1
    world.answer_plans = True
    world.run(0.5)
    assert len(world.plans()) == 2
    assert world.machine.planning.error == ""


def test_other_plan_settings_after_a_restart_make_a_new_plan(world: World) -> None:
    world.config = msgspec.structs.replace(world.config, plan=PlanSettings(node_reserve_mb=10))
    world.restart_controller()
    world.run(0.2)
    assert [asked.reason for asked in world.plans()] == ["plan settings changed"]


def test_reasons_name_what_changed() -> None:
    before = PlanFacts((("n1", "s", 1.0), ("n2", "s", 1.0)), (("a", 1), ("b", 1)), (("a", 1, "full"),))
    now = PlanFacts((("n1", "s", 2.0), ("n3", "s", 1.0)), (("a", 1), ("c", 1)), (("a", 1, "small"),))
    assert what_changed(before, now) == (
        "node n3 takes part, node n2 is out, node n1 changed, c version 1 deployed, b removed, "
        "small of a is quarantined, full of a may run again"
    )


def test_moves_are_counted_in_full_and_named_in_part() -> None:
    placements = [primary(app(f"a{n:03}"), "n1") for n in range(NAMED_MAX + 10)]
    told = moves(placements[:1], placements)
    assert (told["starts"], told["stops"], len(told["start"])) == (NAMED_MAX + 9, 0, NAMED_MAX)


# Publishing


def test_a_gateway_gets_the_table_as_soon_as_it_connects(world: World) -> None:
    world.step(ev.GatewayHello("g1", 0))
    (sent,) = routes(world)
    assert sent.gateway == "g1"
    assert sent.table == world.machine.table
    assert [node.name for node in sent.table.nodes] == ["n1", "n2", "n3"]


def test_gateways_learn_of_a_new_node_before_a_plan_uses_it(world: World) -> None:
    world.answer_plans = False
    world.join("n4")
    assert [len(sent.table.nodes) for sent in routes(world)] == [4]


def test_gateways_keep_hearing_of_a_dead_node(world: World) -> None:
    """They judge for themselves, and connect to it the moment it is back."""
    world.kill("n3")
    world.run(5)
    assert world.machine.table is not None
    assert [node.name for node in world.machine.table.nodes] == ["n1", "n2", "n3"]


def test_revisions_pass_those_that_peers_hold_already(world: World) -> None:
    """A start of the controller that could not be stored must not publish what peers take for outdated."""
    world.step(ev.GatewayHello("g1", 9_000_000))
    world.step(ev.HeldTold("gateway", "g1", RouteTable(9_000_000)))
    assert routes(world)[-1].table.revision > 9_000_000
    world.nodes["n1"].target = msgspec.structs.replace(world.nodes["n1"].target, revision=9_500_000)
    world.connect("n1")
    world.deploy(app("b"))
    world.run(0.2)
    assert world.nodes["n1"].target.revision > 9_500_000


def test_each_publication_has_a_higher_revision(world: World) -> None:
    world.deploy(app("b"), app("c"))
    world.run(3)
    revisions = [sent.table.revision for sent in routes(world)]
    assert revisions == sorted(set(revisions))
    assert len(revisions) > 2
    for name in world.nodes:
        sent = [e.target.revision for e in world.seen(ev.SendTarget) if e.node == name]
        assert sent == sorted(set(sent))


# Quarantine


def quarantine(world: World, node: str, *keys: tuple[str, int, str]) -> None:
    world.nodes[node].quarantined = keys
    world.report(node)


def test_a_quarantined_variant_is_planned_without_everywhere(world: World) -> None:
    world.placing = lambda facts: [primary(a, "n1", _best(a.app, facts)) for a in facts.apps]
    quarantine(world, "n1", ("a", 1, "full"))
    quarantine(world, "n2", ("a", 1, "full"))
    world.run(0.2)
    assert world.plans()[-1].reason == "full of a is quarantined"
    assert world.plans()[-1].input.quarantined == {("a", 1, "full")}
    assert all(("a", 1, "full") in node.target.quarantined for node in world.nodes.values())
    world.restart_controller()
    assert world.machine.quarantined == {("a", 1, "full")}


def _best(name: str, facts: PlanInput) -> str:
    return "small" if (name, 1, "full") in facts.quarantined else "full"


def test_a_cleared_quarantine_is_not_brought_back_by_a_node_that_does_not_know_yet(world: World) -> None:
    quarantine(world, "n1", ("a", 1, "full"))
    quarantine(world, "n2", ("a", 1, "full"))
    world.run(1)
    late = world.nodes["n1"].report()
    world.step(ev.QuarantineCleared("a", "full"))
    late = msgspec.structs.replace(late, serial=late.serial + 100)
    world.step(ev.StateReported(late))
    world.nodes["n1"].serial += 100
    assert world.machine.quarantined == set()
    assert not any(key.startswith("quarantine/") for key in world.stored)
    quarantine(world, "n1", ("a", 1, "full"))  # they were told, and report it anew
    quarantine(world, "n2", ("a", 1, "full"))
    assert world.machine.quarantined == {("a", 1, "full")}


def test_a_new_version_begins_without_quarantine(world: World) -> None:
    quarantine(world, "n1", ("a", 1, "full"))
    quarantine(world, "n2", ("a", 1, "full"))
    world.run(1)
    world.deploy(app("a", version=2))
    assert world.machine.quarantined == set()
    assert not any(key.startswith("quarantine/") for key in world.stored)


def test_quarantine_of_what_nobody_deployed_is_ignored(world: World) -> None:
    quarantine(world, "n1", ("ghost", 1, "full"))
    assert world.machine.quarantined == set()


# Memory


def test_old_versions_are_forgotten(world: World) -> None:
    kept = world.tuning.versions_max
    for version in range(2, kept + 5):
        world.deploy(app("a", version=version))
        world.run(0.2)
    assert sum(key.startswith("apps/a/versions/") for key in world.stored) == kept
    assert len(world.machine.catalog.releases) == kept


def test_the_planned_version_is_remembered_however_many_come_after_it(world: World) -> None:
    world.answer_plans = False
    for version in range(2, world.tuning.versions_max + 5):
        world.deploy(app("a", version=version))
    assert "apps/a/versions/1" in world.stored
    assert world.nodes["n1"].running() == ["a/1/full"]
    world.restart_controller()
    assert world.nodes["n1"].running() == ["a/1/full"]


def test_version_numbers_are_never_used_twice(world: World) -> None:
    world.deploy(app("a", version=2))
    world.remove("a")
    world.restart_controller()
    assert world.machine.apps == {}
    assert world.machine.catalog.next_version("a") == 3


def test_records_of_a_later_version_of_the_program_can_be_read() -> None:
    class LaterPlacement(Placement, frozen=True):
        added: str = "later"

    plan = Plan(1, (LaterPlacement("a", 1, "full", "n1", Role.PRIMARY),))
    later = msgspec.msgpack.encode({"plan": plan, "facts": {}, "news": 1})
    memory = recall({"plan/current": later, "novelty/x": b"?"}.items())
    assert memory.plan is not None
    assert memory.plan.plan.placements == (primary(app("a"), "n1"),)


def test_an_app_that_is_removed_and_deployed_anew_has_nothing_of_its_former_plan(world: World) -> None:
    world.answer_plans = False
    world.remove("a")
    world.deploy(app("a", version=2))
    assert world.machine.table is not None
    assert [a.version for a in world.machine.table.apps] == [2]
    assert world.machine.table.placements == ()
    assert all(node.target.replicas == () for node in world.nodes.values())


def test_an_older_report_never_replaces_a_newer_one(world: World) -> None:
    node = world.nodes["n1"]
    node.report()
    world.report("n1")
    world.step(ev.StateReported(NodeState("n1", node.incarnation, 1, 0)))
    observed = world.machine.nodes.by_name["n1"].observed
    assert observed is not None
    assert observed.serial == node.serial
