"""The fallback chain and the memory of poison, link by link, in virtual time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from gateway_world import SMALL, FakeRequest, World

from understudy.core.gateway import machine as core
from understudy.core.gateway.last_good import LastGood
from understudy.core.gateway.rotation import DIGESTED_BYTES_MAX, App, Source
from understudy.settings.gateway import GatewayTuning, LastGoodSettings, PoisonSettings
from understudy.wire.errors import Code
from understudy.wire.messages import Activated, Result
from understudy.wire.records import AppVersion, Role, fallback_mistake

STATIC = {"outputs": []}


def two_apps(*fallback: str, **spec: Any) -> World:
    """digits (big on n1, no standby) may be answered by other (small on n2)."""
    world = World(standby=False, fallback=fallback, **spec)
    table = world.gateway.table
    other = AppVersion("other", 3, (SMALL,))
    world.step(core.RoutesReceived(msgspec.structs.replace(table, revision=2, apps=(*table.apps, other))))
    world.report("n2", world.replica("o1", "small", app="other", version=3))
    world.report("n1", world.replica("r1", "big"))
    return world


def strand(world: World) -> None:
    """Nobody is left who could serve digits, or load it."""
    world.advance(1.1)
    world.lose_worker("r1")
    for node in ("n1", "n2", "n3"):
        world.step(core.AgentDisconnected(node))


def last_good_of(world: World, body: bytes = b"{}") -> None:
    world.request(body=body)
    world.reply("r1")


def test_another_app_answers_when_nobody_can_load_this_one():
    world = two_apps("app:other")
    strand(world)
    request = world.request()
    world.advance(0.01)
    world.reply("o1")
    assert request.outcome == ("small", "other-app")
    assert world.gateway.dispatcher.inflight == 0


def test_another_app_is_passed_over_for_who_may_not_ask_it(monkeypatch: pytest.MonkeyPatch):
    """A key for one app got the answers of another."""
    asked: list[str] = []

    def may_ask(_: FakeRequest, app: App) -> bool:
        asked.append(app.name)
        return False

    monkeypatch.setattr(FakeRequest, "may_ask", may_ask)
    world = two_apps("app:other", "static", static=STATIC)
    strand(world)
    request = world.request()
    world.advance(0.01)
    assert set(asked) == {"other"}
    assert request.outcome == "static"


def test_another_app_is_asked_at_half_time_and_the_first_answer_wins():
    for winner, outcome in (("r1", ("big", "")), ("o1", ("small", "other-app"))):
        world = two_apps("app:other")
        request = world.request()
        world.advance(0.45)
        assert not world.links["o1"].sent
        world.advance(0.1)
        world.reply(winner)
        assert request.outcome == outcome
        world.advance(1.0)
        assert world.gateway.dispatcher.inflight == 0
        assert not world.gateway.replicas["o1"].outstanding


def test_each_link_has_its_chance_before_the_deadline():
    world = two_apps("app:other", "last-good", "static", static=STATIC)
    last_good_of(world)
    request, unseen = world.request(), world.request(body=b"{ }")
    world.advance(0.85)
    assert world.links["o1"].infers(), "asked, and silent like its own replica"
    assert not request.done
    world.advance(0.1)
    assert request.outcome == ("big", "last-good")
    assert unseen.outcome == "static"


def test_a_failure_of_every_replica_goes_down_the_chain():
    world = two_apps("app:other", "static", static=STATIC)
    request = world.request()
    world.reply("r1", failure=Code.MODEL_FAILED)
    world.advance(0.01)
    world.reply("o1", failure=Code.MODEL_FAILED)
    world.advance(0.01)
    assert request.outcome == "static"


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.TOO_LARGE])
def test_what_is_the_callers_fault_stays_his(code: Code):
    world = two_apps("app:other", "static", static=STATIC)
    request = world.request()
    world.reply("r1", failure=code)
    assert request.outcome is code


def test_with_nothing_left_the_first_error_is_told():
    world = two_apps("app:other", "last-good")
    request = world.request()
    world.reply("r1", failure=Code.MODEL_FAILED)
    world.advance(0.01)
    world.reply("o1", failure=Code.OUTPUT_INVALID)
    world.advance(0.01)
    assert request.outcome is Code.MODEL_FAILED
    strand(world)
    request = world.request(body=b"{  }")
    world.gateway.replicas["o1"].link = None
    world.step(core.WorkerLost("o1"))
    world.advance(0.01)
    assert request.outcome is Code.UNAVAILABLE


def test_a_client_that_leaves_takes_the_handover_along():
    world = two_apps("app:other")
    strand(world)
    request = world.request()
    world.advance(0.01)
    world.gateway.dispatcher.cancel(request)
    world.advance(0.01)
    assert not world.gateway.replicas["o1"].outstanding
    assert world.gateway.dispatcher.inflight == 0


def test_a_chain_is_not_followed_through_another_app():
    world = World(standby=False, fallback=("app:other",))
    table = world.gateway.table
    other = AppVersion("other", 1, (SMALL,), static=STATIC)
    world.step(core.RoutesReceived(msgspec.structs.replace(table, revision=2, apps=(*table.apps, other))))
    strand(world)
    request = world.request()
    world.advance(0.01)
    assert request.outcome is Code.UNAVAILABLE


def keeper(**settings: Any) -> tuple[LastGood, World]:
    return LastGood(LastGoodSettings(**settings)), World(fallback=("last-good",))


def ask(world: World, body: bytes) -> FakeRequest:
    return FakeRequest(world.app, body, world.now, world.now + 1)


def test_last_good_answers_are_bounded_and_forgotten():
    kept, world = keeper(entries_max=3, bytes_max=100, age_s_max=10)
    for i in range(5):
        kept.keep(ask(world, b"%d" % i), Source("big", 1), Result(), b"x" * 20, now=float(i))
    assert len(kept) == 3
    assert kept.find(ask(world, b"1"), 5.0) is None
    assert kept.find(ask(world, b"4"), 5.0).source.degraded == "last-good"  # type: ignore[union-attr]
    assert kept.find(ask(world, b"4"), 14.1) is None
    kept.keep(ask(world, b"a"), Source("big", 1), Result(), b"x" * 90, now=5.0)
    assert (len(kept), kept.bytes_held) == (1, 90)
    kept.keep(ask(world, b"b"), Source("big", 1), Result(), b"x" * 101, now=5.0)
    assert (len(kept), kept.bytes_held) == (1, 90)


def test_what_takes_long_to_digest_isnt_kept():
    kept, world = keeper()
    for body in (bytes(DIGESTED_BYTES_MAX), bytes(DIGESTED_BYTES_MAX + 1)):
        kept.keep(ask(world, body), Source("big", 1), Result(), b"answer", now=0.0)
        assert (kept.find(ask(world, body), 1.0) is not None) == (len(body) == DIGESTED_BYTES_MAX)
    assert len(kept) == 1


def test_only_full_answers_are_kept_and_only_for_apps_that_opted_in():
    world = World(fallback=("smaller-variant", "last-good"))
    world.lose_worker("r1")
    world.request()
    world.reply("r2")
    assert len(world.gateway.dispatcher.last_good) == 0
    world = World()
    world.request()
    world.reply("r1")
    assert len(world.gateway.dispatcher.last_good) == 0


@pytest.mark.parametrize(
    ("links", "static", "wrong"),
    [
        (("smaller-variant", "previous-version", "app:x", "last-good", "static"), True, ""),
        (("last-good", "app:x"), False, ""),
        ((), False, ""),
        (("app:x", "app:x"), False, "twice"),
        (("app:x", "smaller-variant"), False, "earlier"),
        (("previous-version", "smaller-variant"), False, "earlier"),
        (("static",), False, "declares no static"),
        (("last-good",), True, "not named"),
    ],
)
def test_mistakes_in_a_chain_are_told(links: tuple[str, ...], static: bool, wrong: str):
    mistake = fallback_mistake(links, static)
    assert (wrong in mistake) if wrong else not mistake


# the previous version


def released_anew(**spec: Any) -> World:
    """Version 2 of digits on n1 and n3, after version 1."""
    world = World(**spec)
    table = world.gateway.table
    newer = msgspec.structs.replace(world.app_version, version=2)
    table = msgspec.structs.replace(table, revision=2, apps=(newer,), previous=(world.app_version,))
    world.step(core.RoutesReceived(table))
    world.report("n1", world.replica("v2a", "big", version=2))
    world.report("n3", world.replica("v2b", "big", Role.STANDBY, version=2))
    world.report("n2")
    return world


def fail_users(world: World) -> None:
    for number in range(110):
        request = world.request(body=b"%d" % number)
        for _ in range(3):
            for flight in list(request.flights):
                frame = next(f for f in world.links[flight.replica.id].infers() if f.stream == flight.stream)
                world.reply(flight.replica.id, frame, Code.MODEL_FAILED)
        world.advance(0.01)


def test_the_previous_version_is_called_back_when_the_current_one_fails_everywhere():
    world = released_anew()
    fail_users(world)
    recalls = [a for a in world.activations() if a.contingency.version == 1]
    assert [a.contingency.key for a in recalls] == ["digits/version:2"]
    world.report(recalls[0].node, *own(world, recalls[0].node), world.replica("v1", "small", version=1))
    request = world.request()
    world.reply("v1")
    assert request.outcome == ("small", "previous-version")


def own(world: World, node: str) -> list[Any]:
    return [
        world.replica(r.id, r.variant, r.role, version=r.version)
        for r in world.gateway.replicas.values()
        if r.node == node
    ]


def test_a_version_that_succeeds_now_and_then_is_not_called_off():
    world = released_anew()
    for i in range(110):
        world.request(timeout_s=10)
        for replica in world.gateway.replicas.values():
            for frame in world.links[replica.id].infers():
                if frame.stream in replica.outstanding:
                    world.reply(replica.id, frame, None if i % 10 == 0 else Code.MODEL_FAILED)
        world.advance(0.01)
    assert not [a for a in world.activations() if a.contingency.version == 1]


def test_a_refused_recall_goes_to_another_node():
    world = released_anew()
    fail_users(world)
    first = next(a for a in world.activations() if a.contingency.version == 1)
    world.step(core.ActivatedReceived(first.node, Activated(first.contingency.key, False, "no room")))
    world.advance(0.2)
    recalls = [a.node for a in world.activations() if a.contingency.version == 1]
    assert len(recalls) == 2
    assert len(set(recalls)) == 2


def test_an_app_without_that_link_is_not_answered_by_its_previous_version():
    world = released_anew(fallback=("smaller-variant",))
    world.report("n2", world.replica("v1", "small", version=1))
    fail_users(world)
    assert not world.links["v1"].sent


# poison


def convict(world: World, body: bytes = b"poison") -> FakeRequest:
    request = world.request(body=body)
    for number, node in ((1, "n1"), (2, "n2")):
        dead = request.flights[0].replica.id
        world.lose_worker(dead)
        world.report(node, world.replica(f"x{number}", "big"))
    world.advance(0.05)
    assert request.outcome is Code.POISON
    return request


def test_poison_is_known_when_it_comes_again_and_only_it():
    world = World()
    convict(world)
    sent = sum(len(link.sent) for link in world.links.values())
    assert world.request(body=b"poison").outcome is Code.POISON
    assert sum(len(link.sent) for link in world.links.values()) == sent
    assert not world.request(body=b"harmless").done


def test_poison_is_forgotten_in_time_and_the_memory_is_bounded():
    world = World(settings=GatewayTuning(poison=PoisonSettings(entries_max=2, memory_s=5)))
    for body in (b"1", b"2", b"3"):
        convict(world, body)
        world.report("n1", world.replica(f"again-{body.decode()}", "big"))
        world.report("n2", world.replica(f"standby-{body.decode()}", "small"))
    memory = world.gateway.dispatcher.poison.remembered
    assert len(memory) == 2
    world.advance(5.1)
    assert not memory
