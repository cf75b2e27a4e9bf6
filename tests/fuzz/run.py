"""Feed generated inputs to everything that reads bytes from outside: `make fuzz`, `make fuzz COUNT=10000`.

Prints how many inputs each target had, what became of them, the slowest one and what memory remained. A
failure is printed with its input and the command that replays it.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import fuzzing
import structlog
from archives_target import ArchivesTarget
from control_target import ControlTarget
from frames_target import FramesTarget
from fuzzing import Report, Target, say
from grpc_target import GrpcTarget
from http_target import HttpTarget
from manifests_target import ManifestsTarget
from peers_target import PeersTarget
from tensors_target import TensorsTarget

TARGETS: dict[str, Callable[[], Target]] = {
    target.name: target
    for target in (
        HttpTarget, FramesTarget, TensorsTarget, GrpcTarget, ManifestsTarget, ArchivesTarget, ControlTarget,
        PeersTarget,
    )
}  # fmt: skip
COUNT = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help=f"inputs for each target; default {COUNT:,}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all of them")
    parser.add_argument("--replay", help="an input as a failure showed it; with one --target")
    arguments = parser.parse_args()
    names = arguments.target or list(TARGETS)
    if arguments.replay is not None:
        say(TARGETS[names[0]]().check(fuzzing.read(arguments.replay)))
        return 0
    start_s = time.monotonic()
    say(f"seed {arguments.seed}, {arguments.count:,} inputs for each of: {', '.join(names)}")
    parts = fuzzing.cpus()
    jobs = []
    # Each part in a process of its own: what one run leaves behind is not counted as another's.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parts, mp_context=spawn, max_tasks_per_child=1) as pool:
        for name in names:
            edges = [arguments.count * part // parts for part in range(parts + 1)]
            for first, end in itertools.pairwise(edges):
                jobs.append(pool.submit(run_part, name, arguments.seed, first, end - first))
        reports = [job.result() for job in jobs]
    failed = False
    for name in names:
        failed |= show([report for report in reports if report.target == name])
    say(f"{sum(report.inputs for report in reports):,} inputs in {time.monotonic() - start_s:.0f} s")
    return int(failed)


def run_part(name: str, seed: int, first: int, count: int) -> Report:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    return fuzzing.run(TARGETS[name], seed, first, count)


def show(parts: list[Report]) -> bool:
    """Whether anything was wrong."""
    outcomes: dict[str, int] = {}
    for part in parts:
        for outcome, count in part.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
    findings = [finding for part in parts for finding in part.findings]
    grew = any(part.grew for part in parts)
    slowest = max(parts, key=lambda part: part.slowest_ms)
    inputs = sum(part.inputs for part in parts)
    say(f"\n{parts[0].target}: {inputs:,} inputs, {len(findings)} failures")
    say("  " + ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items())))
    say(f"  slowest {slowest.slowest_ms:.1f} ms (input {slowest.slowest_number})", end="; ")
    say(f"{sum(p.seconds for p in parts) / inputs * 1e6:.0f} us each", end="; ")
    blocks, rss_mb = max(p.blocks_grown for p in parts), max(p.rss_mb_grown for p in parts)
    say(f"grown by {blocks:,} objects, {rss_mb:.1f} MB{' : TOO MUCH' if grew else ''}")
    for finding in findings:
        command = f"{sys.executable} {Path(__file__).relative_to(Path.cwd())} --target {parts[0].target}"
        say(f"\ninput {finding.number}: {finding.error}")
        say(f"replay: {command} --replay {finding.pieces}")
    return bool(findings) or grew


if __name__ == "__main__":
    raise SystemExit(main())
