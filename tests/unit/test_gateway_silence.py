"""Slow is not silent: what gateways do about replicas that owe answers, and whom they blame for their end."""

from __future__ import annotations

import msgspec
from gateway_world import BIG, World

from understudy.core.gateway import machine as core
from understudy.core.gateway.activation import load_ms_max
from understudy.wire.errors import Code
from understudy.wire.frames import Frame
from understudy.wire.messages import Kind, NodeState, ReplicaState
from understudy.wire.records import Profile, Role

PONG = Frame(Kind.PONG, 0, 0, b"\x90", b"")


def pings(world: World, id_: str) -> int:
    return sum(frame.kind == Kind.PING for frame in world.links[id_].sent)


def advance(world: World, seconds: float, *alive: str) -> None:
    """Let time pass; the loops of these workers answer pings, whatever their models do."""
    answered = {id_: pings(world, id_) for id_ in alive}
    for _ in range(round(seconds / 0.002)):
        world.advance(0.002)
        for id_ in alive:
            if pings(world, id_) > answered[id_]:
                answered[id_] = pings(world, id_)
                world.links[id_].last_heard_s = world.now
                world.gateway.dispatcher.frame_received(world.gateway.replicas[id_], PONG, world.now)


def test_a_replica_that_says_that_it_lives_is_no_suspect_while_it_works():
    world = World(deadline_ms=20_000)
    request = world.request(timeout_s=20.0)
    advance(world, 3.0, "r1", "r2")
    assert not world.gateway.replicas["r1"].suspect
    assert not world.activations()
    world.reply("r1", world.links["r1"].infers()[0])
    assert request.outcome == ("big", "")


def test_questions_become_rarer_the_longer_the_work_takes():
    world = World(deadline_ms=300_000)
    world.request(timeout_s=300.0)
    advance(world, 4.0, "r1", "r2")
    assert not world.gateway.replicas["r1"].suspect
    assert pings(world, "r1") < 45, "ten times for each tenfold of the time, more or less"


def test_a_replica_that_says_nothing_is_suspected_as_soon_as_ever():
    world = World(deadline_ms=20_000)
    request = world.request(timeout_s=20.0)
    advance(world, 0.1, "r2")
    assert world.gateway.replicas["r1"].suspect
    world.reply("r2")
    assert request.outcome == ("small", "failover")


def test_one_that_freezes_in_the_middle_of_long_work_is_found_too():
    world = World(deadline_ms=60_000)
    world.request(timeout_s=60.0)
    advance(world, 2.0, "r1", "r2")
    assert not world.gateway.replicas["r1"].suspect
    advance(world, 0.5, "r2")
    assert world.gateway.replicas["r1"].suspect


def test_when_a_quarter_of_the_time_is_gone_another_replica_gets_the_request_too():
    world = World(deadline_ms=1000)
    request = world.request()
    advance(world, 0.4, "r1", "r2")
    assert world.gateway.replicas["r1"].suspect, "its loop lives, but its model may hang"
    world.reply("r2")
    assert request.outcome == ("small", "failover")


def test_a_client_with_more_time_than_its_app_gets_the_patience_for_it():
    world = World(deadline_ms=1000)
    world.request(timeout_s=60.0)
    advance(world, 2.0, "r1", "r2")
    assert not world.gateway.replicas["r1"].suspect


def test_answers_that_come_too_late_show_that_the_model_works():
    world = World(deadline_ms=400, standby=False)
    for _ in range(20):
        world.request(timeout_s=0.4)
    for _ in range(8):  # each takes 0.2 s, one at a time: most come after their deadline
        advance(world, 0.2, "r1")
        world.reply("r1", world.links["r1"].infers()[_])
        assert not world.gateway.replicas["r1"].suspect


def report_killed(world: World, node: str, killed: str, *replicas: ReplicaState) -> None:
    world.serials[node] += 1
    state = NodeState(node, 1, world.serials[node], 1, replicas, killed=(killed,))
    world.step(core.NodeStateReceived(state))


def test_workers_that_their_agents_killed_do_not_make_a_request_poison():
    for news_first in (True, False):
        world = World()
        world.report("n3", world.replica("r3", "small", Role.STANDBY))
        request = world.request()
        for node, id_ in (("n1", "r1"), ("n2", "r2")):
            if news_first:
                report_killed(world, node, id_, world.replica(id_, "big", state="backoff"))
                world.lose_worker(id_)
            else:
                world.lose_worker(id_)
                world.advance(0.01)
                report_killed(world, node, id_)
        world.advance(0.05)
        world.reply("r3")
        assert request.outcome == ("small", "failover")


def test_requests_of_a_worker_that_its_agent_killed_move_together():
    world = World()
    requests = [world.request() for _ in range(4)]
    report_killed(world, "n1", "r1", world.replica("r1", "big", state="backoff"))
    world.lose_worker("r1")
    assert len(world.links["r2"].infers()) == len(requests), "none of them is tried alone"


def test_long_work_that_is_tried_alone_does_not_keep_others_waiting():
    world = World(deadline_ms=60_000)
    requests = [world.request(timeout_s=60.0) for _ in range(3)]
    world.lose_worker("r1")
    assert len(world.links["r2"].infers()) == 1
    advance(world, 0.6, "r2")
    assert len(world.links["r2"].infers()) == len(requests)


