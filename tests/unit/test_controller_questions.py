"""What the controller tells of its plan: protection on one page, and questions, one at a time."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest
from controller_world import World, app, primary

from understudy.controller.questions import Questions
from understudy.controller.status import StoreStatus, cluster_status
from understudy.controller.traffic import Traffic
from understudy.core.controller import events as ev
from understudy.core.questions.records import Question
from understudy.settings.gateway import GatewayConfig
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import AppStats, GatewayStats
from understudy.wire.records import Criticality, Outcome, Plan, Role


@pytest.fixture
def world() -> World:
    world = World()
    world.join("n1", "n2", "n3")
    world.deploy(app("plain"), app("vital", criticality=Criticality.CRITICAL))
    world.run(5)
    return world


def questions(world: World, traffic: Traffic | None = None, *gateways: str) -> Questions:
    config = msgspec.structs.replace(
        world.config,
        data_dir="/data",
        artifacts_dir="/data/artifacts",
        gateways=tuple(GatewayConfig(name) for name in gateways or ("g1",)),
    )
    return Questions(config, "c1", world.machine, traffic or Traffic())


# The page


@pytest.mark.parametrize(
    ("outcomes", "protection"),
    [
        ((Outcome("node:n1", "plain", "cold", "small", "n3", 0.9, 30.0),), "cold n3"),
        ((Outcome("site:a", "plain", "cold", "small", "n2", 0.9, 30.0),), "cold n2"),
        ((Outcome("node:n1", "plain", "none", None, None, 0.0, 0.0),), "none"),
        ((), "none"),
    ],
)
def test_protection_is_what_the_plan_proves(
    world: World, outcomes: tuple[Outcome, ...], protection: str
) -> None:
    """Losses that don't affect an app have no outcome."""
    plan = Plan(5, (primary(world.machine.apps["plain"], "n1"),), outcomes=outcomes)
    assert world.machine.plan is not None
    world.step(ev.Planned(plan, world.machine.plan.facts))
    page = cluster_status(world.machine, Traffic(), StoreStatus(True), "test", "c1")
    plain, vital = page.apps
    assert plain.protection == protection
    assert (vital.protection, vital.primary_nodes) == ("none", [])


def test_a_standby_is_warm_though_no_loss_is_to_be_survived(world: World) -> None:
    vital = world.machine.apps["vital"]
    placements = (primary(vital, "n1"), primary(vital, "n2", "small", Role.STANDBY))
    assert world.machine.plan is not None
    world.nodes["n2"].loads = False
    world.step(ev.Planned(Plan(5, placements), world.machine.plan.facts))
    page = cluster_status(world.machine, Traffic(), StoreStatus(True), "test", "c1")
    assert page.apps[1].protection == "loading n2"
    world.nodes["n2"].finish_loading()
    world.report("n2")
    page = cluster_status(world.machine, Traffic(), StoreStatus(True), "test", "c1")
    assert page.apps[1].protection == "warm n2"


def test_the_page_says_when_users_are_failed_and_when_there_is_no_gateway(world: World) -> None:
    traffic = Traffic()
    page = cluster_status(world.machine, traffic, StoreStatus(True), "test", "c1")
    assert any("no gateway" in warning for warning in page.warnings)
    traffic.connected("g1")
    traffic.reported("g1", GatewayStats("g1", 1, {"plain": AppStats(failing="9 of 9 requests failed")}))
    page = cluster_status(world.machine, traffic, StoreStatus(True), "test", "c1")
    assert not any("no gateway" in warning for warning in page.warnings)
    assert traffic.failing("plain") == "9 of 9 requests failed"
    traffic.disconnected("g1")
    assert traffic.failing("plain") == "", "what it said is of the past"


# Questions


def test_a_second_question_is_refused_while_the_first_is_answered(world: World) -> None:
    asking = questions(world)

    async def test() -> None:
        answered = threading.Event()
        first = asyncio.ensure_future(asking.one_at_a_time(answered.wait))
        await asyncio.sleep(0)
        with pytest.raises(UnderstudyError) as refused:
            await asking.ask(Question(explain="plain"))
        assert refused.value.code is Code.BUSY
        answered.set()
        assert await first
        assert (await asking.ask(Question(explain="plain"))).explanation is not None

    asyncio.run(test())


def test_a_question_that_fails_leaves_the_way_free(world: World) -> None:
    asking = questions(world)
    for _ in range(2):
        with pytest.raises(UnderstudyError, match="did you mean 'n3'"):
            asyncio.run(asking.ask(Question(fail=("n4",))))


def test_without_a_plan_nothing_can_be_told() -> None:
    with pytest.raises(UnderstudyError) as refused:
        asyncio.run(questions(World()).ask(Question(fail=("n1",))))
    assert refused.value.code is Code.UNAVAILABLE


def test_nodes_that_do_not_answer_are_away(world: World) -> None:
    world.kill("n3")
    answer = asyncio.run(questions(world).ask(Question(fail=("n1",))))
    assert answer.away == ("n3",)


def test_gateways_are_connected_if_one_of_their_processes_is(world: World) -> None:
    traffic = Traffic()
    for name in ("g1.2", "g2"):
        traffic.connected(name)
    findings = asyncio.run(questions(world, traffic, "g1", "g2", "g22").audit()).findings
    (found,) = [finding for finding in findings if finding.part == "gateway"]
    assert "listen on the loopback" in found.problem
    traffic.disconnected("g2")
    findings = asyncio.run(questions(world, traffic, "g1", "g2", "g22").audit()).findings
    (found,) = [finding for finding in findings if finding.part == "gateway"]
    assert found.problem == "of 3 gateways only 1 is connected: g2, g22 not"
