"""Make before break: what is kept, what goes, and who gives way when memory is short."""

from __future__ import annotations

import msgspec
import pytest
from controller_world import World, app, primary

from understudy.core.controller import events as ev
from understudy.wire.messages import Hello
from understudy.wire.records import AppVersion, Contingency, Criticality, Placement, Role, TensorSpec


def placed(world: World, *placements: Placement) -> None:
    """The next plans say exactly this."""
    world.placing = lambda facts: list(placements)


def replan(world: World) -> None:
    """Give the planner a reason."""
    world.deploy(app("reason", version=world.machine.catalog.next_version("reason"), full_mb=41, small_mb=41))
    world.run(0.2)


@pytest.fixture
def world() -> World:
    world = World()
    world.join("n1", "n2", "n3")
    return world


def test_a_moved_primary_is_kept_until_the_new_one_has_been_ready_for_a_while(world: World) -> None:
    a = app("a")
    placed(world, primary(a, "n1"))
    world.deploy(a)
    world.run(3)
    world.nodes["n2"].loads = False
    placed(world, primary(a, "n2"))
    replan(world)
    world.run(20)
    assert world.nodes["n1"].running() == ["a/1/full"]
    world.nodes["n2"].finish_loading()
    world.report("n2")
    world.run(0.5)
    assert world.nodes["n1"].running() == ["a/1/full"]
    world.run(1)
    assert world.nodes["n1"].running() == []
    assert world.nodes["n2"].running() == ["a/1/full"]


def test_a_new_version_replaces_the_former_one_when_it_is_ready(world: World) -> None:
    first, second = app("a"), app("a", version=2)
    placed(world, primary(first, "n1"))
    world.deploy(first)
    world.run(3)
    world.nodes["n1"].loads = False
    placed(world, primary(second, "n1"))
    world.deploy(second)
    assert world.machine.table is not None
    assert [a.version for a in world.machine.table.apps] == [1]  # as long as the plan is about it
    world.run(0.2)
    assert [a.version for a in world.machine.table.apps] == [2]
    assert [(a.app, a.version) for a in world.nodes["n1"].target.apps] == [("a", 1), ("a", 2)]
    assert world.nodes["n1"].running() == ["a/1/full"]
    assert "a" not in world.machine.settled
    world.nodes["n1"].finish_loading()
    world.report("n1")
    assert "a" in world.machine.settled
    world.run(1.5)
    assert world.nodes["n1"].running() == ["a/2/full"]


def test_a_removed_app_goes_at_once(world: World) -> None:
    a = app("a")
    placed(world, primary(a, "n1"))
    world.deploy(a)
    world.run(3)
    world.step(ev.Removed("a"))
    assert world.nodes["n1"].running() == []
    assert world.machine.table is not None
    assert world.machine.table.apps == world.machine.table.placements == ()


def test_an_activation_is_released_when_the_primaries_have_been_ready_for_a_while(world: World) -> None:
    a = app("a")
    placed(world, primary(a, "n1"))
    world.contingencies = (Contingency("a", 1, "node:n1", "n2", "small", "full"),)
    world.deploy(a)
    world.run(5)
    world.kill("n1")
    world.nodes["n2"].start("a", 1, a.variants[1], Role.CONTINGENCY, "a/node:n1")
    world.report("n2")
    world.nodes["n3"].loads = False
    placed(world, primary(a, "n3"))
    world.run(3)
    assert world.nodes["n2"].running() == ["a/1/small"]
    assert world.nodes["n2"].target.released == ()
    world.nodes["n3"].finish_loading()
    world.report("n3")
    world.run(1.5)
    assert world.nodes["n2"].running() == []
    assert world.nodes["n2"].target.released == ()  # told once: it may be needed again
    released = [sent.target.released for sent in world.seen(ev.SendTarget) if sent.target.released]
    assert released == [("a/node:n1",)]


def test_a_stand_in_that_gateways_want_back_is_released_later_each_time(world: World) -> None:
    """Its primary is ready and fails its users, which only gateways see."""
    a = app("a")
    placed(world, primary(a, "n1"))
    world.contingencies = (Contingency("a", 1, "node:n1", "n2", "small", "small"),)
    world.deploy(a)
    world.run(5)
    kept_s = []
    for _ in range(4):
        world.nodes["n2"].start("a", 1, a.variants[1], Role.CONTINGENCY, "a/node:n1")
        world.report("n2")
        since_s = world.now
        while world.nodes["n2"].running():
            world.run(0.1)
        kept_s.append(world.now - since_s)
    assert kept_s == pytest.approx([1.0, 2.0, 4.0, 8.0], abs=0.35)
    world.run(60)
    world.nodes["n2"].start("a", 1, a.variants[1], Role.CONTINGENCY, "a/node:n1")
    world.report("n2")
    world.run(1.4)
    assert world.nodes["n2"].running() == [], "that was long ago"


