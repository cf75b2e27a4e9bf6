"""A controller that knows less than its peers: it asks, takes over what they hold, and takes nothing away."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import msgspec
import pytest
from controller_world import World, app, primary

from understudy.core.controller import events as ev
from understudy.core.controller.stored import CurrentVersion, current_key, recall, release_key
from understudy.settings.controller import ControllerTuning
from understudy.wire.messages import Hello, Target
from understudy.wire.records import AppVersion, ArtifactRef, Placement, Removal, RouteTable, Variant

TUNING = ControllerTuning()
GRACE_S = TUNING.start_grace_ms / 1000 + 0.5


def table(revision: int, *apps: AppVersion, **rest: Any) -> RouteTable:
    return RouteTable(revision, apps=apps, removed=rest.pop("removed", ()), **rest)


def tell(world: World, name: str, held: RouteTable) -> None:
    """A gateway connects and says what it holds."""
    world.step(ev.GatewayHello(name, held.revision))
    world.step(ev.HeldTold("gateway", name, held))


def other(spec: AppVersion) -> AppVersion:
    """The same number for something else."""
    variants = (Variant("full", "onnx", ArtifactRef("another", 1, "f"), 0.9),)
    return msgspec.structs.replace(spec, variants=variants)


def published(world: World) -> dict[str, int]:
    assert world.machine.table is not None
    return {spec.app: spec.version for spec in world.machine.table.apps}


def lose_store(world: World) -> None:
    """And start another controller, which finds its nodes again."""
    world.stored.clear()
    world.restart_controller()


@pytest.fixture
def served() -> World:
    world = World(TUNING)
    world.join("n1", "n2", "n3")
    world.deploy(app("a"), app("b"))
    world.deploy(app("a", 2))
    world.run(2)
    assert published(world) == {"a": 2, "b": 1}
    return world


def test_a_lost_store_is_made_anew_from_what_agents_hold(served: World) -> None:
    running = {name: node.running() for name, node in served.nodes.items()}
    lose_store(served)
    served.run(1)
    assert published(served) == {"a": 2, "b": 1}
    assert {name: node.running() for name, node in served.nodes.items()} == running
    assert "app.taken_over" in served.kinds()
    assert recall(served.stored.items()).currents["a"].newest == 2


def test_one_deployment_after_a_lost_store_takes_nothing_else_away(served: World) -> None:
    lose_store(served)
    served.deploy(app("c", served.machine.catalog.next_version("c")))
    served.run(GRACE_S)
    assert published(served) == {"a": 2, "b": 1, "c": 1}
    for node in served.nodes.values():
        assert {spec.app for spec in node.target.apps} == {"a", "b", "c"}


def test_a_restored_older_store_learns_what_came_after_it(served: World) -> None:
    backup = dict(served.stored)
    served.deploy(app("a", 3), app("d"))
    served.remove("b")
    served.run(2)
    served.stored = backup
    served.restart_controller()
    served.run(1)
    assert published(served) == {"a": 3, "d": 1}
    assert served.machine.catalog.next_version("a") == 4
    assert served.machine.catalog.next_version("b") == 2


def test_no_number_is_handed_out_twice(served: World) -> None:
    served.deploy(app("a", 7))
    served.remove("b")
    served.run(1)
    before = served.machine.publications.revision
    lose_store(served)
    served.run(1)
    assert served.machine.catalog.next_version("a") == 8
    assert served.machine.catalog.next_version("b") == 2  # told by a removal
    assert served.machine.publications.revision > before


def test_nothing_is_published_before_those_who_may_know_more_were_heard(served: World) -> None:
    served.stored.clear()
    served.nodes["n3"].alive = False
    served.restart_controller()
    served.run(1)
    assert not served.seen(ev.SendTarget)
    assert not served.plans()
    served.run(GRACE_S)
    assert served.machine.hearing.over
    assert published(served) == {"a": 2, "b": 1}


def test_a_node_that_holds_something_is_told_nothing_before_it_said_what(served: World) -> None:
    served.stored.clear()
    for node in served.nodes.values():
        node.alive = False
    served.restart_controller()
    served.run(GRACE_S)
    node = served.nodes["n1"]
    node.alive = True
    served.step(ev.AgentHello(Hello("agent", "n1", memory_mb=1000, revision=node.target.revision)))
    served.deploy(app("c"))
    served.report("n1")
    assert not served.seen(ev.SendTarget)
    served.step(ev.HeldTold("agent", "n1", node.target))
    served.run(1)
    assert published(served) == {"a": 2, "b": 1, "c": 1}


def test_a_peer_that_never_tells_is_not_waited_for_for_ever(served: World) -> None:
    """It is of an older version."""
    node = served.nodes["n1"]
    served.step(ev.AgentHello(Hello("agent", "n1", memory_mb=1000, revision=node.target.revision)))
    served.report("n1")
    served.effects.clear()
    served.deploy(app("c"))
    served.run(1)
    assert "n1" not in {sent.node for sent in served.seen(ev.SendTarget)}
    served.run(GRACE_S)
    assert "n1" in {sent.node for sent in served.seen(ev.SendTarget)}


def test_a_gateway_with_an_old_table_brings_nothing_back(served: World) -> None:
    old = served.machine.table
    assert old is not None
    served.remove("b")
    served.deploy(app("a", 3))
    served.run(1)
    served.restart_controller()
    tell(served, "late", old)
    served.run(1)
    assert published(served) == {"a": 3}
    assert served.machine.table is not None
    assert Removal("b", 1) in (served.machine.table.removed or ())


def test_a_peer_that_missed_a_removal_is_told_of_it_however_long_ago_it_was() -> None:
    world = World(ControllerTuning(removals_max=2), names=("n1",))
    world.join("n1")
    for name in ("a", "b", "c"):
        world.deploy(app(name))
        world.run(0.5)
        world.remove(name)
    world.run(0.5)
    assert world.machine.table is not None
    assert [r.app for r in world.machine.table.removed or ()] == ["b", "c"]
    tell(world, "late", table(5, app("a")))
    world.run(0.5)
    assert "a" in [r.app for r in world.machine.table.removed or ()]


def test_a_removal_is_outlived_by_what_was_deployed_after_it(served: World) -> None:
    lose_store(served)
    tell(served, "g1", table(9_000_000, app("b", 5), removed=(Removal("a", 1), Removal("b", 3))))
    served.run(1)
    assert published(served) == {"a": 2, "b": 5}


PEERS = [
    table(11, app("a", 3), app("b", 1)),
    table(12, app("a", 4), removed=(Removal("b", 1),)),
    table(13, app("c", 2), removed=(Removal("a", 2),)),
]


@pytest.mark.parametrize("order", list(permutations(range(len(PEERS)))))
def test_the_order_in_which_peers_tell_makes_no_difference(order: tuple[int, ...]) -> None:
    world = World(TUNING, names=("n1",))
    for index in order:
        tell(world, f"g{index}", PEERS[index])
    world.join("n1")
    world.run(1)
    assert published(world) == {"a": 4, "c": 2}
    assert world.machine.catalog.next_version("b") == 2


def test_two_things_under_one_number_get_two() -> None:
    """Deployed while nobody was there who knew better."""
    world = World(TUNING, names=("n1",))
    world.run(GRACE_S)
    world.join("n1")
    ours = other(app("a", 1))
    world.deploy(ours)
    tell(world, "late", table(7, app("a", 1)))
    world.run(1)
    assert published(world) == {"a": 2}
    assert world.machine.apps["a"].variants == ours.variants
    assert world.machine.catalog.releases[("a", 1)].app == app("a", 1)
    assert "app.renumbered" in world.kinds()


def test_the_plan_of_a_gateway_spares_moving_everything() -> None:
    world = World(TUNING, names=("n1",))
    held = table(5, app("a"), placements=(primary(app("a"), "n1"),), plan_revision=41)
    tell(world, "g1", held)
    world.join("n1")
    world.run(1)
    assert world.plans()[0].revision == 42
    current = world.plans()[0].input.current
    assert current is not None
    assert current.placements == (Placement("a", 1, "full", "n1", primary(app("a"), "n1").role),)


def test_quarantines_are_taken_over_with_the_version_they_are_about() -> None:
    world = World(TUNING, names=("n1",))
    tell(world, "g1", table(5, app("a"), quarantined=(("a", 1, "full"), ("a", 0, "full"))))
    assert world.machine.quarantined == {("a", 1, "full")}
    assert recall(world.stored.items()).quarantined.keys() == {("a", 1, "full")}


def test_a_lifted_quarantine_is_not_brought_back_by_an_old_table(served: World) -> None:
    tell(served, "late", table(5, app("a", 2), quarantined=(("a", 2, "full"),)))
    assert not served.machine.quarantined


@pytest.mark.parametrize(
    "held",
    [
        table(2**62),
        table(5, msgspec.structs.replace(app("a"), app="../../etc")),
        table(5, msgspec.structs.replace(app("a"), variants=())),
        table(5, app("a", -1)),
        table(5, app("a", 2**62)),
        table(5, removed=(Removal("", 3), Removal("a", 2**70), Removal("a/b", 1))),
    ],
)
def test_what_makes_no_sense_is_not_believed(held: RouteTable) -> None:
    world = World(TUNING, names=("n1",))
    world.join("n1")
    tell(world, "g1", held)
    world.deploy(app("b"))
    world.run(1)
    assert published(world) == {"b": 1}
    assert world.machine.publications.revision < 2**53


def damage(world: World, key: str, content: bytes = b"\xc1 garbage") -> None:
    assert key in world.stored
    world.stored[key] = content
    world.restart_controller()


def test_any_one_record_may_be_damaged(served: World) -> None:
    """It is named, stays as it is, and everything else is used."""
    whole = dict(served.stored)
    assert len(whole) > 8
    for key in whole:
        served.stored = dict(whole)
        damage(served, key)
        assert key in served.machine.unreadable or "current" in key or "versions" in key
        served.run(1)
        assert published(served) == {"a": 2, "b": 1}, key
        assert "record.unreadable" in served.kinds()


@pytest.mark.parametrize("key", [current_key("a"), release_key("a", 2)])
def test_a_damaged_record_of_an_app_is_replaced_by_what_peers_hold(served: World, key: str) -> None:
    damage(served, key)
    served.run(1)
    assert published(served) == {"a": 2, "b": 1}
    assert served.machine.catalog.next_version("a") == 3


def test_an_app_whose_record_is_damaged_and_that_nobody_holds_hides_no_other(served: World) -> None:
    for node in served.nodes.values():
        node.target = Target(0)
    damage(served, release_key("b", 1))
    served.run(GRACE_S)
    assert published(served) == {"a": 2}
    assert release_key("b", 1) in served.machine.unreadable
    assert served.stored[release_key("b", 1)] == b"\xc1 garbage"
    assert served.machine.catalog.currents["b"] == CurrentVersion(1, 1)
