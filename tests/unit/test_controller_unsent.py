"""What is sent last to a peer is what was made last."""

from __future__ import annotations

from understudy.core.controller.events import SendRoutes, SendTarget
from understudy.core.controller.unsent import Unsent
from understudy.wire.messages import Target
from understudy.wire.records import RouteTable


def routes(revision: int, gateway: str = "") -> SendRoutes:
    return SendRoutes(RouteTable(revision), gateway, "test")


def test_a_table_for_all_replaces_what_single_gateways_were_to_be_sent():
    unsent = Unsent()
    for effect in (routes(1), routes(1, "g1"), routes(2)):
        unsent.add(effect)
    assert unsent.take() == ([], [routes(2)])
    assert not unsent


def test_a_table_for_one_comes_after_that_for_all():
    unsent = Unsent()
    for effect in (routes(1, "g1"), routes(2), routes(3, "g1")):
        unsent.add(effect)
    assert unsent.take() == ([], [routes(2), routes(3, "g1")])


def test_a_node_is_sent_its_newest_target():
    unsent = Unsent()
    first, second = (SendTarget("n1", Target(revision, (), ()), "test") for revision in (1, 2))
    unsent.add(first)
    unsent.add(second)
    assert unsent
    assert unsent.take() == ([second], [])
