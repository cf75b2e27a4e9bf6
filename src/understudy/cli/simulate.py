"""`understudy simulate`: the cluster's own decisions under virtual time and faults drawn from a seed."""

from __future__ import annotations

import os
from time import perf_counter

import msgspec
from rich.text import Text

from understudy.cli.output import Output
from understudy.sim.seeds import Total, run, run_all


class Summary(msgspec.Struct):
    """Of many seeds. `failed`: seed -> what must not have happened."""

    first: int
    seeds: int
    failed: dict[str, str]
    simulated_per_s: float
    took_s: float
    outcomes: dict[str, int]


def simulate(seed: int, count: int, output: Output) -> bool:
    """One seed with its timeline, or many. Whether nothing happened that must not."""
    if count == 1:
        return _replay(seed, output)
    began_s, total = perf_counter(), Total()
    for done in run_all(seed, count, os.cpu_count() or 1):
        total.add(done)
        if done.failure:
            output.note(f"seed {done.seed}: {done.failure}")
    took_s = perf_counter() - began_s
    failed = {str(done.seed): done.failure for done in total.failed}
    summary = Summary(
        seed, total.seeds, failed, round(total.simulated_s / took_s), round(took_s, 1), dict(total.outcomes)
    )
    if output.as_json:
        output.data(summary)
    else:
        _show(summary, output)
    return not failed


def _show(summary: Summary, output: Output) -> None:
    for outcome, requests in sorted(summary.outcomes.items()):
        output.show(Text(f"{outcome:30} {requests:>12,}"))
    output.show(
        Text(
            f"{summary.seeds:,} seeds, {len(summary.failed)} violations, "
            f"{summary.simulated_per_s:,.0f} s simulated per s, {summary.took_s:.1f} s"
        )
    )
    if summary.failed:
        output.note(f"replay one with: understudy simulate --seed {next(iter(summary.failed))}")


def _replay(seed: int, output: Output) -> bool:
    done = run(seed, timeline=True)
    if output.as_json:
        output.data(done)
    else:
        output.show(*(Text(line) for line in done.timeline))
        output.show(Text(done.failure or "nothing happened that must not"))
    return not done.failure
