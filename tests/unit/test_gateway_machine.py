"""The gateway's machine and dispatcher in virtual time: links are lists, seconds are numbers."""

from __future__ import annotations

import msgspec
import pytest
from gateway_world import World

from understudy.core.gateway import machine as core
from understudy.settings.gateway import GatewayTuning, HedgeSettings
from understudy.wire.errors import Code, ProtocolError
from understudy.wire.frames import Frame
from understudy.wire.messages import Activated, Kind, NodeState
from understudy.wire.records import Role, RouteTable


def test_the_full_size_variant_answers_while_it_can():
    world = World()
    request = world.request()
    world.reply("r1")
    assert request.outcome == ("big", "")
    assert not world.links["r2"].sent


def test_a_request_in_flight_moves_when_its_worker_dies():
    world = World()
    request = world.request()
    world.lose_worker("r1")
    world.reply("r2")
    assert request.outcome == ("small", "failover")
    assert not world.activations(), "a warm standby needs no activation"


def test_without_standby_the_contingency_is_activated_at_once_and_the_request_waits():
    world = World(standby=False)
    request = world.request()
    world.lose_worker("r1")
    assert [(a.node, a.contingency.failure) for a in world.activations()] == [("n2", "node:n1")]
    world.step(core.ActivatedReceived("n2", Activated(world.activations()[0].contingency.key, True)))
    world.advance(0.05)
    world.report("n2", world.replica("r3", "small", Role.CONTINGENCY))
    world.reply("r3")
    assert request.outcome == ("small", "failover")
    assert len(world.activations()) == 1


def test_a_refused_or_unanswered_activation_goes_to_the_next_node():
    world = World(standby=False)
    world.lose_worker("r1")
    world.step(core.ActivatedReceived("n2", Activated("digits/node:n1", False, "no room")))
    assert [a.node for a in world.activations()] == ["n2", "n3"]
    world.advance(0.36)
    assert [a.node for a in world.activations()][2:] == ["n1"], "the last resort: whoever lives"


def test_two_of_three_nodes_lost_ends_with_the_last_resort():
    world = World(standby=False)
    world.lose_worker("r1")
    for node in ("n1", "n3"):
        world.step(core.AgentDisconnected(node))
    assert world.activations()[-1].node == "n2"
    world.step(
        core.ActivatedReceived("n2", Activated(world.activations()[-1].contingency.key, False, "no room"))
    )
    assert world.gateway.apps["digits"].way_back.activation is None or world.activations()[-1].node == "n2"


def test_a_silent_replica_is_hedged_then_suspected_and_forgiven_when_it_answers():
    world = World()
    request = world.request()
    frame = world.links["r1"].infers()[0]
    world.advance(0.05)
    assert len(world.links["r2"].infers()) == 1, "hedged once"
    world.reply("r2")
    assert request.outcome == ("small", "failover")
    world.advance(0.2)
    assert not world.gateway.replicas["r1"].suspect, "its one copy was called back, so it owes nothing"
    late = [world.request() for _ in range(3)]
    world.advance(0.1)
    assert world.gateway.replicas["r1"].suspect
    for infer in world.links["r2"].infers()[1:]:
        world.reply("r2", infer)
    assert [r.outcome for r in late] == [("small", "failover")] * 3
    assert world.request().flights[0].replica.id == "r2", "routed around"
    world.reply("r1", frame)
    world.reply("r1", world.links["r1"].infers()[1])
    assert not world.gateway.replicas["r1"].suspect


def hedged_away(world: World, alive: bool) -> None:
    """A request that r2 answers after a hedge. An r1 that is `alive` answers pings."""
    world.advance(0.002)
    world.request()
    world.advance(0.05)
    world.reply("r2")
    world.advance(0.002)
    if alive:
        world.pong("r1")


def test_hedges_do_not_hide_a_frozen_replica():
    world = World()
    for _ in range(3):
        hedged_away(world, alive=False)
    assert world.gateway.replicas["r1"].suspect, "though nothing was left with it for longer than a hedge"


