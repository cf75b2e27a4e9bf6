"""Overload in virtual time: the real gateway machine before simulated workers and clients."""

from __future__ import annotations

import msgspec
import pytest
from gateway_world import World
from hypothesis import given, settings
from hypothesis import strategies as st
from overload_world import Server, Simulation

from understudy.core.gateway import machine as core
from understudy.core.gateway.admission import Concurrency
from understudy.core.gateway.budget import WINDOW_S, Budget
from understudy.core.gateway.clients import ClientBuckets
from understudy.settings.gateway import AdmissionSettings, GatewayTuning
from understudy.wire.errors import Code
from understudy.wire.records import ClientRate, Criticality, Role

SHED_MS_MAX = 5.0


@pytest.mark.parametrize(
    ("base_s", "row_s", "rows_max", "deadline_ms"),
    [
        (0.001, 0.0, 1, 1000.0),
        (0.02, 0.0, 1, 1000.0),
        (0.1, 0.0, 1, 1000.0),
        (0.005, 0.0, 1, 50.0),
        (0.02, 0.001, 32, 1000.0),  # a batch costs little more than a row
        (0.3, 0.0, 32, 1000.0),  # the time of a batch alone is most of the objective
        (0.005, 0.0, 8, 100.0),
    ],
)
def test_at_three_times_the_capacity_goodput_is_the_capacity_and_answers_are_in_time(
    base_s: float, row_s: float, rows_max: int, deadline_ms: float
):
    world = Simulation(deadline_ms=deadline_ms)
    server = Server(world, "r1", base_s, row_s, rows_max)
    world.run(6, {"digits": 3 * server.capacity_per_s})
    start = world.now
    world.run(6, {"digits": 3 * server.capacity_per_s})
    seen = world.since(start)
    assert seen.goodput_per_s >= 0.9 * server.capacity_per_s
    # One batch waits while another runs: a model for which that takes longer can't keep its objective.
    objective_s = max(deadline_ms / 2000, 2.9 * (base_s + row_s * rows_max))
    assert seen.latency_s(0.99) <= objective_s
    assert seen.refused
    assert seen.slowest_refusal_s * 1000 <= SHED_MS_MAX
    assert not seen.others


@pytest.mark.parametrize("rows_max", [1, 16])
def test_below_the_capacity_nothing_is_refused(rows_max: int):
    world = Simulation()
    server = Server(world, "r1", 0.01, 0.001 if rows_max > 1 else 0.0, rows_max)
    world.run(8, {"digits": 0.8 * server.capacity_per_s})
    seen = world.since(0)
    assert not seen.refused
    assert not seen.others


def test_a_model_that_becomes_ten_times_slower_and_fast_again_is_followed():
    world = Simulation()
    server = Server(world, "r1", 0.002)
    load = {"digits": 1000.0}
    world.run(3, load)
    server.base_s = 0.02
    world.run(4, load)
    start = world.now
    world.run(3, load)
    slow = world.since(start)
    assert slow.goodput_per_s >= 0.9 * 50
    assert slow.latency_s(0.99) <= 0.5
    server.base_s = 0.002
    world.run(2, load)
    start = world.now
    world.run(2, load)
    assert world.since(start).goodput_per_s >= 0.9 * 500


def test_after_an_overload_bursts_are_welcome_again():
    world = Simulation()
    Server(world, "r1", 0.01)
    world.run(3, {"digits": 300.0})
    world.run(3, {"digits": 30.0})
    burst = [world.send(world.app) for _ in range(60)]
    world.run(1, {"digits": 0.0})
    assert [r.outcome for r in burst] == [("big", "")] * 60


def test_a_request_with_little_time_left_is_refused_when_the_queue_is_longer():
    world = Simulation()
    Server(world, "r1", 0.01)
    world.run(3, {"digits": 300.0})
    hasty, patient = world.send(world.app, timeout_s=0.05), world.send(world.app, timeout_s=10.0)
    assert hasty.outcome is Code.SHED
    assert patient.outcome is Code.SHED, "the limit keeps the latency of everybody"
    world.run(0.1, {"digits": 0.0})
    assert not world.send(world.app).done
    assert world.send(world.app, timeout_s=0.05).outcome is Code.SHED


def test_overload_is_not_a_failure_of_the_replica():
    world = Simulation()
    server = Server(world, "r1", 0.1)
    world.run(5, {"digits": 100.0})
    assert world.gateway.replicas["r1"].breaker.state == "closed"
    server.queue_max = 1
    world.run(5, {"digits": 100.0})
    assert world.gateway.replicas["r1"].breaker.state == "closed"
    assert world.app.ready


