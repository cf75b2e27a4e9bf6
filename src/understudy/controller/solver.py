"""Runs the planner beside the loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import msgspec

from understudy.core.planning.plan import PlanInput, Planner
from understudy.wire.records import Plan

T = TypeVar("T")


class Solver:
    """A planner that makes one plan at a time, beside the loop."""

    def __init__(self) -> None:
        self._planner = Planner()

    async def solve(self, facts: PlanInput, revision: int, reason: str) -> Plan:
        """A plan, with the time that it took; raises what `Planner.plan` raises."""
        began_s = time.monotonic()
        plan = await in_thread(lambda: self._planner.plan(facts, revision, reason), "solver")
        return msgspec.structs.replace(plan, solve_ms=(time.monotonic() - began_s) * 1000)


async def in_thread(work: Callable[[], T], name: str) -> T:
    """What `work` returns or raises.

    The thread is a daemon: a solver that uses its whole time limit must not hold up the end of the process.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # who waits may give up, but the work goes on

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(done)
