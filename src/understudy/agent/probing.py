"""Asking workers for signs of life and proofs of work, and looking at those that don't answer.

What is seen goes to the machine, which judges. A worker that owes an answer is looked at again and again:
at what it wrote about its batches, and at what the kernel says of its process.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from understudy.adapters.links import FrameLink
from understudy.adapters.processes import is_frozen, process_stat
from understudy.adapters.progress import Progress, read_progress
from understudy.adapters.task_groups import ungrouped
from understudy.core.agent import events as ev
from understudy.core.agent.vitality import Signs
from understudy.settings.agent import AgentTuning
from understudy.wire.errors import UnderstudyError
from understudy.wire.messages import Ping, Pong, Probe, Probed

PROBE_S_MAX = 86_400.0  # the machine gives up long before
LATE_FACTOR = 4.0  # a look so many timeouts late: this process stood still itself, and sees nothing
NOTHING = Progress(0, None, 0, 0.0, None)

Step = Callable[[ev.Event], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """A worker, and how to reach it. `reach` connects where that is needed."""

    worker: str
    pid: int
    progress: str  # the file where it writes it
    gone: Callable[[], bool]
    reach: Callable[[float], Awaitable[FrameLink]]


async def check(asked: Asked, step: Step, timeout_s: float) -> None:
    """A blank worker can't be probed; that it answers at all is what is asked."""
    began_s = _now()
    try:
        link = await asked.reach(timeout_s)
        await link.call(Ping(), Pong, timeout_s)
    except UnderstudyError as error:
        _failed(asked, step, error, _now() - began_s)
    else:
        step(ev.ProbePassed(asked.worker))


async def probe(asked: Asked, step: Step, tuning: AgentTuning, *, inference: bool) -> None:
    """A no-op through the model's queue or, unless requests have proved as much just now, an inference."""
    began_s, timeout_s = _now(), tuning.probe_timeout_ms / 1000
    ago_s = (read_progress(asked.progress) or NOTHING).proven_ago_s
    inference = inference and (ago_s is None or ago_s > tuning.probe_interval_ms / 1000)
    try:
        link = await asked.reach(timeout_s)
    except UnderstudyError as error:
        _failed(asked, step, error, _now() - began_s)
        return
    try:
        with ungrouped(UnderstudyError):
            async with asyncio.TaskGroup() as tasks:
                answer = tasks.create_task(link.call(Probe(inference), Probed, PROBE_S_MAX))
                await _watch(asked, link, answer, step, timeout_s)
    except UnderstudyError as error:
        _failed(asked, step, error, 0.0)
    else:
        ago_s = (read_progress(asked.progress) or NOTHING).proven_ago_s
        if ago_s is None:
            ago_s = 0.0 if inference else math.inf
        step(ev.ProbePassed(asked.worker, ago_s))


async def _watch(
    asked: Asked, link: FrameLink, answer: asyncio.Task[Probed], step: Step, timeout_s: float
) -> None:
    """Look at the worker until it answers, or is gone."""
    began_s = _now()
    ended, cpu_s, stood_still_s = (read_progress(asked.progress) or NOTHING).ended, _cpu_s(asked.pid), 0.0
    patience_s = timeout_s / 2
    while True:
        looked_s = _now()
        await asyncio.wait({answer}, timeout=patience_s)
        if answer.done() or asked.gone():
            return
        late_s = _now() - looked_s - patience_s
        if late_s > LATE_FACTOR * timeout_s:
            stood_still_s += late_s
            continue
        stat = process_stat(asked.pid)
        if stat is None:
            return
        stopped = stat.stopped or is_frozen(asked.pid)
        heard = not stopped and await _hears(link, timeout_s / 2)
        if answer.done() or asked.gone():
            return
        progress = read_progress(asked.progress) or NOTHING
        running_s = progress.running_s
        signs = Signs(
            waited_s=_now() - began_s,
            heard=heard,
            stopped=stopped,
            cpu_s=stat.cpu_s - cpu_s,
            moved=progress.ended != ended,
            running_s=None if running_s is None else max(running_s - stood_still_s, 0.0),
            rows=progress.rows,
            budget_s=progress.budget_s,
        )
        ended, cpu_s, patience_s = progress.ended, stat.cpu_s, timeout_s
        step(ev.ProbeUnanswered(asked.worker, signs, jitter()))


async def _hears(link: FrameLink, timeout_s: float) -> bool:
    try:
        await link.call(Ping(), Pong, timeout_s)
    except UnderstudyError:
        return False
    return True


def _failed(asked: Asked, step: Step, error: UnderstudyError, waited_s: float) -> None:
    if not asked.gone():
        step(ev.ProbeFailed(asked.worker, f"probe: {error}", waited_s, jitter()))


def _cpu_s(pid: int) -> float:
    stat = process_stat(pid)
    return stat.cpu_s if stat is not None else 0.0


def _now() -> float:
    return asyncio.get_running_loop().time()


def jitter() -> float:
    return random.uniform(-1.0, 1.0)
