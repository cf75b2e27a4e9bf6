"""Many seeds, on all processors, and what came of them."""

from __future__ import annotations

import gc
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import msgspec

from understudy.invariants import InvariantBroken
from understudy.sim.checks import Violation
from understudy.sim.faults import KINDS
from understudy.sim.scenario import SimScenario, draw
from understudy.sim.world import World


class Run(msgspec.Struct, frozen=True):
    """Of one seed. `failure`: what must not have happened; empty if nothing did."""

    seed: int
    failure: str
    simulated_s: float
    processor_s: float
    outcomes: dict[str, int]
    timeline: tuple[str, ...] = ()


def scenario_of(seed: int) -> SimScenario:
    return draw(seed, KINDS)


def run(scenario: SimScenario, *, timeline: bool = False) -> Run:
    """Never raises: a crash of a machine is a failure as well."""
    began_s = time.process_time()
    world = World(scenario, recorded=timeline)
    failure = ""
    try:
        world.run()
    except Violation as violation:
        failure = str(violation)
    except (Exception, InvariantBroken) as error:
        failure = f"{type(error).__name__}: {error}"
        world.tell("sim", "crash", traceback.format_exc())
    took_s = time.process_time() - began_s
    return Run(scenario.seed, failure, world.clock.now, took_s, dict(world.outcomes), tuple(world.timeline))


def run_seed(seed: int) -> Run:
    return run(scenario_of(seed))


def run_all(first: int, count: int, processes: int) -> Iterator[Run]:
    """In order of seeds."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=gc.freeze) as pool:
        yield from pool.map(run_seed, range(first, first + count), chunksize=8)


class Total(msgspec.Struct):
    """Over all runs so far."""

    seeds: int = 0
    simulated_s: float = 0.0
    processor_s: float = 0.0
    failed: list[Run] = []
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, run: Run) -> None:
        self.seeds += 1
        self.simulated_s += run.simulated_s
        self.processor_s += run.processor_s
        self.outcomes.update(run.outcomes)
        if run.failure:
            self.failed.append(run)
