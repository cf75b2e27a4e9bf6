"""Runs the planner beside the loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from understudy.core.planning.plan import PlanInput, make_plan
from understudy.wire.records import Plan


async def solve(facts: PlanInput, revision: int, reason: str) -> Plan:
    """`make_plan` in a thread; raises what it raises.

    The thread is a daemon: a solver that uses its whole time limit must not hold up the end of the process.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Plan] = loop.create_future()

    def settle(plan: Plan | None, error: BaseException | None) -> None:
        if answer.done():
            return  # nobody waits any more
        if error is not None:
            answer.set_exception(error)
        elif plan is not None:
            answer.set_result(plan)

    def work() -> None:
        plan, error = None, None
        try:
            plan = make_plan(facts, revision, reason)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, plan, error)

    threading.Thread(target=work, name="solver", daemon=True).start()
    return await answer