def test_silence_is_noticed_while_there_is_time_for_another_try():
    world = World(deadline_ms=240)
    for _ in range(300):
        world.request()
        world.advance(0.02)
        world.reply("r1")
    assert 0.04 <= world.app.patience.silence_s <= 0.07, (
        "a quarter of the deadline, not eight times the usual"
    )


def test_a_replica_that_is_outrun_but_shows_that_it_lives_is_no_suspect():
    world = World()
    for _ in range(3):
        hedged_away(world, alive=True)
        assert not world.gateway.replicas["r1"].suspect
    assert len([f for f in world.links["r1"].sent if f.kind == Kind.PING]) == 3


def test_the_client_never_waits_beyond_its_deadline():
    world = World(standby=False, settings=GatewayTuning(hedge=HedgeSettings(enabled=False)))
    request = world.request(timeout_s=0.1)
    world.advance(0.09)
    assert not request.done
    world.advance(0.02)
    assert request.outcome is Code.TIMEOUT


def test_busy_is_not_a_failure_and_waits_for_room():
    world = World()
    request = world.request()
    world.reply("r1", failure=Code.BUSY)
    assert request.flights[0].replica.id == "r2"
    assert world.gateway.replicas["r1"].breaker.state == "closed"
    world.reply("r2", failure=Code.BUSY)
    assert not request.done
    world.advance(0.01)
    assert len(world.links["r1"].infers()) == 2


def test_a_replica_whose_link_is_full_gets_no_more_and_is_not_lost():
    world = World(standby=False)
    world.report("n2", world.replica("r3", "big"))
    world.links["r1"].full = True
    for _ in range(4):
        world.request()
    assert (len(world.links["r1"].infers()), len(world.links["r3"].infers())) == (0, 4)
    world.links["r3"].full = True
    waiting = world.request()
    assert len(world.links["r3"].infers()) == 4
    world.links["r3"].full = False
    world.reply("r3")
    assert len(world.links["r3"].infers()) == 5
    world.reply("r3")
    assert waiting.outcome == ("big", "")


def test_a_failing_model_is_tried_elsewhere_and_leaves_the_rotation():
    world = World()
    for _ in range(3):
        request = world.request()
        world.reply("r1", failure=Code.MODEL_FAILED)
        world.reply("r2")
        assert request.outcome == ("small", "failover")
    assert world.gateway.replicas["r1"].breaker.state == "open"
    assert world.request().flights[0].replica.id == "r2"


def test_an_unreadable_answer_leaves_the_request_to_the_next_replica():
    world = World()
    request = world.request()
    stream = world.links["r1"].infers()[0].stream
    for kind, header in ((Kind.RESULT, b"\xc1"), (Kind.PONG, b"\x90"), (99, b"")):
        with pytest.raises(ProtocolError):
            world.gateway.dispatcher.frame_received(
                world.gateway.replicas["r1"], Frame(kind, stream, 0, header, b""), world.now
            )
    world.lose_worker("r1")
    world.reply("r2")
    assert request.outcome == ("small", "failover")


def test_when_most_replicas_fail_none_is_ejected():
    world = World()
    world.report("n3", world.replica("r3", "small", Role.STANDBY))
    for id_ in ("r1", "r2", "r3"):
        for _ in range(3):
            world.gateway.replicas[id_].breaker.failed(world.now, 0.5, 1)
    world.app.refresh(world.now)
    assert [r.id for r in world.app.ranked] == ["r1", "r2", "r3"]


def test_a_bad_request_is_not_retried_and_blames_nobody():
    world = World()
    for _ in range(10):
        request = world.request()
        world.reply("r1", failure=Code.INVALID_ARGUMENT)
        assert request.outcome is Code.INVALID_ARGUMENT
    assert world.app.ready
    assert not world.links["r2"].sent


def test_a_request_that_is_not_idempotent_is_sent_once():
    world = World(idempotent=False)
    request = world.request()
    world.lose_worker("r1")
    assert request.outcome is Code.LINK_LOST
    assert not world.links["r2"].infers()


