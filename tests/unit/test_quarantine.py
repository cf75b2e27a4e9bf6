"""A variant is condemned by evidence from different nodes that are well, and never for good."""

from __future__ import annotations

import msgspec
import pytest
from controller_world import World, app, primary

from understudy.core.controller import events as ev
from understudy.core.controller.quarantine import CASE, is_well
from understudy.core.controller.stored import Quarantined
from understudy.core.lifecycle import ReplicaPhase
from understudy.core.planning.plan import PlanInput
from understudy.settings.controller import ControllerTuning
from understudy.wire.messages import NodeState, ReplicaState, TargetReplica
from understudy.wire.records import Placement, Role

FULL, SMALL = ("a", 1, "full"), ("a", 1, "small")
TUNING = ControllerTuning(quarantine_pause_s=60.0, quarantine_pause_s_max=200.0, trial_s=10.0)


def best_on_n1(facts: PlanInput) -> list[Placement]:
    """The best variant that isn't in quarantine, of each app, on n1 if that is there."""
    node = min(info.name for info in facts.nodes)
    left = {a.app: [v.name for v in a.variants if (a.app, a.version, v.name) not in facts.quarantined]
            for a in facts.apps}  # fmt: skip
    return [primary(a, node, left[a.app][0]) for a in facts.apps if left[a.app]]


def started(*names: str, memory_mb: float = 1000.0) -> World:
    world = World(TUNING, names)
    world.placing = best_on_n1
    world.join(*names, memory_mb=memory_mb)
    world.deploy(app("a"))
    world.run(5)
    world.effects.clear()
    return world


def crash(world: World, node: str, *keys: tuple[str, int, str]) -> None:
    """From now on `keys` crash there, and they did."""
    world.nodes[node].crashes.update(keys)
    world.nodes[node].quarantined = tuple({*world.nodes[node].quarantined, *keys} & _wanted(world, node))
    world.nodes[node].replicas = [
        r for r in world.nodes[node].replicas if (r.app, r.version, r.variant) not in keys
    ]
    world.nodes[node].take(world.nodes[node].target)
    world.report(node)


def cure(world: World, node: str) -> None:
    """Nothing crashes there any more."""
    world.nodes[node].crashes.clear()
    world.nodes[node].retry()
    world.report(node)


def _wanted(world: World, node: str) -> set[tuple[str, int, str]]:
    return {(r.app, r.version, r.variant) for r in world.nodes[node].target.replicas}


def test_what_crashes_on_one_node_only_is_started_on_another_and_serves_there() -> None:
    world = started("n1", "n2")
    crash(world, "n1", FULL)
    world.run(60)
    assert world.machine.quarantined == set()
    assert world.nodes["n2"].running() == ["a/1/full"]
    assert world.kinds() == ["variant.doubted"]
    cure(world, "n1")
    world.run(30)
    assert world.nodes["n1"].running() == ["a/1/full"]
    assert world.nodes["n2"].running() == [], "a stand-in is taken away, make before break"
    assert world.machine.quarantine.cases == {}


def test_after_a_doubt_that_passed_crashes_count_again_everywhere() -> None:
    world = started("n1", "n2", "n3")
    crash(world, "n1", FULL)
    world.run(1)
    cure(world, "n1")
    world.run(30)
    assert world.machine.quarantine.cases == {}
    for node in world.nodes.values():
        node.crashes.add(FULL)
    crash(world, "n1", FULL)
    world.run(5)
    assert world.machine.quarantined == {FULL}
    assert len(world.machine.quarantine.cases[FULL].witnesses) >= 2


def test_what_crashes_on_two_nodes_that_are_well_is_placed_nowhere() -> None:
    world = started("n1", "n2", "n3")
    for node in world.nodes.values():
        node.crashes.add(FULL)
    crash(world, "n1", FULL)
    world.run(1)
    assert world.machine.quarantined == {FULL}
    assert world.nodes["n1"].running() == ["a/1/small"]
    (note,) = [n for n in world.seen(ev.Note) if n.kind == "quarantine.recorded"]
    assert "n1 and n2" in note.message or "n1 and n3" in note.message
    assert "tried again in 60 s" in note.message


@pytest.mark.parametrize("memory_mb", [1000.0, 120.0])
def test_without_another_node_that_could_be_asked_one_is_enough(memory_mb: float) -> None:
    names = ("n1",) if memory_mb == 1000.0 else ("n1", "n2")
    world = started(*names, memory_mb=memory_mb)
    if memory_mb == 120.0:
        world.nodes["n2"].start("x", 1, app("x").variants[0], Role.PRIMARY)  # no room for more
        world.report("n2")
    crash(world, "n1", FULL)
    world.run(1)
    assert world.machine.quarantined == {FULL}


def test_a_node_that_is_only_out_of_sight_is_waited_for() -> None:
    world = started("n1", "n2")
    world.step(ev.AgentLost("n2"))
    crash(world, "n1", FULL)
    assert world.machine.quarantined == set()
    world.connect("n2")
    assert world.nodes["n2"].running() == ["a/1/full"]


def test_a_verdict_by_one_node_is_looked_at_again_as_soon_as_there_is_another() -> None:
    world = started("n1")
    crash(world, "n1", FULL)
    world.run(1)
    assert world.machine.quarantined == {FULL}
    world.join("n2")
    world.run(1)
    assert world.nodes["n2"].running() == ["a/1/full"]
    world.run(11)
    assert world.machine.quarantined == set()