def test_a_previous_version_that_was_called_back_stays_although_the_new_one_looks_ready(world: World) -> None:
    first, second, third = (app("a", version=version) for version in (1, 2, 3))
    for version in (first, second):
        placed(world, primary(version, "n1"))
        world.deploy(version)
        world.run(5)
    assert world.nodes["n2"].running() == []
    target = world.nodes["n2"].target
    assert {(a.app, a.version) for a in target.apps} == {("a", 1), ("a", 2)}, "it can be loaded anywhere"
    assert world.machine.table is not None
    assert [a.version for a in world.machine.table.previous] == [1]
    world.nodes["n2"].start("a", 1, first.variants[1], Role.CONTINGENCY, "a/version:2")
    world.report("n2")
    world.run(10)
    assert world.nodes["n2"].running() == ["a/1/small"]
    placed(world, primary(third, "n1"))
    world.deploy(third)
    world.run(5)
    assert world.nodes["n2"].running() == []


def test_a_previous_version_is_not_offered_without_that_link_or_with_another_signature(world: World) -> None:
    first = app("a")
    without = msgspec.structs.replace(app("a", version=2), fallback=("smaller-variant",))
    other = msgspec.structs.replace(app("a", version=3), inputs=(TensorSpec("x", "FP32", (4,)),))
    for version in (first, without, other):
        placed(world, primary(version, "n1"))
        world.deploy(version)
        world.run(5)
        assert world.machine.table is not None
        assert world.machine.table.apps == (version,)
        assert world.machine.table.previous == ()


def test_an_activation_heard_of_before_the_loss_itself_is_kept(world: World) -> None:
    """A gateway may be a moment ahead: its links break at once, the controller's own a little later."""
    a = app("a")
    placed(world, primary(a, "n1"))
    world.deploy(a)
    world.run(5)
    assert "a" in world.machine.settled
    world.nodes["n2"].start("a", 1, a.variants[1], Role.CONTINGENCY, "a/node:n1")
    world.report("n2")
    assert world.nodes["n2"].running() == ["a/1/small"]
    world.run(0.5)
    assert world.nodes["n2"].running() == ["a/1/small"]
    world.kill("n1")
    world.placing = lambda facts: []
    world.run(3)
    assert world.nodes["n2"].running() == ["a/1/small"]


def test_an_activation_that_the_plan_takes_over_is_relabelled(world: World) -> None:
    a = app("a")
    placed(world, primary(a, "n1"))
    world.deploy(a)
    world.run(5)
    world.kill("n1")
    world.nodes["n2"].start("a", 1, a.variants[0], Role.CONTINGENCY, "a/node:n1")
    world.report("n2")
    placed(world, primary(a, "n2"))
    world.run(5)
    (replica,) = world.nodes["n2"].replicas
    assert (replica.role, replica.activation) == (Role.PRIMARY, "")


def test_an_activation_outlives_targets_that_do_not_speak_of_it(world: World) -> None:
    a, b = app("a"), app("b")
    placed(world, primary(a, "n1"), primary(b, "n2"))
    world.deploy(a, b)
    world.run(5)
    world.nodes["n1"].alive = False  # suspect, not dead
    world.run(0.8)
    world.nodes["n3"].start("a", 1, a.variants[1], Role.CONTINGENCY, "a/node:n1")
    world.report("n3")
    world.step(ev.Removed("b"))
    world.run(0.3)
    assert world.nodes["n3"].running() == ["a/1/small"]
    world.nodes["n1"].alive = True
    world.run(2)
    assert world.nodes["n3"].running() == []  # its primary is back, and has been for a while


def test_no_target_is_sent_before_the_node_said_what_it_runs(world: World) -> None:
    a = app("a")
    placed(world, primary(a, "n1"))
    world.deploy(a)
    world.run(3)
    replicas, world.nodes["n1"].replicas = world.nodes["n1"].replicas, []
    world.effects.clear()
    world.step(ev.AgentHello(Hello("agent", "n1", incarnation=2, memory_mb=1000)))
    world.run(1)
    assert not world.seen(ev.SendTarget)
    world.nodes["n1"].replicas = replicas
    world.report("n1")
    assert [sent.node for sent in world.seen(ev.SendTarget)] == ["n1"]