def test_a_poison_request_is_found_and_the_others_are_answered():
    world = World()
    world.report("n3", world.replica("r3", "small", Role.STANDBY))
    requests = [world.request() for _ in range(5)]
    poison = requests[2]
    killed = 0
    for _ in range(100):
        dead = next((f.replica.id for f in poison.flights if world.gateway.replicas[f.replica.id].link), None)
        if dead is not None:
            killed += 1
            world.lose_worker(dead)
            world.report(dead.replace("r", "n"), world.replica(f"x{killed}", "small"))
        for id_, link in list(world.links.items()):
            replica = world.gateway.replicas.get(id_)
            for frame in link.infers():
                flight = replica.outstanding.get(frame.stream) if replica else None
                if flight is not None and flight.request is not poison:
                    world.reply(id_, frame)
        world.advance(0.01)
    assert poison.outcome is Code.POISON
    assert killed == 3, "the first time it had company"
    assert all(r.outcome[0] in ("big", "small") for r in requests if r is not poison)
    assert any(isinstance(e, core.GatewayNote) and e.kind == "request.poisoned" for e in world.effects)


def test_two_nodes_dying_in_a_row_do_not_make_a_request_poison():
    world = World()
    world.report("n3", world.replica("r3", "small", Role.STANDBY))
    request = world.request()
    for node, id_ in (("n1", "r1"), ("n2", "r2")):
        world.lose_worker(id_)
        world.step(core.AgentDisconnected(node))
    world.advance(0.05)
    world.reply("r3")
    assert request.outcome == ("small", "failover")


def test_workers_that_were_draining_do_not_make_a_request_poison():
    world = World()
    world.report("n3", world.replica("r3", "small", Role.STANDBY))
    request = world.request()
    for node, id_ in (("n1", "r1"), ("n2", "r2")):
        world.report(node, world.replica(id_, "big", state="draining"))
        world.lose_worker(id_)  # before it saw the request, which was on its way
    world.advance(0.05)
    world.reply("r3")
    assert request.outcome == ("small", "failover")


def test_a_lone_replica_that_a_broken_network_had_silenced_is_used_as_soon_as_it_is_heard():
    world = World(standby=False)
    silent = [world.request(timeout_s=0.5) for _ in range(3)]
    world.advance(0.6)
    assert [request.outcome for request in silent] == [Code.TIMEOUT] * 3
    assert not world.gateway.replicas["r1"].breaker.closed
    world.lose_worker("r1")
    world.step(core.WorkerConnected("r1"))
    world.gateway.replicas["r1"].link = world.links["r1"]
    world.advance(0.2)
    request = world.request()
    world.reply("r1")
    assert request.outcome == ("big", "")


def test_requests_end_in_time_also_where_every_tick_is_late():
    world = World()
    request = world.request(timeout_s=0.5)
    for _ in range(10):
        world.now += 0.1
        world.step(core.Ticked(late_s=0.098))
    assert request.outcome is Code.TIMEOUT


def test_panic_ends_with_the_first_good_answer():
    world = World(settings=GatewayTuning(hedge=HedgeSettings(enabled=False)))
    world.report("n2", world.replica("r2", "big"))
    for replica in world.app.replicas.values():
        replica.breaker.eject(world.now, 0.5)
    world.advance(0.2)
    assert {r.id for r in world.app.ranked} == {"r1", "r2"}, "nobody is healthy, so everybody is used"
    id_ = world.request().flights[0].replica.id
    world.reply(id_)
    assert [r.id for r in world.app.ranked] == [id_]


def test_an_app_that_nobody_planned_for_asks_after_those_that_were():
    world = World(standby=False)
    table = world.gateway.table
    other = msgspec.structs.replace(world.app_version, app="letters")
    world.step(
        core.RoutesReceived(msgspec.structs.replace(table, revision=2, apps=(other, world.app_version)))
    )
    world.report("n1", world.replica("r9", "big", app="letters"), world.replica("r1", "big"))
    world.lose_worker("r9")
    world.step(core.AgentDisconnected("n1"))
    world.advance(0.2)
    (first,) = world.activations()
    assert first.contingency.app == "digits", "letters was missed sooner"
    world.step(core.ActivatedReceived(first.node, Activated(first.contingency.key, accepted=True)))
    world.advance(0.2)
    second = world.activations()[1].contingency
    assert (second.app, second.failure) == ("letters", "any")