def test_busy_answers_make_no_storm():
    world = Simulation()
    server = Server(world, "r1", 0.02)
    server.queue_max = 4
    world.run(4, {"digits": 200.0})
    start, received, asked = world.now, server.received, len(world.requests)
    world.run(4, {"digits": 200.0})
    assert world.since(start).goodput_per_s >= 0.9 * 50
    assert server.received - received <= 1.0 * (len(world.requests) - asked)


def test_a_busy_replica_does_not_hide_one_that_has_room():
    world = World(standby=False)
    world.report("n2", world.replica("r2", "big"))
    first, second = world.request(), world.request()
    assert [r.flights[0].replica.id for r in (first, second)] == ["r1", "r2"]
    world.reply("r1", failure=Code.BUSY)
    assert first.flights[0].replica.id == "r2"
    assert world.request().flights[0].replica.id == "r2", "r1 has less outstanding, but said BUSY"


def test_a_client_in_a_hurry_does_not_make_an_overload():
    world = Simulation()
    Server(world, "r1", 0.02)
    refused = 0
    for _ in range(400):
        world.run(0.01, {"digits": 35.0})
        refused += world.send(world.app, timeout_s=0.005).done
    assert refused
    assert not world.app.allowance.concurrency.overloaded
    assert all(r.deadline - r.arrived < 0.5 for r in world.since(0).refused)


def test_hedges_stop_under_overload():
    world = Simulation(standby=True, brownout=False)
    server, other = Server(world, "r1", 0.01), Server(world, "r2", 0.01)
    world.run(2, {"digits": 300.0})
    sent = other.received
    world.run(4, {"digits": 300.0})
    assert world.app.allowance.concurrency.overloaded
    assert other.received == sent, "a copy is more work for those who have too much"
    assert server.received > 0


# Retries


@pytest.mark.parametrize("code", [Code.MODEL_FAILED, Code.OUT_OF_MEMORY, Code.BUSY, Code.UNAVAILABLE])
def test_a_dying_cluster_is_not_finished_off_by_its_own_retries(code: Code):
    """Every replica answers everything with an error: what they receive hardly exceeds what clients send."""
    world = Simulation(standby=True)
    servers = [Server(world, "r1", 0.002), Server(world, "r2", 0.002)]
    world.run(15, {"digits": 100.0})
    for server in servers:
        server.fails, server.received = code, 0
    asked = len(world.requests)
    world.run(15, {"digits": 100.0})
    asked = len(world.requests) - asked
    received = sum(server.received for server in servers)
    if code is Code.BUSY:
        # Those who wait are offered again after a pause, which grows: bounded by replicas and time.
        assert received <= 2 * 128 * 15 / 0.04
    else:
        assert received <= 1.3 * asked  # a fifth, and what was left of the time before
    for server in servers:
        server.fails = None
    world.report("n1", world.replica("r1", "big"))
    world.report("n2", world.replica("r2", "small", Role.STANDBY))
    world.run(8, {"digits": 100.0})
    asked, start = len(world.requests), world.now
    world.run(2, {"digits": 100.0})
    assert len(world.since(start).answered) >= 0.95 * (len(world.requests) - asked), "and it recovers"


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 200), st.integers(0, 100)), max_size=60))
def test_a_budget_never_gives_more_than_its_fraction_and_its_least(steps: list[tuple[float, int, int]]):
    now, least, fraction = 0.0, 3, 0.2
    budget = Budget(fraction, least, now)
    deposits: list[tuple[float, int]] = []
    spent: list[float] = []
    for pause_s, requests, wanted in steps:
        now += pause_s
        budget.deposit(requests, now)
        deposits.append((now, requests))
        spent += [now for _ in range(wanted) if budget.withdraw(now)]
    # Deposits count for two windows, and a window without any lasts until the next one.
    for start in {at for at, _ in deposits}:
        in_stretch = sum(at >= start for at in spent)
        counted = sum(requests for at, requests in deposits if at >= start - 3 * WINDOW_S)
        windows = (now - start) // WINDOW_S + 2
        assert in_stretch <= fraction * counted + (least + 1) * windows


def test_a_budget_forgets_what_was_long_ago():
    budget = Budget(0.2, 3, 0.0)
    for second in range(100):
        budget.deposit(1000, float(second))
    assert sum(budget.withdraw(100.0) for _ in range(10_000)) <= 0.2 * 20_000
    budget.deposit(0, 200.0)
    assert sum(budget.withdraw(200.0) for _ in range(10)) == 3


