"""Replicas that answer worse than their equals, panic, and slow start; in virtual time."""

from __future__ import annotations

import pytest
from gateway_world import World

from understudy.core.gateway import machine as core
from understudy.core.gateway.pace import Pace
from understudy.settings.gateway import BreakerSettings, GatewayTuning, HedgeSettings
from understudy.wire.errors import Code
from understudy.wire.records import Role

NO_RAMP = GatewayTuning(breaker=BreakerSettings(slow_start_s=0), hedge=HedgeSettings(enabled=False))


def three_equals(settings: GatewayTuning = NO_RAMP) -> World:
    """big on n1, n2 and n3."""
    world = World(standby=False, settings=settings)
    world.report("n2", world.replica("r2", "big"))
    world.report("n3", world.replica("r3", "big"))
    return world


def serve(world: World, rounds: int, slow: str = "", slow_s: float = 0.1, **failing: int) -> None:
    """Three requests per round, one to each replica. `failing`: replica -> each n-th answer is a failure."""
    for i in range(rounds):
        for _ in world.app.best:
            world.request(timeout_s=10)
        world.advance(0.01)
        for id_ in world.links:
            if id_ != slow:
                failure = Code.MODEL_FAILED if id_ in failing and i % failing[id_] == 0 else None
                answer_all(world, id_, failure)
        if slow:
            world.advance(slow_s - 0.01)
            answer_all(world, slow, None)


def answer_all(world: World, id_: str, failure: Code | None) -> None:
    replica = world.gateway.replicas[id_]
    for frame in world.links[id_].infers():
        if frame.stream in replica.outstanding:
            world.reply(id_, frame, failure)


def ejections(world: World) -> list[core.GatewayNote]:
    return [e for e in world.effects if isinstance(e, core.GatewayNote) and e.kind == "replica.ejected"]


def test_a_replica_ten_times_slower_than_its_equals_is_ejected():
    world = three_equals()
    serve(world, 60, slow="r2")
    assert world.gateway.replicas["r2"].breaker.state == "open"
    assert [r.id for r in world.app.best] == ["r1", "r3"]
    [note] = ejections(world)
    assert note.replica == "r2"
    assert "equals" in note.message


def test_a_slow_replica_is_ejected_although_hedges_answer_in_its_place():
    settings = GatewayTuning(breaker=BreakerSettings(slow_start_s=0), hedge=HedgeSettings(budget_fraction=1))
    world = three_equals(settings)
    serve(world, 60)
    for _ in range(100):
        request = world.request(timeout_s=10)
        for _ in range(10):
            world.advance(0.01)
            world.pong("r2")
            for id_ in ("r1", "r3"):
                answer_all(world, id_, None)
        assert request.outcome == ("big", ""), "by a hedge at the latest"
        answer_all(world, "r2", None)
    [note] = ejections(world)
    assert note.replica == "r2"


def test_equally_slow_replicas_stay():
    world = three_equals()
    for _ in range(60):
        for _ in world.app.best:
            world.request(timeout_s=10)
        world.advance(0.1)
        for id_ in world.links:
            answer_all(world, id_, None)
    assert len(world.app.best) == 3


def test_a_slow_replica_returns_when_its_probe_is_fast_and_not_before():
    world = three_equals()
    serve(world, 60, slow="r2")
    r2 = world.gateway.replicas["r2"]
    until = r2.breaker.open_until
    world.advance(until - world.now + 0.2)
    serve(world, 3, slow="r2")
    assert r2.breaker.state == "open"
    assert r2.breaker.open_until > until + 5
    world.advance(r2.breaker.open_until - world.now + 0.2)
    serve(world, 3)
    assert r2.breaker.closed


def test_a_replica_that_fails_every_fourth_time_is_ejected_and_a_common_fault_ejects_nobody():
    world = three_equals()
    serve(world, 60, r2=4)
    assert world.gateway.replicas["r2"].breaker.state == "open"
    assert "failed" in ejections(world)[0].message
    world = three_equals()
    serve(world, 60, r1=4, r2=4, r3=4)
    assert len(world.app.best) == 3


def test_few_answers_prove_nothing():
    world = three_equals()
    serve(world, 15, slow="r2")
    assert len(world.app.best) == 3


def test_alone_it_is_compared_with_its_own_history():
    world = World(settings=NO_RAMP)
    for infer_us in (2_000, 20_000):
        for _ in range(300):
            world.request(timeout_s=10)
            world.advance(0.024 if infer_us > 10_000 else 0.006)
            replica = world.gateway.replicas["r1"]
            for frame in world.links["r1"].infers():
                if frame.stream in replica.outstanding:
                    world.reply("r1", frame, infer_us=infer_us)
            answer_all(world, "r2", None)
        if infer_us == 2_000:
            assert not ejections(world)
    assert "its own history" in ejections(world)[0].message
    assert world.app.best[0].id == "r2"


