"""Somebody inside, as the cluster's own user: what a link may say follows from who is at its other end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from attacked import Attacked, ask
from harness import infer_body

sys.path.append(str(Path(__file__).parents[1] / "contract"))
from worker_process import DEADLINE_S, Client

from understudy.wire.messages import (
    Excuse,
    GatewayStats,
    Heartbeat,
    Hello,
    Message,
    NodeState,
    ReadArtifact,
    Report,
    Target,
)
from understudy.wire.records import Event, RouteTable

STRANGERS = {
    "nobody": None,
    "a controller": Hello("controller", "c1", incarnation=1),
    "another agent": Hello("agent", "n1", incarnation=1),
    "a worker": Hello("worker", "w1"),
}
ORDERS: list[Message] = [Target(10**6), ReadArtifact("0" * 64, 0)]


def ends(client: Client) -> bool:
    """Whether the other side closes the link; what it says before is read."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not client.closed():
        if time.monotonic() > deadline_s:
            return False
    return True


def saying(client: Client, *messages: Message) -> None:
    client.send(*((message, b"") for message in messages))


@pytest.mark.parametrize("who", STRANGERS)
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
def test_an_agent_takes_orders_of_a_controller_that_it_dialled_only(
    attacked: Attacked, who: str, order: Message
) -> None:
    hello = STRANGERS[who]
    with Client(attacked.harness.cluster.config.agent_address("n1")) as client:
        saying(client, *([hello] if hello else []), order)
        assert ends(client)
    assert serves(attacked)


def test_a_gateway_may_ask_an_agent_for_what_is_a_gateways(attacked: Attacked) -> None:
    with Client(attacked.harness.cluster.config.agent_address("n1")) as client:
        saying(client, Hello("gateway", "g9", incarnation=1), Excuse(("nobody-s",)))
        assert not client.closed(), "it is told the node's state"
        saying(client, Target(10**6))
        assert ends(client)
    assert serves(attacked)


@pytest.mark.parametrize(
    "said",
    [
        [NodeState("n1", 1, 1, 1)],
        [Hello("agent", "n1", incarnation=1)],
        [Hello("agent", "n1", incarnation=2**62)],
        [Hello("controller", "c1")],
        [Hello("gateway", "g9"), NodeState("n1", 1, 1, 1)],
        [Hello("gateway", "g9"), Target(10**6)],
        [Hello("gateway", "g9"), RouteTable(2**50)],
        [Hello("agent", "n9"), GatewayStats(0, {})],
        [Hello("gateway", "g9"), Hello("agent", "n1")],
    ],
    ids=repr,
)
def test_a_controller_believes_a_peer_what_is_its_own(attacked: Attacked, said: list[Message]) -> None:
    (address,) = attacked.harness.cluster.config.controller_addresses()
    with Client(address) as client:
        saying(client, *said)
        assert ends(client)
    assert serves(attacked)


def test_an_event_is_its_senders(attacked: Attacked) -> None:
    (address,) = attacked.harness.cluster.config.controller_addresses()
    with Client(address) as client:
        event = Event("node.lost", time.time_ns() // 1_000_000, "controller:c1", "forged", node="n1")
        saying(client, Hello("gateway", "g9", incarnation=1), Report((event,)))
        deadline_s = time.monotonic() + DEADLINE_S
        while not (found := [e for e in events(attacked) if e["message"] == "forged"]):
            assert time.monotonic() < deadline_s
    assert [e["source"] for e in found] == ["gateway:g9"]


def test_a_heartbeat_of_another_node_counts_for_nobody(attacked: Attacked) -> None:
    (address,) = attacked.harness.cluster.config.controller_addresses()
    with Client(address) as client:
        saying(client, Hello("gateway", "g9", incarnation=1), Heartbeat("n1", 1, 1, 50.0))
        assert ends(client)


def events(attacked: Attacked) -> list[dict[str, str]]:
    token = {"Authorization": f"Bearer {attacked.token}"}
    _, _, answer = ask(attacked.control, "GET", "/v1/events?limit=100", **token)
    found: list[dict[str, str]] = answer["events"] if isinstance(answer, dict) else answer
    return found


def serves(attacked: Attacked) -> bool:
    status, _, _ = ask(attacked.gateway, "POST", "/v2/models/plain/infer", infer_body([[0.1, 0.2, 0.3, 0.4]]))
    return status == 200