def test_nothing_is_told_to_a_peer_that_holds_more_than_we_and_cannot_tell_what(world: World) -> None:
    """A gateway of an older version, to a controller whose store was lost."""
    world.effects.clear()
    world.step(ev.GatewayHello("g1", revision=12))
    world.run(5)
    assert not world.seen(ev.SendTarget)
    assert not world.seen(ev.SendRoutes)


def test_every_node_has_the_smallest_variant_of_each_app_on_disk(world: World) -> None:
    a, b = app("a"), app("b")
    placed(world, primary(a, "n1"), primary(b, "n2"))
    world.contingencies = (Contingency("a", 1, "node:n1", "n3", "small", "full"),)
    world.deploy(a, b)
    world.run(0.2)
    staged = {name: {ref.digest for ref in node.target.stage} for name, node in world.nodes.items()}
    assert staged["n1"] == {"digest-full", "digest-small"}
    assert staged["n3"] == {"digest-full", "digest-small"}  # for the contingency
    assert [c.key for c in world.nodes["n3"].target.contingencies] == ["a/node:n1"]
    assert world.nodes["n1"].target.contingencies == ()


# Memory


def crowded(*apps: tuple[str, float, Criticality]) -> list[AppVersion]:
    return [app(name, full_mb=mb, criticality=criticality) for name, mb, criticality in apps]


STANDARD, CRITICAL, BEST_EFFORT = Criticality.STANDARD, Criticality.CRITICAL, Criticality.BEST_EFFORT


def swap(world: World, spare_mb: float = 10) -> None:
    """`a` on n1 and `b` on n2 fill their nodes, and are to change places."""
    a, b = crowded(("a", 600, STANDARD), ("b", 600, STANDARD))
    world.join("n1", "n2")
    if spare_mb > 10:
        world.join("n3", memory_mb=spare_mb)
    placed(world, primary(a, "n1"), primary(b, "n2"))
    world.deploy(a, b)
    world.run(3)
    placed(world, primary(a, "n2"), primary(b, "n1"))
    replan(world)


def test_two_apps_that_swap_full_nodes_get_there_by_a_bridge() -> None:
    world = World(names=("n1", "n2", "n3"))
    silent = watch_silence(world)
    swap(world, spare_mb=500)
    world.run(10)
    assert world.nodes["n1"].running() == ["b/1/full"]
    assert world.nodes["n2"].running() == ["a/1/full"]
    assert world.nodes["n3"].running() == []
    assert not silent


@pytest.mark.parametrize("load_ms", [100.0, 3000.0])
def test_without_room_for_a_bridge_only_what_loads_quickly_changes_places(load_ms: float) -> None:
    world = World(names=("n1", "n2"))
    silent = watch_silence(world)
    a, b = (loading_in(load_ms, each) for each in crowded(("a", 980, STANDARD), ("b", 980, STANDARD)))
    world.join("n1", "n2")
    placed(world, primary(a, "n1"), primary(b, "n2"))
    world.deploy(a, b)
    world.run(3)
    placed(world, primary(a, "n2"), primary(b, "n1"))
    replan(world)
    world.run(10)
    quick = load_ms < 1000
    ran = (["a/1/full"], ["b/1/full"])
    assert (world.nodes["n1"].running(), world.nodes["n2"].running()) == (ran[::-1] if quick else ran)
    assert len(silent) <= quick, "one waits, and the other doesn't"


def loading_in(load_ms: float, app: AppVersion) -> AppVersion:
    profiles = [msgspec.structs.replace(v.profile, load_ms=load_ms) for v in app.variants if v.profile]
    variants = [msgspec.structs.replace(v, profile=p) for v, p in zip(app.variants, profiles, strict=True)]
    return msgspec.structs.replace(app, variants=tuple(variants))


def test_a_kept_replica_goes_first_when_its_app_answers_elsewhere() -> None:
    world = World(names=("n1", "n2", "n3"))
    a = msgspec.structs.replace(app("a", full_mb=600), replicas=2)
    b = app("b", full_mb=600)
    world.join("n1", "n2", "n3")
    placed(world, primary(a, "n1"), primary(a, "n2"))
    world.deploy(a)
    world.run(3)
    world.nodes["n3"].loads = False
    placed(world, primary(a, "n2"), primary(a, "n3"), primary(b, "n1"))
    world.deploy(b)
    world.run(0.2)
    assert world.nodes["n1"].running() == ["b/1/full"]  # `a` still has n2
    assert world.nodes["n2"].running() == ["a/1/full"]