def test_an_agent_whose_clock_was_set_back_is_believed_over_its_new_connection():
    world = World()
    world.step(core.NodeStateReceived(NodeState("n1", 7, 1, 1, (world.replica("r1", "big"),))))
    world.step(core.AgentDisconnected("n1"))
    world.step(core.AgentConnected("n1"))
    world.step(core.NodeStateReceived(NodeState("n1", 5, 1, 1, (world.replica("r9", "big"),))))
    assert {r.id for r in world.app.replicas.values() if r.node == "n1"} == {"r9"}


def test_requests_wait_for_a_successor_that_is_loaded_in_the_place_of_the_last_replica():
    """Nobody else has room, but it is on its way."""
    world = World(standby=False)
    world.advance(6)
    world.report("n1", world.replica("r1", "big", state="draining"))
    request = world.request()
    for _ in range(3):
        asked = world.activations()[-1]
        refusal = Activated(asked.contingency.key, accepted=False, reason="memory")
        world.step(core.ActivatedReceived(asked.node, refusal))
        world.advance(0.15)
    for state in ("backoff", "starting", "loading"):
        world.report("n1", world.replica("r4", "small", state=state))
        world.advance(0.15)
        assert not hasattr(request, "outcome")
    world.report("n1", world.replica("r4", "small"))
    world.reply("r4")
    assert request.outcome == ("small", "failover")


def test_another_node_is_asked_when_what_one_had_accepted_was_released_there():
    world = World(standby=False)
    world.lose_worker("r1")
    world.step(core.AgentDisconnected("n1"))
    (first,) = world.activations()
    world.step(core.ActivatedReceived(first.node, Activated(first.contingency.key, accepted=True)))
    world.report(first.node, world.replica("r5", "small", Role.CONTINGENCY, state="loading"))
    assert len(world.activations()) == 1
    world.report(first.node)
    second = world.activations()[-1]
    assert second.node != first.node


def test_the_last_one_is_asked_although_it_was_ejected_for_failing_if_nobody_can_be_had():
    world = World(standby=False)
    world.advance(6)
    world.gateway.replicas["r1"].breaker.eject(world.now, 0.5)
    world.app.refresh(world.now)
    request = world.request()
    for _ in range(3):
        world.advance(0.15)
        for asked in world.activations():
            assert asked.node != "n1", "one is ready there"
            refusal = Activated(asked.contingency.key, accepted=False, reason="memory")
            world.step(core.ActivatedReceived(asked.node, refusal))
    world.reply("r1")
    assert request.outcome == ("big", "")


def test_a_node_that_a_table_lacked_for_a_while_is_trusted_again_with_all_that_it_runs():
    world = World(standby=False)
    table = world.gateway.table
    world.advance(1, heartbeats="")
    assert world.gateway.replicas["r1"].node_suspect
    world.step(core.RoutesReceived(msgspec.structs.replace(table, revision=2, nodes=())))
    world.step(core.RoutesReceived(msgspec.structs.replace(table, revision=3)))
    for node in ("n1", "n2", "n3"):
        world.step(core.AgentConnected(node))
        world.report(node, *([world.replica("r1", "big")] if node == "n1" else []))
    assert world.app.ready
    world.report("n1")
    assert "r1" not in world.gateway.replicas, "it is still known whose it was"


def test_requests_wait_for_nodes_that_all_fell_silent_at_once():
    world = World()
    world.advance(6)
    world.advance(0.5, heartbeats="")
    assert not world.app.ready
    assert world.app.way_back.hopeless
    request = world.request()
    assert not hasattr(request, "outcome"), "as much speaks against this gateway as against all nodes"
    world.reply("r1")
    assert request.outcome == ("big", "")


def test_nobody_waits_for_silent_nodes_if_there_is_something_to_fall_back_on():
    world = World(static={"outputs": []}, fallback=("static",))
    world.advance(6)
    world.advance(0.5, heartbeats="")
    request = world.request()
    world.advance(0.01, heartbeats="")
    assert request.outcome == "static"


def test_a_suspect_node_is_routed_around_and_readmitted_after_a_while():
    world = World()

    def served_by() -> str:
        id_ = world.request().flights[0].replica.id
        world.reply(id_)
        return id_

    world.advance(0.5, heartbeats="n2 n3")
    assert served_by() == "r2"
    world.advance(0.2)
    assert served_by() == "r2", "not trusted after the first heartbeats"
    world.advance(0.4)
    assert served_by() == "r1"


