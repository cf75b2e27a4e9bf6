"""What a gateway makes of a table that lacks what it serves: absence is never removal."""

from __future__ import annotations

import msgspec
import pytest
from gateway_world import DEFAULTS, World

from understudy.core.gateway import machine as core
from understudy.core.gateway.tables import completed
from understudy.wire.errors import Code
from understudy.wire.records import (
    AppVersion,
    ArtifactRef,
    NodeInfo,
    Placement,
    Removal,
    Role,
    RouteTable,
    Variant,
)


def app(name: str, version: int = 1) -> AppVersion:
    return AppVersion(name, version, (Variant("full", "onnx", ArtifactRef("d", 1, "f"), 0.9),))


HELD = RouteTable(
    5,
    nodes=(NodeInfo("n1", "s", "unix:/1", 100), NodeInfo("n2", "s", "unix:/2", 100)),
    apps=(app("a", 2), app("b")),
    placements=(Placement("a", 2, "full", "n1", Role.PRIMARY), Placement("b", 1, "full", "n2", Role.PRIMARY)),
    quarantined=(("b", 1, "small"),),
    previous=(app("a", 1),),
    removed=(),
)


def names(table: RouteTable) -> dict[str, int]:
    return {spec.app: spec.version for spec in table.apps}


def test_what_nobody_removed_stays_with_all_that_belongs_to_it() -> None:
    table = completed(RouteTable(9, apps=(app("c"),), removed=()), HELD)
    assert names(table) == {"c": 1, "a": 2, "b": 1}
    assert set(table.placements) == set(HELD.placements)
    assert table.nodes == HELD.nodes
    assert table.quarantined == HELD.quarantined
    assert table.previous == HELD.previous
    assert table.revision == 9


def test_a_recorded_removal_counts_for_what_was_there_then() -> None:
    removed = (Removal("a", 1), Removal("b", 1))
    assert names(completed(RouteTable(9, removed=removed), HELD)) == {"a": 2}


def test_a_complete_table_is_taken_as_it_is() -> None:
    table = RouteTable(9, apps=(app("a", 3), app("b", 2)), removed=())
    assert completed(table, HELD) is table


def test_an_older_controller_is_taken_at_its_word() -> None:
    assert names(completed(RouteTable(9, apps=(app("c"),)), HELD)) == {"c": 1}


def test_a_gateway_serves_on_what_a_table_lacks_and_keeps_it_on_disk() -> None:
    world = World()
    held = world.gateway.table
    (served,) = held.apps
    effects = world.step(core.RoutesReceived(RouteTable(held.revision + 1, nodes=held.nodes, removed=())))
    assert served.app in world.gateway.apps
    (saved,) = [effect.table for effect in effects if isinstance(effect, core.SaveTable)]
    assert saved == msgspec.structs.replace(held, revision=held.revision + 1, removed=())
    gone = RouteTable(held.revision + 2, nodes=held.nodes, removed=(Removal(served.app, served.version),))
    world.step(core.RoutesReceived(gone))
    assert not world.gateway.apps


def remove(world: World) -> None:
    removed = (Removal("digits", 1),)
    world.step(core.RoutesReceived(RouteTable(2, nodes=world.gateway.table.nodes, removed=removed)))


@pytest.mark.parametrize("standby", [False, True])
def test_a_request_in_flight_to_an_app_that_is_removed_ends_at_once(standby: bool) -> None:
    """It isn't taken for what ended the workers, nor sent to another one."""
    world = World(standby=standby)
    request = world.request()
    remove(world)
    assert request.outcome is Code.UNAVAILABLE
    assert not world.gateway.dispatcher.inflight


def test_an_accused_request_ends_with_its_app() -> None:
    world = World(standby=True)
    request = world.request()
    world.lose_worker("r1")
    world.lose_worker("r2")
    assert not hasattr(request, "outcome"), "it is accused of both"
    remove(world)
    world.advance(2 * DEFAULTS.retry.poison_verdict_ms / 1000)
    assert request.outcome is Code.UNAVAILABLE


def test_what_an_agent_told_of_an_app_before_the_controller_did_is_not_forgotten() -> None:
    world = World(standby=False)
    whole = world.gateway.table
    remove(world)
    world.report("n1", world.replica("r9", "big"))
    world.step(core.RoutesReceived(msgspec.structs.replace(whole, revision=3)))
    assert set(world.gateway.apps["digits"].replicas) == {"r9"}
