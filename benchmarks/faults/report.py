"""Rows, aims and the table of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks import results
from benchmarks.faults.faults import Fault
from benchmarks.faults.windows import ADDED, ADMITTED, FAILED, GOODPUT, OBJECTIVE_S, SHED_P99, Figures

OURS = "Understudy"
ADDED_MS_MAX = {Fault.KILL: 20.0, Fault.NODE: 20.0, Fault.FREEZE: 60.0}
GOODPUT_MIN = 0.9
SHED_MS_MAX = 5.0

Measured = Mapping[tuple[str, Fault], Sequence[Figures]]  # (server, fault) -> each repetition


def rows_of(measured: Measured) -> Iterator[results.Row]:
    for (name, fault), repetitions in measured.items():
        for figure in dict.fromkeys(figure for figures in repetitions for figure in figures):
            values = [figures[figure] for figures in repetitions if figure in figures]
            what, _, unit = figure.rpartition(", ")
            yield results.row(f"{name}, {fault}: {what or figure}", unit if what else "ratio", values)


def aims_of(measured: Measured) -> Iterator[results.Aim]:
    """No failed request in any repetition; of times and ratios the median counts."""
    rows = {(row.figure, row.unit): row for row in rows_of(measured)}

    def found(fault: Fault, figure: str) -> results.Row | None:
        what, _, unit = figure.rpartition(", ")
        return rows.get((f"{OURS}, {fault}: {what or figure}", unit if what else "ratio"))

    for fault, added_ms in ADDED_MS_MAX.items():
        if row := found(fault, FAILED):
            yield results.aim(f"{fault}: failed per 10,000, worst of {row.n}", row.max, 0.0, "lower")
        if row := found(fault, ADDED):
            yield results.aim(f"{fault}: p99 added, ms", row.median, added_ms, "lower")
    for figure, name, value, better in (
        (GOODPUT, "goodput / capacity", GOODPUT_MIN, "higher"),
        (ADMITTED, "p99 of what was admitted, ms", 1000 * OBJECTIVE_S, "lower"),
        (SHED_P99, "p99 of what was shed, ms", SHED_MS_MAX, "lower"),
    ):
        if row := found(Fault.OVERLOAD, figure):
            yield results.aim(f"{Fault.OVERLOAD}: {name}", row.median, value, better)


def show(console: Console, measured: Measured) -> None:
    table = Table(title="over the repetitions")
    for heading in ("server, fault: figure", "unit", "n", "min", "median", "max"):
        table.add_column(heading, justify="left" if heading.startswith(("server", "unit")) else "right")
    for row in rows_of(measured):
        values = (f"{value:,.2f}" for value in (row.min, row.median, row.max))
        table.add_row(row.figure, row.unit, str(row.n), *values)
    console.print(table)
    for aim in aims_of(measured):
        sign = "≥" if aim.better == "higher" else "≤"
        verdict = "met    " if aim.met else "NOT MET"
        console.print(f"{verdict} {aim.name}: {aim.value:g} (aim {sign} {aim.aim:g})", highlight=False)