@pytest.mark.parametrize("agent_first", [True, False])
def test_agent_and_one_worker_gone_means_that_the_node_is(agent_first: bool):
    world = World()
    world.report("n1", world.replica("r1", "big"), world.replica("r9", "small", Role.CONTINGENCY))
    request = world.request()
    if agent_first:
        world.step(core.AgentDisconnected("n1"))
        assert not world.gateway.nodes["n1"].detector.suspect, "workers live on without their agent"
        world.lose_worker("r9")
    else:
        world.lose_worker("r9")
        world.step(core.AgentDisconnected("n1"))
    assert request.flights[-1].replica.id == "r2", "moved before its own link broke"
    assert world.request().flights[0].replica.id == "r2"


def test_a_late_loop_blames_itself_first():
    world = World()
    world.now += 0.4
    world.step(core.Ticked(late_s=0.39))
    assert world.request().flights[0].replica.id == "r1"


def test_readiness_follows_the_replicas():
    world = World()
    world.report("n1", world.replica("r1", "big", state="failing"))
    assert world.app.ready
    world.report("n2", world.replica("r2", "small", Role.STANDBY, state="failing"))
    assert not world.app.ready


def test_a_static_answer_is_given_when_nobody_can_load_the_app():
    world = World(standby=False, static={"outputs": []})
    world.advance(1.1)
    world.lose_worker("r1")
    for node in ("n1", "n2", "n3"):
        world.step(core.AgentDisconnected(node))
    request = world.request()
    world.advance(0.6)
    assert request.outcome == "static"


def test_no_static_answer_means_an_honest_503():
    world = World(standby=False)
    world.advance(1.1)
    world.lose_worker("r1")
    for node in ("n1", "n2", "n3"):
        world.step(core.AgentDisconnected(node))
    request = world.request()
    assert request.outcome is Code.UNAVAILABLE


def test_queues_are_bounded():
    settings = GatewayTuning()
    world = World(standby=False, settings=settings)
    limit = settings.admission.inflight_max + settings.admission.waiting_max
    requests = [world.request() for _ in range(limit + 10)]
    shed = [r for r in requests if r.done]
    assert shed
    assert all(r.outcome is Code.SHED for r in shed)
    assert world.app.inflight <= limit


@pytest.mark.parametrize("order", [("n1", "n2"), ("n2", "n1")])
def test_node_states_of_a_former_life_are_ignored(order: tuple[str, str]):
    world = World()
    stale = NodeState(order[0], 0, 99, 1, ())
    world.step(core.NodeStateReceived(stale))
    assert world.app.ready
    assert set(world.gateway.replicas) == {"r1", "r2"}


def test_a_broken_connection_to_a_living_worker_is_made_again():
    world = World()
    del world.links["r1"]
    world.lose_worker("r1")
    assert world.request().flights[0].replica.id == "r1"


def test_removing_an_app_ends_what_waits_for_it():
    world = World(standby=False)
    world.lose_worker("r1")
    request = world.request()
    world.step(core.RoutesReceived(RouteTable(2, world.gateway.table.nodes)))
    assert request.outcome is Code.UNAVAILABLE
    assert not world.gateway.replicas


def test_a_state_that_only_a_newer_agent_knows_gets_no_requests():
    world = World()
    world.report("n1", world.replica("r1", "big", state="hibernating"))
    assert world.gateway.replicas["r1"].state == "unknown"
    assert [replica.id for replica in world.app.ranked] == ["r2"]


def test_what_a_worker_had_that_its_agent_ended_goes_to_one_that_stays() -> None:
    world = World()
    request = world.request()
    assert len(world.links["r1"].infers()) == 1
    world.serials["n1"] += 1
    state = NodeState("n1", 1, world.serials["n1"], 1, (), killed=("r1",))
    world.step(core.NodeStateReceived(state))
    assert len(world.links["r1"].infers()) == 1
    world.reply("r2")
    assert request.outcome == ("small", "failover")
