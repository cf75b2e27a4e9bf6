"""Understudy's plans against simpler schemes, on clusters of 5 to 1,000 nodes with little or much room.

Nothing runs here but planners: every failure is played on paper, with the published profiles of 52 image
classifiers. What the same costs real processes is measured by other benchmarks.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console

from benchmarks import results
from benchmarks.evaluation.families import ACTIVATE_MS, CACHED_READ, UNCACHED_READ, detect_route_ms
from benchmarks.evaluation.figures import (
    PROTECTED,
    Case,
    Sample,
    Scalars,
    aims_of,
    plan_scalars,
    rows_of,
    sample,
)
from benchmarks.evaluation.replayer import play
from benchmarks.evaluation.schemes import protections, understudy_plan
from benchmarks.evaluation.workloads import NODES_PER_SITE, SHARES, SITES_MIN, cluster, failures
from understudy.core.planning.footprint import LOAD_MS, LOAD_MS_PER_MB

HEADROOMS = (0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
FEW_HEADROOMS = (0.05, 0.1, 0.2, 0.5)
# What is lost, and what the plan is asked to survive. Of pairs of nodes a sample is played.
KINDS = {"node": ("node",), "site": ("node", "site"), "two nodes": ("node", "any-2")}
PAIRS_MAX = 500


@dataclass(frozen=True, slots=True)
class Sweep:
    nodes: int
    apps: int
    mix: str
    kinds: tuple[str, ...]
    headrooms: tuple[float, ...]
    seeds: int


SWEEPS = (
    Sweep(1000, 10_000, "slices", tuple(KINDS), FEW_HEADROOMS, 1),
    Sweep(100, 1000, "slices", tuple(KINDS), HEADROOMS, 2),
    Sweep(100, 1000, "families", ("node",), HEADROOMS, 2),
    Sweep(20, 200, "slices", ("node",), HEADROOMS, 3),
    Sweep(5, 27, "slices", tuple(KINDS), HEADROOMS, 5),
    Sweep(5, 27, "families", ("node",), HEADROOMS, 5),
)


@dataclass(frozen=True, slots=True)
class Job:
    case: Case
    seed: int


@dataclass(frozen=True, slots=True)
class Done:
    job: Job
    samples: list[Sample]
    plan: Scalars
    wall_s: float


def jobs(sweeps: tuple[Sweep, ...]) -> Iterator[Job]:
    for sweep in sweeps:
        for kind in sweep.kinds:
            for headroom in sweep.headrooms:
                case = Case(sweep.nodes, sweep.apps, sweep.mix, kind, headroom)
                yield from (Job(case, seed) for seed in range(1, sweep.seeds + 1))


def run(job: Job) -> Done:
    started_s = time.perf_counter()
    case, survive = job.case, KINDS[job.case.kind]
    made = cluster(case.nodes, case.apps, case.mix, case.headroom, job.seed)
    planned = understudy_plan(made, survive)
    struck = failures(made.nodes, case.kind, PAIRS_MAX, job.seed)
    detailed = case.kind == "node"
    found = [
        sample(made, protection, play(made, protection, struck), len(struck), detailed=detailed)
        for protection in protections(made, planned.plan, survive)
    ]
    return Done(job, found, plan_scalars(made, planned), time.perf_counter() - started_s)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--nodes", type=int, nargs="*", help="clusters of these sizes, and write nothing")
    options = parser.parse_args()
    console = Console()
    work = list(jobs(tuple(s for s in SWEEPS if not options.nodes or s.nodes in options.nodes)))
    samples: dict[Case, list[Sample]] = {job.case: [] for job in work}
    plans: dict[Case, list[Scalars]] = defaultdict(list)
    with concurrent.futures.ProcessPoolExecutor(options.processes) as pool:
        for count, done in enumerate(pool.map(run, work), 1):
            samples[done.job.case] += done.samples
            plans[done.job.case].append(done.plan)
            shares = ", ".join(f"{s.scheme} {s.scalars[PROTECTED]:.0f} %" for s in done.samples)
            progress = f"{count}/{len(work)} {done.job.case}, seed {done.job.seed} ({done.wall_s:.1f} s)"
            console.print(f"{progress}: {shares}", highlight=False, soft_wrap=True)
    aims = list(aims_of(samples))
    for aim in aims:
        sign = "≥" if aim.better == "higher" else "≤"
        verdict = "met    " if aim.met else "NOT MET"
        console.print(f"{verdict} {aim.name}: {aim.value:g} (aim {sign} {aim.aim:g})", highlight=False)
    if options.nodes:
        return
    environment = results.environment(
        ("understudy", "highspy"),
        (),
        seeds={f"{s.nodes} nodes, {s.apps} apps, {s.mix}": s.seeds for s in SWEEPS},
        pairs_max=PAIRS_MAX,
        nodes_per_site=NODES_PER_SITE,
        sites_min=SITES_MIN,
        shares={str(criticality): share for criticality, share in SHARES.items()},
        detect_route_ms=detect_route_ms(),
        activate_ms=ACTIVATE_MS,
        load_ms_and_per_mb={
            "A2": CACHED_READ,
            "A2 uncached": UNCACHED_READ,
            "CPU": (LOAD_MS, LOAD_MS_PER_MB),
        },
    )
    path = results.write("evaluation", environment, list(rows_of(samples, plans)), aims, flat=True)
    console.print(f"written: {path}", highlight=False)


if __name__ == "__main__":
    main()
