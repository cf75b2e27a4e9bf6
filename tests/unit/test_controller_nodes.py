"""Node lifecycle under virtual time: leases, suspicion, return, restarts."""

from __future__ import annotations

import pytest
from controller_world import World, app

from understudy.core.controller import events as ev
from understudy.settings.controller import ControllerTuning


@pytest.fixture
def world() -> World:
    world = World()
    world.join("n1", "n2", "n3")
    world.deploy(app("a"), app("b"), app("c"))
    world.run(4)  # beyond the start's grace
    world.effects.clear()
    return world


def test_a_lost_node_is_planned_around_after_its_lease(world: World) -> None:
    assert world.nodes["n2"].running() == ["b/1/full"]
    world.kill("n2")
    world.run(1.3)
    assert world.state("n2") == "suspect"
    assert not world.plans()
    world.run(0.5)
    assert world.state("n2") == "dead"
    assert [asked.reason for asked in world.plans()] == ["node n2 is out"]
    assert "b/1/full" in world.nodes["n3"].running()
    assert world.kinds().count("node.died") == 1


def test_a_suspended_node_comes_back_without_any_replanning(world: World) -> None:
    world.nodes["n2"].alive = False
    world.run(1.2)
    assert world.state("n2") == "suspect"
    world.nodes["n2"].alive = True
    world.run(10)
    assert world.state("n2") == "ready"
    assert world.kinds() == ["node.suspected", "node.cleared"]
    assert not world.plans()
    assert not world.seen(ev.SendTarget)


def test_an_agent_that_restarts_keeps_its_node(world: World) -> None:
    world.step(ev.AgentLost("n2"))
    world.run(0.5)
    world.connect("n2")
    world.run(2)
    assert world.state("n2") == "ready"
    assert not world.plans()
    assert [sent.node for sent in world.seen(ev.SendTarget)] == ["n2"]  # it may have lost the former one


def test_a_returning_node_waits_empty_for_its_stability_window(world: World) -> None:
    world.kill("n2")
    world.run(3)
    world.join("n2")
    assert world.state("n2") == "returning"
    world.run(4.5)
    assert world.state("n2") == "returning"
    assert world.nodes["n2"].running() == []
    world.run(1)
    assert world.state("n2") == "ready"
    assert world.plans()[-1].reason == "node n2 takes part"


def test_the_stability_window_doubles_with_each_flap_up_to_its_limit() -> None:
    world = World(ControllerTuning(stability_window_s=5, stability_window_s_max=12))
    world.join("n1", "n2")
    world.run(4)
    windows = []
    for _ in range(3):
        world.kill("n2")
        world.run(2)
        assert world.state("n2") == "dead"
        world.join("n2")
        since = world.now
        while world.state("n2") == "returning":
            world.run(0.1)
        windows.append(round(world.now - since))
    assert windows == [5, 10, 12]


def test_flaps_are_forgotten_in_time() -> None:
    world = World(ControllerTuning(flap_memory_s=60))
    world.join("n1", "n2")
    for _ in range(2):
        world.run(100)
        world.kill("n2")
        world.run(3)
        world.join("n2")
        assert "waits 5 s" in world.seen(ev.Note)[-1].message


def test_a_node_that_dies_while_it_returns_is_dead_at_once(world: World) -> None:
    world.kill("n2")
    world.run(3)
    world.join("n2")
    world.run(1)
    world.kill("n2")
    assert world.state("n2") == "dead"


def test_a_thawed_node_returns_on_its_old_connection(world: World) -> None:
    world.nodes["n2"].alive = False  # frozen: silent, but connected
    world.run(3)
    assert world.state("n2") == "dead"
    world.nodes["n2"].alive = True
    world.run(0.1)
    assert world.state("n2") == "returning"
    world.run(3)
    assert world.nodes["n2"].running() == []  # its apps moved meanwhile, and are stable there
    world.run(3)
    assert world.state("n2") == "ready"


def test_nobody_is_declared_dead_after_our_own_standstill(world: World) -> None:
    world.now += 30  # this process was suspended; the nodes' heartbeats are not read yet
    world.step(ev.Tick())
    assert all(world.state(name) == "ready" for name in world.nodes)
    world.run(5)
    assert world.kinds() == []
    world.kill("n2")
    world.run(2)
    assert world.state("n2") == "dead"