@pytest.mark.parametrize("trouble", ["disk", "everything fails"])
def test_a_node_with_trouble_of_its_own_is_no_witness(trouble: str) -> None:
    world = started("n1", "n2")
    if trouble == "disk":
        world.nodes["n1"].trouble = ("the disk is full",)
        crash(world, "n1", FULL)
    else:
        world.deploy(app("b"))
        world.run(1)
        crash(world, "n1", FULL, ("b", 1, "full"))
    world.nodes["n2"].crashes.add(FULL)
    world.run(60)
    assert world.machine.quarantined == set()


def test_nodes_are_asked_about_a_variant_only_if_they_are_well() -> None:
    world = started("n1", "n2")
    world.nodes["n2"].trouble = ("the disk is full",)
    world.report("n2")
    crash(world, "n1", FULL)
    world.run(5)
    assert world.nodes["n2"].running() == []


def convicted() -> World:
    world = started("n1", "n2")
    for node in world.nodes.values():
        node.crashes.add(FULL)
    crash(world, "n1", FULL)
    world.run(0.5)
    assert world.machine.quarantined == {FULL}
    world.effects.clear()
    return world


def trials(world: World) -> list[str]:
    return [note.kind for note in world.seen(ev.Note) if note.kind.startswith("quarantine.")]


def test_it_is_tried_again_on_one_node_at_a_time_with_growing_pauses() -> None:
    world = convicted()
    began_s, at_s = world.now, []
    for _ in range(4):
        while not any(note.kind == "quarantine.tried" for note in world.seen(ev.Note)):
            world.run(0.1)
        at_s.append(world.now - began_s)
        world.effects.clear()
    pauses = [later - sooner for sooner, later in zip([0.0, *at_s], at_s, strict=False)]
    assert pauses == pytest.approx([60, 120, 200, 200], abs=1.5)


def test_it_ends_by_itself_when_the_cause_does() -> None:
    world = convicted()
    for node in world.nodes.values():
        node.crashes.clear()
    world.run(59)
    assert trials(world) == []
    world.run(2)
    tried = [name for name, node in world.nodes.items() if "a/1/full" in node.running()]
    assert len(tried) == 1, "on trial on one node"
    assert world.machine.quarantined == {FULL}, "and not planned yet"
    world.run(11)
    assert trials(world) == ["quarantine.tried", "quarantine.ended"]
    assert world.machine.quarantined == set()
    assert not any(key.startswith("quarantine/") for key in world.stored)
    assert world.nodes["n1"].running() == ["a/1/full"]


def test_what_crashes_soon_after_its_quarantine_ended_waits_longer() -> None:
    world = convicted()
    for node in world.nodes.values():
        node.crashes.clear()
    world.run(75)
    assert world.machine.quarantined == set()
    world.nodes["n2"].crashes.add(FULL)
    crash(world, "n1", FULL)
    world.run(1)
    (note,) = [
        n for n in world.seen(ev.Note) if n.kind == "quarantine.recorded" and "crashed again" in n.message
    ]
    assert "tried again in 120 s" in note.message


def test_a_trial_on_a_node_that_goes_away_says_nothing() -> None:
    world = convicted()
    for node in world.nodes.values():
        node.crashes.clear()
        node.loads = False
    world.run(61)
    (tried,) = [name for name in world.nodes if world.machine.quarantine.asked.get(name)]
    world.kill(tried)
    world.run(3)
    case = world.machine.quarantine.cases[FULL]
    assert (case.state, case.pauses, case.asked) == ("quarantined", 1, "")


def test_a_restarted_controller_remembers_evidence_and_pauses() -> None:
    world = convicted()
    before = world.machine.quarantine.cases[FULL]
    world.restart_controller()
    after = world.machine.quarantine.cases[FULL]
    assert (after.witnesses, after.why, after.pauses) == (before.witnesses, before.why, before.pauses)
    world.run(61)
    assert "quarantine.tried" in trials(world)


def test_a_record_of_a_former_version_is_tried_again_too() -> None:
    """It held no evidence."""
    world = convicted()
    old = msgspec.msgpack.encode({"app": "a", "version": 1, "variant": "full"})
    world.stored["quarantine/a/1/full"] = old
    world.restart_controller()
    assert world.machine.quarantined == {FULL}
    world.run(1)
    assert "quarantine.tried" in trials(world)


def test_an_operator_can_lift_it_at_once() -> None:
    world = convicted()
    for node in world.nodes.values():
        node.crashes.clear()
    world.step(ev.QuarantineCleared("a", "full"))
    world.run(3)
    assert world.nodes["n1"].running() == ["a/1/full"]


def test_no_state_of_a_case_is_an_end_but_the_last() -> None:
    states = {state for state, _ in CASE} | set(CASE.values())
    assert states - {state for state, _ in CASE} == {"closed"}


def test_a_node_is_well_unless_something_speaks_against_it() -> None:
    ready = ReplicaState("r", "c", 1, "full", Role.PRIMARY, "ready")
    both = (FULL, ("b", 1, "full"))
    assert is_well(NodeState("n1", 1, 1, 1, quarantined=(FULL, SMALL)), "a"), "a bad family is the app's"
    assert not is_well(NodeState("n1", 1, 1, 1, quarantined=both), "a"), "everything fails there"
    assert is_well(NodeState("n1", 1, 1, 1, (ready,), quarantined=both), "a")
    assert not is_well(NodeState("n1", 1, 1, 1, (ready,), quarantined=(FULL,), trouble=("disk",)), "a")


def test_a_variant_is_named_alike_by_whoever_speaks_of_it() -> None:
    named = [
        TargetReplica("digits", 3, "forest", Role.PRIMARY),
        ReplicaState("r1", "digits", 3, "forest", Role.STANDBY, ReplicaPhase.READY),
        Quarantined("digits", 3, "forest"),
    ]
    assert {each.key for each in named} == {("digits", 3, "forest")}
    assert not any("key" in msgspec.to_builtins(each) for each in named), "it isn't sent twice"
