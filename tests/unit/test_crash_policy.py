"""One rule for what our own code raises: end what it was about, or the process where that is shared."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog.testing

from understudy.adapters.crash_policy import EXIT_BROKEN, REPORT_INTERVAL_S, CrashPolicy
from understudy.invariants import InvariantBroken


class World:
    def __init__(self, *shared: type[asyncio.BaseProtocol]) -> None:
        self.now = 0.0
        self.ended: list[int] = []
        self.policy = CrashPolicy(shared=shared, end=self.ended.append, now=lambda: self.now)

    def fails(self, **context: Any) -> None:
        loop: Any = None
        self.policy.callback_failed(loop, {"message": "it failed", **context})


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_failed_connection_ends_alone_and_is_counted() -> None:
    world = World()
    world.fails(exception=raised(ValueError()), protocol=asyncio.Protocol())
    assert not world.ended
    assert world.policy.contained == {"Protocol": 1}


def test_a_callback_that_nobody_contains_ends_the_process() -> None:
    world = World()
    world.fails(exception=raised(ValueError()), handle=object())
    assert world.ended == [EXIT_BROKEN]


def test_a_failed_protocol_that_changes_what_is_shared_ends_the_process() -> None:
    world = World(asyncio.BufferedProtocol)
    world.fails(exception=raised(ValueError()), protocol=asyncio.BufferedProtocol())
    assert world.ended == [EXIT_BROKEN]


def test_a_broken_invariant_ends_the_process_wherever_it_is_seen() -> None:
    world = World()
    world.fails(exception=raised(InvariantBroken("a count")), protocol=asyncio.Protocol())
    world.policy.contain("request", raised(InvariantBroken("a count")))
    assert world.ended == [EXIT_BROKEN] * 2
    assert not world.policy.contained


def test_one_cause_is_reported_once_a_minute_and_every_time_counted() -> None:
    world = World()
    with structlog.testing.capture_logs() as logs:
        for second in range(61):
            world.now = float(second)
            world.policy.contain("request", raised(ValueError(f"each {second} is new")))
        world.policy.contain("request", raised(KeyError("another cause")))
    assert world.policy.contained == {"request": 62}
    assert [log["unreported"] for log in logs] == [0, REPORT_INTERVAL_S - 1, 0]