def test_of_several_suspects_on_a_dying_worker_none_is_condemned():
    world = World(deadline_ms=60_000)
    world.report("n3", world.replica("r3", "small", Role.STANDBY))
    requests = [world.request(timeout_s=60.0) for _ in range(2)]
    world.lose_worker("r1")
    advance(world, 0.4, "r2", "r3")
    world.lose_worker("r2")
    advance(world, 0.1, "r3")
    (alone,) = world.links["r3"].infers()
    world.reply("r3", alone)
    world.reply("r3")
    assert [request.outcome for request in requests] == [("small", "failover")] * 2


def test_whoever_is_beside_poison_is_not_taken_for_it():
    """One bomb comes after the other, and each takes the worker down that the same request is on."""
    world = World(standby=False, deadline_ms=60_000)
    innocent = world.request(timeout_s=60.0)
    for number in (1, 2, 3):
        bomb = world.request(timeout_s=60.0)
        advance(world, 0.3, f"r{number}")  # longer than it is tried alone
        assert {f.request for f in world.gateway.replicas[f"r{number}"].outstanding.values()} > {innocent}
        world.lose_worker(f"r{number}")
        world.gateway.dispatcher.cancel(bomb)
        world.report(f"n{number % 3 + 1}", world.replica(f"r{number + 1}", "big"))
    assert (len(innocent.beside), innocent.kills) == (3, ())
    advance(world, 0.1, "r4")
    world.reply("r4")
    assert innocent.outcome == ("big", "")
    assert not world.gateway.dispatcher.poison.remembered


def test_what_always_dies_in_company_is_given_up_and_not_remembered():
    world = World(standby=False, deadline_ms=60_000)
    request = world.request(timeout_s=60.0)
    for number in (1, 2, 3, 4):
        other = world.request(timeout_s=60.0)
        advance(world, 0.3, f"r{number}")
        world.lose_worker(f"r{number}")
        world.gateway.dispatcher.cancel(other)
        world.report(f"n{number % 3 + 1}", world.replica(f"r{number + 1}", "big"))
    assert request.outcome is Code.POISON
    assert not world.gateway.dispatcher.poison.remembered


def test_nothing_else_is_sent_to_a_replica_that_tries_a_suspect_for_as_long_as_that_may_take():
    world = World(standby=False, deadline_ms=60_000)
    suspects = [world.request(timeout_s=60.0) for _ in range(2)]
    world.lose_worker("r1")
    world.report("n2", world.replica("r2", "big"))
    others = [world.request(timeout_s=60.0) for _ in range(3)]
    assert [f.request for f in world.gateway.replicas["r2"].outstanding.values()] == suspects[:1]
    world.reply("r2")
    assert [f.request for f in world.gateway.replicas["r2"].outstanding.values()] == suspects[1:]
    advance(world, 0.3, "r2")
    assert [f.request for f in world.gateway.replicas["r2"].outstanding.values()] == [suspects[1], *others]


def test_a_busy_replica_is_emptied_for_a_suspect_unless_too_many_wait():
    world = World(standby=False, deadline_ms=60_000)
    world.report("n2", world.replica("r2", "big"))
    first, second = (world.request(timeout_s=60.0) for _ in range(2))
    world.lose_worker(first.flights[0].replica.id)
    (left,) = {flight.replica for flight in second.flights}
    assert not first.flights, "it waits for the other one to be empty"
    waiting = [world.request(timeout_s=60.0) for _ in range(2)]
    world.reply(left.id)
    assert [flight.request for flight in left.outstanding.values()] == [first]
    world.reply(left.id)
    assert [flight.request for flight in left.outstanding.values()] == waiting


def test_a_replica_that_proved_nothing_for_long_gets_half_of_the_patience():
    for unproven_s, hedges in ((1.0, 0), (100.0, 1)):
        world = World(deadline_ms=20_000)
        world.serials["n1"] += 1
        big = world.replica("r1", "big")
        state = NodeState("n1", 1, world.serials["n1"], 1, (big,), proven_ago_s={"r1": unproven_s})
        world.step(core.NodeStateReceived(state))
        world.report("n3", world.replica("r3", "big"))
        world.gateway.replicas["r3"].signs.proven_at = world.now + 1.0
        world.app.patience.hedge_delay_s = 1.0
        world.app.best = [world.gateway.replicas["r1"]]
        world.request(timeout_s=20.0)
        advance(world, 0.7, "r1", "r2", "r3")
        assert len(world.links["r3"].infers()) == hedges


def test_a_node_has_the_time_to_load_that_the_manifest_gives_it():
    profile = Profile(40.0, 60.0, 20_000.0, 1.0)
    world = World()
    for variant, expected_ms in (
        (BIG, 0.0),
        (msgspec.structs.replace(BIG, profile=profile), 60_000.0),
        (msgspec.structs.replace(BIG, profile=profile, load_timeout_s=90.0), 90_000.0),
    ):
        spec = msgspec.structs.replace(world.app_version, variants=(variant,))
        contingency = msgspec.structs.replace(world.contingency("node:n1", "n2"), first="big")
        assert load_ms_max(spec, contingency) == expected_ms
