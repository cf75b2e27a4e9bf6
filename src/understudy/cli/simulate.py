"""`understudy simulate`: the cluster's own decisions under virtual time and faults drawn from a seed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import perf_counter

import msgspec
from rich.text import Text

from understudy.cli.output import Output
from understudy.sim.scenario import NOTHING, SimScenario
from understudy.sim.seeds import Total, run, run_all, scenario_of
from understudy.wire.errors import ConfigError


class Summary(msgspec.Struct):
    """Of many seeds. `failed`: seed -> what must not have happened."""

    first: int
    seeds: int
    failed: dict[str, str]
    simulated_s: float
    took_s: float
    processor_s: float
    simulated_per_s: float
    outcomes: dict[str, int]


def simulate(seed: int, count: int, only: list[str], shrink: bool, output: Output) -> bool:
    """One seed with its timeline, or many. Whether nothing happened that must not."""
    if count > 1:
        return _simulate_all(seed, count, output)
    scenario = scenario_of(seed)
    if only:
        unknown = sorted(set(only) - {*scenario.parts, NOTHING})
        if unknown:
            raise ConfigError(f"no part {unknown[0]!r}; there are: {', '.join(scenario.parts)}")
        scenario = scenario.only(only)
    if shrink:
        scenario = _shrink(scenario, output)
    return _replay(scenario, output)


def _simulate_all(first: int, count: int, output: Output) -> bool:
    began_s, total = perf_counter(), Total()
    for done in run_all(first, count, os.cpu_count() or 1):
        total.add(done)
        if done.failure:
            output.note(f"seed {done.seed}: {done.failure}")
    took_s = perf_counter() - began_s
    summary = Summary(
        first,
        total.seeds,
        {str(done.seed): done.failure for done in total.failed},
        round(total.simulated_s, 1),
        round(took_s, 1),
        round(total.processor_s, 1),
        round(total.simulated_s / took_s),
        dict(total.outcomes),
    )
    if output.as_json:
        output.data(summary)
    else:
        output.show(*(Text(line) for line in _lines(summary)))
    if summary.failed:
        seed = next(iter(summary.failed))
        output.note(
            f"see one with: understudy simulate --seed {seed}; what matters of it: with --shrink, too"
        )
    return not summary.failed


def _lines(summary: Summary) -> Iterator[str]:
    for outcome, requests in sorted(summary.outcomes.items()):
        yield f"{outcome:30} {requests:>12,}"
    yield (
        f"{summary.seeds:,} seeds: {summary.simulated_s:,.0f} s simulated in {summary.took_s:,.1f} s "
        f"({summary.processor_s:,.1f} s of processor time), {summary.simulated_per_s:,.0f} s per s, "
        f"{len(summary.failed)} violations"
    )


def _shrink(scenario: SimScenario, output: Output) -> SimScenario:
    """Raises `ConfigError` without what it needs."""
    try:
        from understudy.sim.shrinking import smallest
    except ImportError as error:
        raise ConfigError("shrinking needs Hypothesis: pip install hypothesis") from error
    output.note("looking for a smaller run that fails as well; this takes up to some minutes")
    return smallest(scenario)


def _replay(scenario: SimScenario, output: Output) -> bool:
    done = run(scenario, timeline=True)
    if output.as_json:
        output.data(done)
    else:
        output.show(*(Text(line) for line in done.timeline))
        output.show(Text(done.failure or "nothing happened that must not"))
    if done.failure:
        output.note(f"replay it with: {scenario.command}")
    return not done.failure