def test_the_last_replica_is_never_ejected_for_being_slow():
    world = World(standby=False, settings=NO_RAMP)
    for infer_us in (2_000, 20_000):
        for _ in range(300):
            world.request(timeout_s=10)
            world.advance(0.024)
            world.reply("r1", infer_us=infer_us)
    assert world.app.best[0].id == "r1"


def test_one_ejected_for_being_slow_answers_when_the_others_are_gone():
    """As when a plan moves its faster equal away."""
    world = three_equals()
    serve(world, 60, slow="r2")
    world.report("n1")
    world.report("n3")
    assert world.gateway.replicas["r2"].breaker.state == "open"
    request = world.request()
    answer_all(world, "r2", None)
    assert request.outcome == ("big", "")


def test_at_most_half_of_the_replicas_are_ejected_for_being_outliers():
    long = BreakerSettings(slow_start_s=0, open_s=1000, open_s_max=1000)
    world = three_equals(GatewayTuning(breaker=long, hedge=HedgeSettings(enabled=False)))
    serve(world, 60, slow="r2")
    serve(world, 60, slow="r3")
    assert [r.id for r in world.app.best] == ["r1", "r3"], "two of three would be too many"


@pytest.mark.parametrize(("before_s", "after_s"), [(0.001, 0.01), (0.1, 0.001)])
def test_a_median_follows_a_tenfold_change_within_some_ten_samples(before_s: float, after_s: float):
    pace = Pace()
    for i in range(100):
        pace.sampled(before_s if i % 10 else 5.0, 100, 1)
    assert pace.latency_s == pytest.approx(before_s, rel=0.7), "single stalls don't count"
    for _ in range(20):
        pace.sampled(after_s, 100, 1)
    assert pace.latency_s == pytest.approx(after_s, rel=0.4)


def open_breakers(world: World, *ids: str) -> None:
    for id_ in ids:
        world.gateway.replicas[id_].breaker.eject(world.now, 0.5)
    world.app.refresh(world.now)


def test_panic_uses_the_ejected_among_equals_and_never_before_a_healthy_variant():
    world = three_equals()
    open_breakers(world, "r1", "r2")
    assert [r.id for r in world.app.best] == ["r1", "r2", "r3"], "one healthy of three is panic"
    world.report("n1", world.replica("r1", "big"), world.replica("s1", "small", Role.STANDBY))
    open_breakers(world, "r3")
    assert [r.id for r in world.app.best] == ["s1"], "all full-size ones fail and a smaller one doesn't"
    open_breakers(world, "s1")
    assert [r.id for r in world.app.ranked] == ["r1", "r2", "r3", "s1"], "nobody is healthy"


def shares(world: World, requests: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _ in range(requests):
        request = world.request()
        id_ = request.flights[0].replica.id
        counts[id_] = counts.get(id_, 0) + 1
        world.reply(id_)
    return counts


def test_a_new_replica_gets_a_growing_share():
    world = World(standby=False)
    world.advance(11)
    world.report("n2", world.replica("r2", "big"))
    assert shares(world, 100)["r2"] == 5, "a tenth of its half"
    world.advance(5)
    assert 20 <= shares(world, 100)["r2"] <= 27
    world.advance(6)
    assert not world.app.ramping


def test_replicas_that_all_are_new_share_evenly_even_when_idle():
    world = three_equals(GatewayTuning())
    assert not world.app.ramping
    assert shares(world, 30) == {"r1": 10, "r2": 10, "r3": 10}


def test_a_readmitted_replica_shares_with_a_smaller_variant_at_first():
    world = World()
    world.advance(11)
    open_breakers(world, "r1")
    world.advance(5.1)
    assert shares(world, 1) == {"r1": 1}, "the probe"
    assert shares(world, 100) == {"r1": 10, "r2": 90}
    world.advance(11)
    assert shares(world, 10) == {"r1": 10}


def test_a_ramping_replica_helps_out_when_the_others_are_full():
    world = World(standby=False)
    world.advance(11)
    world.report("n2", world.replica("r2", "big"))
    requests = [world.request() for _ in range(200)]
    assert all(request.flights for request in requests)


def test_a_ramping_replica_helps_out_when_the_others_are_late():
    world = World(standby=False)
    for _ in range(1000):  # 10 s, so that it is known how fast answers come
        world.request()
        world.reply("r1")
        world.advance(0.01)
    world.report("n2", world.replica("r2", "big"))
    assert [r.id for r in world.app.ramping] == ["r2"]
    first = world.request()
    world.advance(0.02)
    second = world.request()
    assert first.flights[0].replica.id == "r1"
    assert second.flights[0].replica.id == "r2"
