"""The tables that docs/generate.py writes from evaluation.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.evaluation import figures as f
from benchmarks.evaluation.recorded import Recorded, Sweep, recorded
from benchmarks.evaluation.schemes import SCHEMES, UNDERSTUDY
from benchmarks.evaluation.times import MAIN_TIMING, TIMINGS

MAIN: Sweep = (100, 1000, "slices")
MAIN_KIND = "node"
SHOWN_HEADROOMS = (0.05, 0.1, 0.2, 0.5, 1.0)
TIMES_HEADROOM = 0.5
# Heading -> (figure, which of its values, digits)
COLUMNS = {
    "recovered, %": (f.RECOVERED, "median", 1),
    "apps protected, %": (f.PROTECTED, "median", 1),
    "warm, %": (f.WARM, "median", 0),
    "accuracy lost first, %": (f.FIRST_LOST, "median", 2),
    "then, %": (f.AFTER_LOST, "median", 2),
    "memory, %": (f.OVERHEAD, "median", 1),
    "apps per GB": (f.PER_GB, "median", 1),
    "MTTR mean, ms": (f"{f.MTTR_MEAN}, {MAIN_TIMING}", "median", 0),
    "p50": (f.MTTR, "median", 0),
    "p99": (f.MTTR, "p99", 0),
}
TIMES = {
    "mean, ms": (f"{f.MTTR_MEAN}, {MAIN_TIMING}", "median", 0),
    "p50": (f.MTTR, "median", 0),
    "p99": (f.MTTR, "p99", 0),
    "warm: p50": (f.MTTR_WARM, "median", 0),
    "p99 warm": (f.MTTR_WARM, "p99", 0),
    "cold: mean": (f"{f.MTTR_COLD_MEAN}, {MAIN_TIMING}", "median", 0),
    "p50 cold": (f.MTTR_COLD, "median", 0),
    "p99 cold": (f.MTTR_COLD, "p99", 0),
    **{part.partition(", ")[2]: (part, "median", 0) for part in f.PARTS},
    **{f"mean, {t}": (f"{f.MTTR_MEAN}, {t}", "median", 0) for t in TIMINGS if t != MAIN_TIMING},
}
# Heading -> (scheme, figure, which of its values, digits)
SIZES = {
    "apps protected, %, worst seed": (UNDERSTUDY, f.PROTECTED, "min", 1),
    "accuracy lost, %": (UNDERSTUDY, f.AFTER_LOST, "median", 2),
    "primaries at full size, %": ("", f.FULL_SIZE, "median", 1),
    "planning, s": ("", f.PLANNING, "median", 2),
    "gap, %": ("", f.GAP, "median", 2),
}
Columns = dict[str, tuple[str, str, int]]


def summary(result: dict[str, Any]) -> Iterator[str]:
    """The aims, and one cluster at some headrooms; for docs/evaluation.md."""
    found = recorded(result["rows"])
    yield "| one node lost | measured | aim | |"
    yield "|---|---:|---:|---|"
    for aim in result["aims"]:
        sign = "≥" if aim["better"] == "higher" else "≤"
        met = "met" if aim["met"] else "**not met**"
        yield f"| {aim['name']} | {aim['value']:g} | {sign} {aim['aim']:g} | {met} |"
    yield from ("", f"{_sentence(MAIN)}, one node lost:", "")
    yield from _table(found, MAIN, MAIN_KIND, SHOWN_HEADROOMS, COLUMNS)
    yield from ("", f"Times at {100 * TIMES_HEADROOM:g} % headroom, the same cluster:", "")
    yield from _table(found, MAIN, MAIN_KIND, (TIMES_HEADROOM,), TIMES)
    yield from ("", "Understudy in clusters of each size, one node lost:", "")
    yield from _sizes(found)
    yield ""
    environment = result["environment"]
    machine = environment["machine"]
    yield f"By `make bench-evaluation`. {machine['cpu']}, {machine['cores']} cores, {environment['date']}."


def page(result: dict[str, Any]) -> Iterator[str]:
    """Every scheme in every case."""
    found = recorded(result["rows"])
    yield from (
        "# Protection schemes, all figures",
        "",
        "By `make bench-evaluation`; [what the figures mean](../evaluation.md). Medians over the seeds; p50",
        "and p99 over all recoveries of all seeds.",
    )
    for sweep in found.sweeps():
        for kind in found.kinds(sweep):
            headrooms = tuple(case.headroom for case in found.cases(sweep, kind))
            yield from ("", f"## {_sentence(sweep)}: {kind} lost", "")
            yield from _table(found, sweep, kind, headrooms, COLUMNS | {"all, %": (f.ALL_LOST, "median", 3)})


def _table(
    found: Recorded, sweep: Sweep, kind: str, headrooms: tuple[float, ...], columns: Columns
) -> Iterator[str]:
    yield f"| headroom | scheme | {' | '.join(columns)} |"
    yield f"|---:|---|{'---:|' * len(columns)}"
    for case in found.cases(sweep, kind):
        if case.headroom not in headrooms:
            continue
        shown = f"{100 * case.headroom:g} %"
        for scheme in SCHEMES:
            cells = [
                _cell(found.value(case, scheme, figure, of), digits)
                for figure, of, digits in columns.values()
            ]
            yield f"| {shown} | {scheme} | {' | '.join(cells)} |"
            shown = ""


def _sizes(found: Recorded) -> Iterator[str]:
    yield f"| nodes | apps | mix | headroom | {' | '.join(SIZES)} |"
    yield f"|---:|---:|---|---:|{'---:|' * len(SIZES)}"
    for sweep in found.sweeps():
        for case in found.cases(sweep, MAIN_KIND):
            if case.headroom not in SHOWN_HEADROOMS:
                continue
            cells = [
                _cell(found.value(case, scheme, figure, of), digits)
                for scheme, figure, of, digits in SIZES.values()
            ]
            shown = f"| {case.nodes:,} | {case.apps:,} | {case.mix} | {100 * case.headroom:g} % |"
            yield f"{shown} {' | '.join(cells)} |"


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _sentence(sweep: Sweep) -> str:
    nodes, apps, mix = sweep
    return f"{nodes:,} nodes, {apps:,} apps, mix “{mix}”"