def test_a_standby_waits_until_what_is_kept_has_gone() -> None:
    world = World(names=("n1", "n2"))
    a, b = crowded(("a", 600, STANDARD), ("b", 600, STANDARD))
    world.join("n1", "n2")
    placed(world, primary(a, "n1"))
    world.deploy(a)
    world.run(3)
    world.nodes["n2"].loads = False
    placed(world, primary(a, "n2"), primary(b, "n1", role=Role.STANDBY))
    world.deploy(b)
    world.run(3)
    assert world.nodes["n1"].running() == ["a/1/full"]
    assert [r.app for r in world.nodes["n1"].target.replicas] == ["a"]
    world.nodes["n2"].finish_loading()
    world.report("n2")
    world.run(1.5)
    assert world.nodes["n1"].running() == ["b/1/full"]


@pytest.mark.parametrize(
    ("criticality", "gives_way"), [(BEST_EFFORT, True), (STANDARD, True), (CRITICAL, False)]
)
def test_the_last_replica_gives_way_only_to_a_silent_app_worth_as_much(
    criticality: Criticality, *, gives_way: bool
) -> None:
    a, b = app("a", 1, 600, 590, criticality), app("b", 1, 600, 590)
    world = crowded_out(a, b)
    assert world.nodes["n1"].running() == (["b/1/full"] if gives_way else ["a/1/full"])


def test_nobody_goes_for_what_does_not_fit_all_the_same() -> None:
    """Beside `c`, the last of its app, `b` has no room without `a` either."""
    a, b, c = app("a", 1, 300, 290, BEST_EFFORT), app("b", 1, 600, 590), app("c", 1, 500, 490, CRITICAL)
    world = World(names=("n1",))
    world.join("n1")
    placed(world, primary(a, "n1"), primary(c, "n1"))
    world.deploy(a, c)
    world.run(3)
    placed(world, primary(b, "n1"))
    world.deploy(b)
    world.run(3)
    assert world.nodes["n1"].running() == ["a/1/full", "c/1/full"]


def test_a_standby_takes_the_place_of_what_the_plan_gave_up_for_it() -> None:
    world = World(names=("n1", "n2"))
    a, b = app("a", 1, 900, 300, CRITICAL), app("b", 1, 800, 790, BEST_EFFORT)
    world.join("n1", "n2")
    placed(world, primary(b, "n2"))
    world.deploy(b)
    world.run(3)
    placed(world, primary(a, "n1"), primary(a, "n2", "small", Role.STANDBY))
    world.deploy(a)
    world.run(3)
    assert world.nodes["n2"].running() == ["a/1/small"]


def crowded_out(a: AppVersion, b: AppVersion) -> World:
    """`a` runs on the only node, and the plan has no place for it any more beside `b`."""
    world = World(names=("n1",))
    world.join("n1")
    placed(world, primary(a, "n1"))
    world.deploy(a)
    world.run(3)
    placed(world, primary(b, "n1"))
    world.deploy(b)
    world.run(3)
    return world


def test_an_activation_in_the_way_is_released_when_its_app_answers_elsewhere() -> None:
    world = World(names=("n1", "n2", "n3"))
    a = msgspec.structs.replace(app("a", full_mb=600), replicas=2)
    b = app("b", full_mb=600)
    world.join("n1", "n2", "n3")
    world.nodes["n3"].loads = False
    placed(world, primary(a, "n2"), primary(a, "n3"))
    world.deploy(a)
    world.run(3)
    world.nodes["n1"].start("a", 1, a.variants[0], Role.CONTINGENCY, "a/node:n3")
    world.report("n1")
    world.run(2)
    assert world.nodes["n1"].running() == ["a/1/full"]
    placed(world, primary(a, "n2"), primary(a, "n3"), primary(b, "n1"))
    world.deploy(b)
    world.run(0.5)
    assert world.nodes["n1"].running() == ["b/1/full"]


def watch_silence(world: World) -> list[str]:
    """Collects, from now on, every moment in which an app that had a replica has none."""
    silent: list[str] = []
    served: set[str] = set()
    step = world.step

    def watched(event: ev.Event) -> list[ev.Effect]:
        effects = step(event)
        now = {r.app for node in world.nodes.values() for r in node.replicas if r.state == "ready"}
        silent.extend(f"{name} at {world.now}" for name in served - now)
        served.update(now)
        return effects

    world.step = watched  # type: ignore[method-assign]
    return silent
