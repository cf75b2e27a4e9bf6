"""How long a plan takes, how far it is from the best possible, and how little moves when a node is lost.

Lives here: `make bench-plan`. Each plan is made in a process of its own, so that its memory can be told. A
replan is made in the process that made the plan, as a controller does; time includes the check by replay.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from rich.console import Console

from benchmarks import results
from benchmarks.evaluation.workloads import cluster
from benchmarks.results import Aim, Row
from understudy.core.planning.objective import place
from understudy.core.planning.plan import PlanInput, Planner, problem_of, usable_nodes
from understudy.core.planning.replay import replay
from understudy.settings.plan import PlanSettings
from understudy.wire.records import Plan

SIZES = tuple((nodes, apps) for nodes in (10, 100, 1000) for apps in (50, 1000, 10_000))
LARGEST = SIZES[-1]
# Along these, apps per node stay the same: for the growth.
DIAGONAL = ((10, 100), (32, 320), (100, 1000), (320, 3200), (1000, 10_000))
EXACT = ((5, 27), (10, 50))
EXACT_LIMIT_S = 10.0
EXACT_ROUNDS = 2
HEADROOMS = (0.1, 0.3)
MIX = "slices"
LOST_MAX = 5  # nodes that are lost in turn, each with everything else alive


class Measured(msgspec.Struct):
    """One process: a first plan, and one more for each of some nodes lost."""

    plan_s: float
    gap: float
    placed: int
    unplaced: int
    violations: int
    rss_mb: float
    replan_s: list[float]
    replan_gap: list[float]
    lost: list[int]  # replicas on the lost node
    started: list[int]  # replicas started because of it
    displaced: list[int]  # replicas that were stopped or moved although their node lives
    restaged: list[float]  # share of the contingencies that changed


def measure(nodes: int, apps: int, headroom: float, method: str, seed: int) -> Measured:
    made = cluster(nodes, apps, MIX, headroom, seed)
    settings = PlanSettings(method=method, time_limit_s=EXACT_LIMIT_S)  # type: ignore[arg-type]
    facts = PlanInput(made.nodes, made.apps, settings=settings)
    planner = Planner()
    planner.plan(PlanInput(made.nodes[:3], made.apps[:9], settings=settings), 0, "imports what it needs")
    began = time.perf_counter()
    plan = planner.plan(facts, 1, "first")
    found = Measured(
        plan_s=time.perf_counter() - began,
        gap=plan.gap,
        placed=len(plan.placements),
        unplaced=len(plan.unplaced),
        violations=_violations(plan, facts),
        rss_mb=0.0,
        replan_s=[], replan_gap=[], lost=[], started=[], displaced=[], restaged=[],
    )  # fmt: skip
    for node in made.nodes[:: max(1, nodes // LOST_MAX)][:LOST_MAX]:
        left = tuple(other for other in made.nodes if other is not node)
        lost = msgspec.structs.replace(facts, nodes=left, current=plan)
        began = time.perf_counter()
        after = planner.plan(lost, 2, f"node {node.name} is out")
        found.replan_s.append(time.perf_counter() - began)
        _compare(found, plan, after, lost, node.name)
    found.rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def _compare(found: Measured, plan: Plan, after: Plan, facts: PlanInput, node: str) -> None:
    runs = {place(placed) for placed in after.placements}
    found.replan_gap.append(after.gap)
    found.lost.append(sum(placed.node == node for placed in plan.placements))
    found.started.append(after.moved)
    found.displaced.append(sum(p.node != node and place(p) not in runs for p in plan.placements))
    found.violations += _violations(after, facts)
    changed = len(set(plan.contingencies) - set(after.contingencies))
    found.restaged.append(changed / max(1, len(plan.contingencies)))


def _violations(plan: Plan, facts: PlanInput) -> int:
    """What the check finds wrong; an app left silent beside free room counts, too."""
    apps, nodes = problem_of(facts).apps, usable_nodes(facts)
    return len(replay(plan, apps, nodes, facts.settings.survive).violations)


def in_process(nodes: int, apps: int, headroom: float, method: str, seed: int) -> Measured:
    arguments = [str(nodes), str(apps), str(headroom), method, str(seed)]
    command = [sys.executable, "-m", "benchmarks.planning", "--one", *arguments]
    done = subprocess.run(command, check=True, capture_output=True)
    return msgspec.json.decode(done.stdout, type=Measured)


def name_of(nodes: int, apps: int, headroom: float, method: str) -> str:
    return f"{nodes} nodes, {apps} apps, {headroom:.0%} headroom, {method}"


FIGURES = {  # field of Measured -> (words, unit)
    "plan_s": ("plan", "s"),
    "gap": ("gap", "%"),
    "rss_mb": ("memory", "MB"),
    "unplaced": ("apps without a primary", ""),
    "replan_s": ("replan after a node is lost", "s"),
    "replan_gap": ("gap of that", "%"),
    "lost": ("replicas lost", ""),
    "started": ("replicas started", ""),
    "displaced": ("replicas displaced on living nodes", ""),
    "restaged": ("contingencies staged anew", "%"),
}


def rows_of(name: str, rounds: list[Measured]) -> Iterator[Row]:
    for field, (words, unit) in FIGURES.items():
        found = [getattr(m, field) for m in rounds]
        values = [value for one in found for value in (one if isinstance(one, list) else [one])]
        yield results.row(f"{name}: {words}", unit, [100 * v if unit == "%" else v for v in values])


def growth(seconds: dict[int, float]) -> tuple[float, float]:
    """Time as a power of the number of apps, by least squares of the logarithms: exponent, s for 1,000."""
    points = [(math.log(apps / 1000), math.log(s)) for apps, s in seconds.items()]
    fit = statistics.linear_regression(*zip(*points, strict=True))
    return fit.slope, math.exp(fit.intercept)


def aims_of(largest: dict[float, list[Measured]]) -> Iterator[Aim]:
    """Each headroom has to meet them by its median over the rounds, and each limit by every round."""
    every = [m for rounds in largest.values() for m in rounds]
    plan_s = max(statistics.median(m.plan_s for m in rounds) for rounds in largest.values())
    replan_s = max(statistics.median(s for m in rounds for s in m.replan_s) for rounds in largest.values())
    yield results.aim("1,000 nodes, 10,000 apps: plan, s", plan_s, 5.0, "lower")
    yield results.aim(
        "the same: of the best known bound, %", 100 - 100 * max(m.gap for m in every), 99.0, "higher"
    )
    yield results.aim("the same: memory, MB", max(m.rss_mb for m in every), 1024.0, "lower")
    yield results.aim("the same: replan after a node is lost, s", replan_s, 0.5, "lower")
    beyond = max(started - lost for m in every for started, lost in zip(m.started, m.lost, strict=True))
    yield results.aim("the same: replicas started beyond those lost", beyond, 0.0, "lower")
    yield results.aim("plans that the check refused", sum(m.violations for m in every), 0.0, "lower")


def table(content: dict[str, Any]) -> list[str]:
    """The results as a table of Markdown."""
    medians = {row["figure"]: row["median"] for row in content["rows"]}
    columns = ("plan", "gap", "memory", "replan after a node is lost", "replicas lost", "replicas started")
    lines = [
        "| nodes x apps | headroom | method | plan, s | gap, % | memory, MB | replan, s | lost | started |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(figure.partition(":")[0] for figure in medians if " nodes, " in figure):
        nodes, apps, headroom, method = name.split(", ")
        values = [medians[f"{name}: {column}"] for column in columns]
        figures = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
        size = f"{nodes.removesuffix(' nodes')} x {apps.removesuffix(' apps')}"
        lines.append(f"| {size} | {headroom.removesuffix(' headroom')} | {method} | {' | '.join(figures)} |")
    lines.append("")
    for figure, median in medians.items():
        if "exponent" in figure:
            lines.append(f"- {figure[0].upper()}{figure[1:]} with the number of apps: {median:.2f}.")
    met = {True: "met", False: "**not met**"}
    lines += [
        f"- {a['name'][0].upper()}{a['name'][1:]}: {a['value']:g} (aim {a['aim']:g}): {met[a['met']]}."
        for a in content["aims"]
    ]
    machine, date = content["environment"]["machine"], content["environment"]["date"]
    return [*lines, "", f"Medians; {machine['cpu']}, {machine['cores']} cores, {date}; `make bench-plan`."]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--one", nargs=5, metavar=("NODES", "APPS", "HEADROOM", "METHOD", "SEED"))
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    if given.one:
        nodes, apps, headroom, method, seed = given.one
        found = measure(int(nodes), int(apps), float(headroom), method, int(seed))
        sys.stdout.buffer.write(msgspec.json.encode(found))
    else:
        run(given.rounds)


def run(rounds: int) -> None:
    console = Console()
    rows: list[Row] = []
    largest: dict[float, list[Measured]] = {}
    times: dict[float, dict[int, float]] = {headroom: {} for headroom in HEADROOMS}
    cases = [(size, h, "heuristic") for h in HEADROOMS for size in dict.fromkeys((*SIZES, *DIAGONAL))]
    cases += [(size, h, "exact") for h in HEADROOMS for size in EXACT]
    for size, headroom, method in cases:
        count = rounds if method == "heuristic" else EXACT_ROUNDS
        found = [in_process(*size, headroom, method, seed) for seed in range(count)]
        name = name_of(*size, headroom, method)
        rows += rows_of(name, found)
        plan_s = statistics.median(m.plan_s for m in found)
        gap = statistics.median(m.gap for m in found)
        console.print(f"{name}: {plan_s:.2f} s, gap {gap:.3%}", highlight=False)
        if size == LARGEST:
            largest[headroom] = found
        if size in DIAGONAL and method == "heuristic":
            times[headroom][size[1]] = plan_s
    for headroom, seconds in times.items():
        exponent, per_thousand_s = growth(seconds)
        name = f"ten apps a node, {headroom:.0%} headroom"
        rows.append(results.row(f"{name}, exponent of growth", "", [exponent]))
        rows.append(results.row(f"{name}, time at 1,000 apps by that fit", "s", [per_thousand_s]))
    aims = list(aims_of(largest))
    for aim in aims:
        verdict = "met:    " if aim.met else "NOT MET:"
        console.print(f"{verdict} {aim.name}: {aim.value:g} (aim {aim.aim:g})", highlight=False)
    environment = results.environment(["highspy", "numpy"], [], mix=MIX, rounds=rounds)
    console.print(f"written: {results.write('plan', environment, rows, aims, flat=True)}", highlight=False)


if __name__ == "__main__":
    main()
