"""Health is what users get: when an app is said to fail them, when no longer, and what is kept of that."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_world import World

from understudy.core.gateway import machine as core
from understudy.gateway.pages import failure_records
from understudy.settings.gateway import GatewayTuning, HealthSettings
from understudy.wire.errors import Code


def fail(world: World, times: int, code: Code = Code.MODEL_FAILED, **about: Any) -> None:
    for _ in range(times):
        request = world.request(body=b"bad", **about)
        for flight in list(request.flights):
            world.reply(flight.replica.id, failure=code)
        for flight in list(request.flights):
            world.reply(flight.replica.id, failure=code)
        world.advance(0.01)
        assert request.done


def answer(world: World, times: int) -> None:
    for _ in range(times):
        request = world.request()
        world.reply(request.flights[0].replica.id)
        world.advance(0.01)


def notes(world: World, *kinds: str) -> list[core.GatewayNote]:
    return [e for e in world.effects if isinstance(e, core.GatewayNote) and e.kind in kinds]


def heard(world: World) -> list[str]:
    return [note.kind for note in notes(world, "app.failing", "app.recovered")]


def test_users_that_are_failed_are_told_of_once_and_again_when_they_are_answered():
    world = World()
    answer(world, 20)
    fail(world, 40)
    world.advance(0.2)
    assert world.app.health.failing == ("40 of 60 requests failed in the last 60 s: model-failed: no")
    assert world.app.ready
    assert world.app.fit, "readiness is of replicas unless told otherwise"
    assert heard(world) == ["app.failing"]
    world.advance(70)
    answer(world, 5)
    world.advance(0.2)
    assert world.app.health.failing == ""
    assert heard(world) == ["app.failing", "app.recovered"]


def test_readiness_follows_users_where_that_is_the_policy():
    world = World(settings=GatewayTuning(health=HealthSettings(readiness="users")))
    assert world.app.fit
    fail(world, 10)
    world.advance(0.2)
    assert world.app.ready
    assert not world.app.fit


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.TOO_LARGE])
def test_what_callers_do_wrong_is_no_sickness(code: Code):
    world = World()
    fail(world, 40, code)
    world.advance(0.2)
    assert not world.app.health.failing
    assert not world.app.health.failures
    assert (world.app.traffic.stats.failed, world.app.traffic.stats.rejected) == (0, 40)


def test_few_failures_among_many_answers_are_no_sickness_and_are_remembered_all_the_same():
    world = World()
    answer(world, 200)
    fail(world, 4)
    world.advance(0.2)
    assert not world.app.health.failing
    assert len(world.app.health.failures) == 4


def test_a_deadline_of_the_callers_own_is_the_callers_and_the_apps_is_ours():
    world = World(deadline_ms=500)
    for timeout_s in (0.05, 0.05, 0.05, 0.05):
        world.request(timeout_s)
        world.advance(0.1)
    assert (world.app.traffic.stats.failed, world.app.traffic.stats.rejected) == (0, 4)
    for _ in range(4):
        world.request(0.5)
        world.advance(0.6)
    assert world.app.traffic.stats.failed == 4


def test_it_does_not_flap_around_the_bound():
    world = World(settings=GatewayTuning(health=HealthSettings(window_s=1000)))
    fail(world, 10)
    for share in (0.06, 0.049, 0.051, 0.04, 0.06):
        requests = world.app.traffic.requests
        failed = len(world.app.health.failures)
        more = failed / share - requests
        answer(world, max(round(more), 0))
        fail(world, 1)
    assert heard(world) == ["app.failing"]


def test_failures_are_kept_bounded_and_told_of_seldom():
    world = World(settings=GatewayTuning(health=HealthSettings(failures_max=5)))
    fail(world, 50, client="shop")
    fail(world, 50, Code.OUT_OF_MEMORY)
    assert len(world.app.health.failures) == 5
    told = notes(world, "request.failed")
    assert [note.message for note in told] == ["model-failed: no", "out-of-memory: no"], "once per code"
    assert told[0].data == {"client": "shop"}
    records = failure_records([world.app], world.now, 1_000_000.0)
    assert len(records) == 5
    assert records[0]["at_unix_ms"] >= records[-1]["at_unix_ms"] > 999_990_000
    assert all(record["variant"] and record["node"] for record in records)
