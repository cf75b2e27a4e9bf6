"""Whose fault a failed request is: bad data harms nobody else, and what fails everybody goes at once."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest
from gateway_world import FakeRequest, World
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core.gateway import machine as core
from understudy.core.gateway.conduct import DIGESTED_BYTES_MAX, Clients, Conducts, digest_of
from understudy.settings.gateway import BreakerSettings, GatewayTuning, HedgeSettings
from understudy.wire.errors import Code
from understudy.wire.records import Role

TUNING = GatewayTuning(breaker=BreakerSettings(slow_start_s=0), hedge=HedgeSettings(enabled=False))
Fails = Callable[[FakeRequest, str], Code | None]  # what a replica makes of a request


def settle(world: World, request: FakeRequest, fails: Fails) -> FakeRequest:
    """Let replicas answer until the request ends."""
    for _ in range(12):
        if request.done:
            return request
        for flight in list(request.flights):
            frame = next(f for f in world.links[flight.replica.id].infers() if f.stream == flight.stream)
            world.reply(flight.replica.id, frame, fails(request, flight.replica.id))
        world.advance(0.002)
    return request


def ask(world: World, fails: Fails, client: str, body: bytes) -> FakeRequest:
    return settle(world, world.request(body=body, client=client), fails)


def bad_rows(request: FakeRequest, _id: str) -> Code | None:
    return Code.MODEL_FAILED if bytes(request.body).startswith(b"bad") else None


def everything(_request: FakeRequest, _id: str) -> Code | None:
    return Code.MODEL_FAILED


def two_versions(replicas: int = 1, old: bool = False) -> World:
    """Version 2 on n1 (and n3), version 1 known as its predecessor and, if `old`, still on n2."""
    world = World(settings=TUNING)
    newer = msgspec.structs.replace(world.app_version, version=2)
    table = msgspec.structs.replace(
        world.gateway.table, revision=2, apps=(newer,), previous=(world.app_version,)
    )
    world.step(core.RoutesReceived(table))
    world.report("n2", *([world.replica("v1", "big", version=1)] if old else []))
    world.report("n1", world.replica("v2a", "big", version=2))
    world.report("n3", *([world.replica("v2b", "big", Role.STANDBY, version=2)] if replicas > 1 else []))
    return world


def open_breakers(world: World) -> list[str]:
    return [r.id for r in world.gateway.replicas.values() if not r.breaker.closed]


def recalls(world: World) -> list[Any]:
    return [a for a in world.activations() if a.contingency.version == 1]


# The model says that the input is bad


def test_bad_input_ends_the_request_at_once_and_is_held_against_nobody():
    world = World(settings=TUNING, fallback=("smaller-variant", "static"), static={"outputs": []})
    for number in range(20):
        request = world.request(body=b"%d" % number)
        world.reply("r1", failure=Code.INVALID_ARGUMENT)
        assert request.outcome is Code.INVALID_ARGUMENT
    assert not open_breakers(world)
    assert not world.links["r2"].infers(), "nobody else is asked"
    assert (world.app.traffic.stats.failed, world.app.traffic.stats.rejected) == (0, 20)


def test_bad_input_ends_it_although_a_copy_is_still_under_way():
    world = World()
    request = world.request()
    world.advance(0.1)
    assert {f.replica.id for f in request.flights} == {"r1", "r2"}, "hedged"
    world.reply("r1", failure=Code.INVALID_ARGUMENT)
    assert request.outcome is Code.INVALID_ARGUMENT


# One client's bad data changes nobody else's answers


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5), st.sampled_from([0.01, 0.5, 0.99]), st.booleans(), st.integers(1, 2), st.booleans(),
    st.integers(0, 2**32),
)  # fmt: skip
def test_one_bad_client_among_others_opens_no_breaker_and_recalls_nothing(
    good: int, bad_share: float, same_row: bool, replicas: int, old: bool, seed: int
):
    """At 1, 50 and 99 % of the traffic, with one bad row or ever other ones, with and without equals."""
    random, world = Random(seed), two_versions(replicas, old)
    for client in range(good):
        ask(world, bad_rows, f"good{client}", b"{}")
    for number in range(150):
        if random.random() < bad_share:
            ask(world, bad_rows, "bad", b"bad" if same_row else b"bad %d" % number)
        else:
            request = ask(world, bad_rows, f"good{random.randrange(good)}", b"good %d" % number)
            assert request.outcome == ("big", ""), "as if nobody else were there"
    assert not open_breakers(world)
    assert not recalls(world)


def test_the_same_bad_row_over_and_over_is_one_request_also_without_anybody_else():
    world = two_versions()
    ask(world, bad_rows, "one", b"{}")
    for _ in range(40):
        request = ask(world, bad_rows, "one", b"bad")
        assert request.outcome is Code.MODEL_FAILED
        world.advance(0.1)
    assert not open_breakers(world)
    assert ask(world, bad_rows, "one", b"{}").outcome == ("big", "")


def test_while_a_version_answers_others_what_it_fails_is_not_answered_by_the_previous_one():
    world = two_versions(old=True)
    ask(world, bad_rows, "good", b"{}")
    assert ask(world, bad_rows, "bad", b"bad").outcome is Code.MODEL_FAILED
    assert not world.links["v1"].infers()


def test_a_lone_client_with_a_share_of_bad_rows_is_not_taken_for_a_broken_replica():
    """As behind a proxy, where everybody has one address."""
    for share in (0.01, 0.1, 0.5):
        random, world = Random(3), two_versions()
        for number in range(20):
            ask(world, bad_rows, "proxy", b"good %d" % number)
        for number in range(400):
            ask(world, bad_rows, "proxy", b"%s %d" % (b"bad" if random.random() < share else b"good", number))
        assert not open_breakers(world), share


def test_what_equals_fail_alike_is_the_requests():
    world = two_versions(replicas=2)
    ask(world, bad_rows, "good", b"{}")
    for number in range(12):
        assert ask(world, bad_rows, "bad", b"bad %d" % number).outcome is Code.MODEL_FAILED
        ask(world, bad_rows, "good", b"{}")
    assert not open_breakers(world)
    assert sum(r.breaker.failures for r in world.gateway.replicas.values()) == 0


# Who fails everybody goes as fast as ever


def test_a_replica_whose_equal_answers_what_it_fails_goes_after_three():
    world = two_versions(replicas=2)

    def fails(_request: FakeRequest, id_: str) -> Code | None:
        return Code.MODEL_FAILED if id_ == "v2a" else None

    asked = 0
    while not open_breakers(world):
        asked += 1
        assert ask(world, fails, "one", b"{}").outcome == ("big", ""), "and nobody notices"
    assert open_breakers(world) == ["v2a"]
    assert asked <= 6, "half of them went to the other one"


@pytest.mark.parametrize("clients", [1, 2, 5])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_new_version_that_fails_everybody_goes_after_a_handful_and_the_previous_one_is_recalled(
    clients: int, replicas: int
):
    world = two_versions(replicas)
    needed = 0
    while not open_breakers(world):
        needed += 1
        ask(world, everything, f"client{needed % clients}", b"%d" % needed)
        assert needed <= 5
    assert needed >= 3
    assert len(open_breakers(world)) == replicas
    for number in range(110):
        world.request(body=b"later %d" % number, client="one")
        world.advance(0.01)
    assert recalls(world)


@pytest.mark.parametrize("answered", [1, 10, 100, 1000])
def test_a_version_that_breaks_after_it_has_answered_goes_too(answered: int):
    world = two_versions()
    for number in range(answered):
        ask(world, bad_rows, "one", b"%d" % number)
    began, needed = world.now, 0
    while not open_breakers(world):
        needed += 1
        ask(world, everything, "one", b"later %d" % needed)
        world.advance(0.1)
        assert world.now - began < 12
    if answered >= 100:
        assert needed <= 6


def test_a_request_that_it_answered_before_is_no_bad_row():
    world = two_versions()
    for _ in range(100):
        ask(world, bad_rows, "monitor", b"{}")
    for _ in range(6):
        ask(world, everything, "monitor", b"{}")
    assert open_breakers(world)


def test_a_version_that_fails_most_of_several_clients_requests_goes_by_comparison_with_its_predecessor():
    world = World(settings=TUNING)
    for number in range(300):
        ask(world, bad_rows, f"client{number % 3}", b"{}")
    newer = msgspec.structs.replace(world.app_version, version=2)
    table = msgspec.structs.replace(
        world.gateway.table, revision=2, apps=(newer,), previous=(world.app_version,)
    )
    world.step(core.RoutesReceived(table))
    world.report("n2")
    world.report("n1", world.replica("v2a", "big", version=2))
    ask(world, bad_rows, "client0", b"{}")
    needed = 0
    while not open_breakers(world):
        needed += 1
        row = b"good" if needed % 3 == 0 else b"bad"  # never three in a row
        ask(world, bad_rows, f"client{needed % 4}", b"%s %d" % (row, needed))
    assert needed <= 40


# Probes


def test_a_probe_that_bad_data_fails_is_no_relapse():
    world = two_versions()
    for number in range(3):
        ask(world, everything, "one", b"%d" % number)
    replica = world.gateway.replicas["v2a"]
    for _ in range(3):
        world.advance(replica.breaker.open_until - world.now + 0.2)
        settle(world, world.request(body=b"bad", timeout_s=0.02), bad_rows)
        assert replica.breaker.open_until - world.now <= TUNING.breaker.open_s
    world.advance(replica.breaker.open_until - world.now + 0.2)
    assert ask(world, bad_rows, "two", b"{}").outcome == ("big", "")
    assert replica.breaker.closed


# Parts


def test_two_clients_are_told_apart_and_old_ones_forgotten():
    clients = Clients()
    assert not clients.other_than("a", 0.0)
    clients.heard("a", 1.0)
    clients.heard("a", 2.0)
    assert not clients.other_than("a", 0.0)
    assert clients.other_than("b", 0.0)
    clients.heard("b", 3.0)
    clients.heard("a", 9.0)
    assert clients.other_than("a", 3.0)
    assert not clients.other_than("a", 3.5)
    assert clients.other_than("b", 3.5)


def test_what_is_remembered_is_bounded():
    conducts = Conducts(BreakerSettings())
    for version in range(50):
        conducts.of(version, "big")
    assert len(conducts._of) == Conducts.VERSIONS_MAX
    conduct = conducts.of(50, "big")
    conduct.answered = 10**6
    for number in range(2000):
        conducts.judge(50, "big", b"%d" % number, f"client{number}", 1.0)
        conduct.answered += number % 3 == 0
    assert len(conduct._by_client) <= 256
    assert len(conduct._run) <= 256


def test_large_bodies_are_told_apart_without_reading_them_whole():
    body = bytearray(3 * DIGESTED_BYTES_MAX)
    assert digest_of(body) == digest_of(bytes(body)) == digest_of(memoryview(body))
    for place in (0, len(body) // 2, -1):
        other = bytearray(body)
        other[place] = 1
        assert digest_of(other) != digest_of(body)
    assert digest_of(bytes(len(body) + 1)) != digest_of(body)