# Limits


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.floats(0, 5000), st.integers(0, 5000), st.integers(0, 10), st.integers(0, 3)),
        min_size=1,
        max_size=40,
    )
)
def test_the_limit_stays_within_its_bounds_whatever_is_measured(windows: list[tuple[float, int, int, int]]):
    limits = AdmissionSettings(inflight_max=1000)
    concurrency, now, answers = Concurrency(limits, 0.0), 0.0, 0
    for inflight, answered, refused, busy in windows:
        now, answers = now + 0.1, answers + answered
        concurrency.observe(int(inflight), 0.1)
        concurrency.refused += refused
        concurrency.busy += busy
        before = concurrency.limit
        concurrency.retune(answers, 0.35, 4, now)
        assert 4 <= concurrency.limit <= 1000
        assert concurrency.limit <= 2 * before
        assert concurrency.spacing_s >= 0


# Brown-out


def test_brownout_answers_by_the_smaller_variant_what_would_be_shed_and_ends_by_itself():
    world = Simulation(standby=True)
    Server(world, "r1", 0.02), Server(world, "r2", 0.005)
    world.run(1, {"digits": 30.0})
    assert not world.app.allowance.brownout.on
    world.run(4, {"digits": 150.0})
    start = world.now
    world.run(4, {"digits": 150.0})
    seen = world.since(start)
    by = [r.outcome for r in seen.answered]
    assert set(by) == {("big", ""), ("small", "overload")}
    assert by.count(("big", "")) / 4 >= 0.9 * 50, "the full-size variant does what it can"
    assert seen.goodput_per_s >= 0.95 * 150
    kinds = [e.kind for e in world.effects if isinstance(e, core.GatewayNote)]
    assert kinds.count("brownout.started") == 1
    world.run(8, {"digits": 30.0})
    assert not world.app.allowance.brownout.on
    start = world.now
    world.run(1, {"digits": 30.0})
    assert {r.outcome for r in world.since(start).answered} == {("big", "")}


def test_brownout_has_a_limit_of_its_own_and_can_be_declined():
    world = Simulation(standby=True)
    Server(world, "r1", 0.02), Server(world, "r2", 0.01)
    world.run(4, {"digits": 450.0})
    start = world.now
    world.run(4, {"digits": 450.0})
    seen = world.since(start)
    assert seen.goodput_per_s >= 0.9 * 150
    assert seen.latency_s(0.99) <= 0.5
    declined = Simulation(standby=True, brownout=False)
    Server(declined, "r1", 0.02), Server(declined, "r2", 0.005)
    declined.run(4, {"digits": 150.0})
    assert not declined.app.allowance.brownout.on


def test_a_loss_during_a_brownout_is_a_failover():
    world = Simulation(standby=True)
    Server(world, "r1", 0.02), Server(world, "r2", 0.005)
    world.run(4, {"digits": 150.0})
    assert world.app.allowance.brownout.on
    world.lose_worker("r1")
    world.run(1, {"digits": 20.0})
    assert {r.outcome for r in world.since(world.now - 0.5).answered} == {("small", "failover")}


# Many apps


def test_one_apps_flood_does_not_starve_another():
    tuning = GatewayTuning(admission=AdmissionSettings(inflight_total_max=200))
    world = Simulation(settings=tuning)
    world.add_app("quiet", weight=1.0)
    Server(world, "r1", 0.5)
    Server(world, "quiet", 0.02)
    world.app.patience.silence_s = 5.0
    world.run(2, {"digits": 2000.0, "quiet": 20.0})
    assert world.gateway.dispatcher.inflight <= 200
    start = world.now
    world.run(3, {"digits": 2000.0, "quiet": 20.0})
    assert not world.since(start, "quiet").refused
    assert not world.since(start, "quiet").others


def test_when_the_gateway_is_late_best_effort_apps_are_shed_first_and_critical_ones_last():
    tuning = GatewayTuning(admission=AdmissionSettings(lag_inflight_min=0))
    world = Simulation(settings=tuning)
    order = (Criticality.BEST_EFFORT, Criticality.STANDARD, Criticality.CRITICAL)
    apps = [world.add_app(str(c), criticality=c) for c in order]
    for criticality in order:
        Server(world, str(criticality), 0.001)

    def shed_of_ten(dial: float, late_s: float) -> list[int]:
        """By app, when the gateway has been late for so long that the dial got there."""
        world.late_s = late_s
        for _ in range(200):
            if abs(world.gateway.dispatcher.gate.dial - dial) < 0.01:
                break
            world.run(0.1, {})
        shed = [sum(world.send(app).done for _ in range(10)) for app in apps]
        world.run(0.05, {})
        return shed

    assert shed_of_ten(0.0, 0.001) == [0, 0, 0]
    assert shed_of_ten(0.6, 0.04) == pytest.approx([6, 0, 0], abs=1)  # but for rounding
    assert shed_of_ten(1.4, 0.04) == pytest.approx([10, 4, 0], abs=1)
    assert shed_of_ten(2.0, 0.04) == [10, 10, 0]
    assert shed_of_ten(3.0, 0.04) == pytest.approx([10, 10, 9], abs=1)
    assert world.gateway.dispatcher.gate.admitted_fraction(Criticality.CRITICAL) > 0, "never wholly"
    assert shed_of_ten(0.0, 0.001) == [0, 0, 0]


