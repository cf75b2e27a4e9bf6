"""Many seeds, on all processors, and what came of them."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import msgspec

from understudy.sim.world import Violation, World


class Run(msgspec.Struct, frozen=True):
    """Of one seed. `failure`: what must not have happened; empty if nothing did."""

    seed: int
    failure: str
    simulated_s: float
    outcomes: dict[str, int]
    timeline: tuple[str, ...] = ()


def run(seed: int, *, timeline: bool = False) -> Run:
    """Never raises: a crash of a machine is a failure as well."""
    world = World(seed)
    failure = ""
    try:
        world.run()
    except Violation as violation:
        failure = str(violation)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        world.tell("sim", "crash", traceback.format_exc())
    lines = tuple(world.timeline) if timeline else ()
    return Run(seed, failure, world.clock.now, dict(world.outcomes), lines)


def run_all(first: int, count: int, processes: int) -> Iterator[Run]:
    """In order of seeds."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run, range(first, first + count), chunksize=8)


class Total(msgspec.Struct):
    """Over all runs so far."""

    seeds: int = 0
    simulated_s: float = 0.0
    failed: list[Run] = []
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, run: Run) -> None:
        self.seeds += 1
        self.simulated_s += run.simulated_s
        self.outcomes.update(run.outcomes)
        if run.failure:
            self.failed.append(run)