def test_losing_most_nodes_at_once_takes_twice_the_lease(world: World) -> None:
    world.kill("n1")
    world.kill("n2")
    world.run(2.5)
    assert (world.state("n1"), world.state("n2")) == ("suspect", "suspect")
    world.run(1)
    assert (world.state("n1"), world.state("n2")) == ("dead", "dead")
    assert world.nodes["n3"].running() == ["a/1/full", "b/1/full", "c/1/full"]


def test_when_all_nodes_were_lost_the_first_ones_back_serve_at_once(world: World) -> None:
    for name in ("n1", "n2", "n3"):
        world.kill(name)
    world.run(5)
    assert all(world.state(name) == "dead" for name in world.nodes)
    assert not world.plans()  # there is nobody to plan for
    world.join("n1")
    world.run(0.3)
    assert world.state("n1") == "ready"
    assert world.nodes["n1"].running() == ["a/1/full", "b/1/full", "c/1/full"]


def test_after_a_restart_nothing_is_planned_again_and_nobody_is_declared_dead(world: World) -> None:
    before = world.machine.plan
    revision = max(node.target.revision for node in world.nodes.values())
    world.restart_controller(away_s=60)
    world.run(2.5)
    assert all(world.state(name) == "ready" for name in world.nodes)
    assert world.machine.plan == before
    world.run(10)
    assert not world.plans()
    assert min(node.target.revision for node in world.nodes.values()) > revision


def test_a_node_lost_together_with_the_controller_is_dead_after_the_grace(world: World) -> None:
    world.kill("n2")
    world.restart_controller(away_s=1)
    world.run(2.8)
    assert world.state("n2") == "unknown"
    world.run(0.5)
    assert world.state("n2") == "dead"
    assert [asked.reason for asked in world.plans()] == ["node n2 is out"]


def test_a_controller_restart_does_not_rehabilitate_a_returning_node(world: World) -> None:
    world.kill("n2")
    world.run(3)
    world.join("n2")
    world.restart_controller()
    assert world.state("n2") == "returning"
    world.run(4)
    assert not world.plans()
    world.run(2)
    assert world.state("n2") == "ready"


def test_a_drained_node_is_emptied_make_before_break_and_stays_drained(world: World) -> None:
    world.step(ev.DrainAsked("n2"))
    assert world.state("n2") == "drained"
    world.run(0.2)
    assert "b/1/full" in world.nodes["n2"].running()
    assert "b/1/full" in world.nodes["n3"].running()
    world.run(2)
    assert world.nodes["n2"].running() == []
    world.kill("n2")
    world.run(2)
    assert world.state("n2") == "dead"
    world.join("n2")
    world.restart_controller()
    world.run(10)
    assert world.state("n2") == "drained"
    assert world.nodes["n2"].running() == []
    world.step(ev.UndrainAsked("n2"))
    world.run(0.2)
    assert world.state("n2") == "ready"
    assert world.plans()[-1].reason == "node n2 takes part"


def test_a_drain_of_a_suspect_node_is_done_when_it_is_back(world: World) -> None:
    world.nodes["n2"].alive = False
    world.run(0.8)
    world.step(ev.DrainAsked("n2"))
    assert world.state("n2") == "suspect"
    world.run(0.2)
    assert world.plans()[-1].reason == "node n2 is out"
    world.nodes["n2"].alive = True
    world.run(0.1)
    assert world.state("n2") == "drained"
    assert world.kinds().count("node.drained") == 1


def test_a_dead_node_that_left_the_cluster_file_is_forgotten(world: World) -> None:
    world.kill("n3")
    world.run(3)
    world.config = World(names=("n1", "n2")).config
    world.restart_controller()
    assert set(world.machine.nodes.by_name) == {"n1", "n2"}


def test_more_memory_makes_a_new_plan(world: World) -> None:
    world.nodes["n2"].memory_mb = 2000
    world.step(ev.AgentLost("n2"))
    world.connect("n2")
    world.run(0.2)
    assert [asked.reason for asked in world.plans()] == ["node n2 changed"]