def test_a_gateway_with_little_to_do_sheds_nothing_however_late_it_is():
    world = Simulation()
    Server(world, "r1", 0.01)
    world.late_s = 0.045
    world.run(3, {"digits": 50.0})
    assert not world.since(0).refused


# Clients


def test_a_client_is_held_to_its_rate_and_told_when_to_come_back():
    world = World(client_rate=ClientRate(requests_per_s=10, burst=5))
    outcomes = [world.request() for _ in range(7)]
    assert [r.outcome for r in outcomes[5:]] == [Code.RATE_LIMITED] * 2
    assert len(world.links["r1"].infers()) == 5
    assert world.app.traffic.stats.limited == 2
    assert world.app.traffic.stats.shed == 0
    world.now += 0.1
    assert not world.request().done
    assert world.request().outcome is Code.RATE_LIMITED


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abc")), max_size=200))
def test_buckets_give_no_client_more_than_rate_and_burst(steps: list[tuple[float, str]]):
    rate = ClientRate(requests_per_s=5, burst=3)
    buckets, now = ClientBuckets(rate, 100), 0.0
    taken: dict[str, list[float]] = {}
    for pause_s, client in steps:
        now += pause_s
        wait_s = buckets.take(client, now)
        if not wait_s:
            taken.setdefault(client, []).append(now)
        else:
            again = buckets.take(client, now + wait_s + 1e-6)
            assert not again, "who comes back when told is let in"
            taken[client].append(now + wait_s)
            now += wait_s + 1e-6
    for times in taken.values():
        for i, start in enumerate(times):
            assert all(
                count <= rate.burst + rate.requests_per_s * (end - start) + 1e-3
                for count, end in enumerate(times[i:], 1)
            )


def test_asking_how_long_to_wait_takes_nothing():
    buckets = ClientBuckets(ClientRate(2.0, 3), clients_max=10)
    for quarter in range(20):
        now = 100 + quarter / 8
        foretold = [buckets.wait_s("a", now) for _ in range(2)]
        assert foretold == [buckets.take("a", now)] * 2


def test_the_table_of_clients_is_bounded():
    buckets = ClientBuckets(ClientRate(1.0, 1), clients_max=10)
    for i in range(100):
        assert not buckets.take(str(i), 0.0)
    assert len(buckets) == 10
    assert buckets.take("99", 0.0) == pytest.approx(1.0)


def test_a_new_manifest_changes_the_rate_and_the_unlimited_have_no_table():
    world = World()
    assert world.app.clients is None
    limited = msgspec.structs.replace(world.app_version, client_rate=ClientRate(1.0, 1))
    table = msgspec.structs.replace(world.gateway.table, revision=2, apps=(limited,))
    world.step(core.RoutesReceived(table))
    buckets = world.app.clients
    assert buckets is not None
    world.step(core.RoutesReceived(msgspec.structs.replace(table, revision=3)))
    assert world.app.clients is buckets, "what clients used up is not forgotten"


# Which contingency


def test_a_lost_site_is_met_by_the_sites_contingency_and_a_lost_node_by_the_nodes():
    def world_of(lost: tuple[str, ...]) -> World:
        world = World(standby=False)
        placed = msgspec.structs.replace(world.gateway.table.placements[0], node="n2", role=Role.PRIMARY)
        table = msgspec.structs.replace(
            world.gateway.table,
            revision=2,
            placements=(placed,),
            contingencies=(world.contingency("node:n2", "n3"), world.contingency("site:b", "n1")),
        )
        world.step(core.RoutesReceived(table))
        for node in lost:
            world.step(core.AgentDisconnected(node))
        world.lose_worker("r1")
        return world

    assert world_of(()).activations()[0].contingency.failure == "node:n2"
    assert world_of(("n2",)).activations()[0].contingency.failure == "node:n2"
    assert world_of(("n2", "n3")).activations()[0].contingency.failure == "site:b"
