"""JSON inference of one small model over HTTP: Understudy, FastAPI + ONNX Runtime, HAProxy + the same worker.

Every contender runs alone, in turn, round after round, so that whatever else the machine does meets all of
them. Load and servers share the machine's cores: the figures are for comparing, not for sizing.
Throughput and latencies come from 32 connections; what a hop adds comes from one connection.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import contenders, digits_model, results
from benchmarks.load import Measurement, measure

CONNECTIONS = 32
FASTAPI_ONE_PROCESS = "FastAPI, uvicorn x 1"  # one process has the model, as one replica has it here
WARM_UP_S = 1
PACKAGES = ("understudy", "onnxruntime", "uvloop", "httptools", "msgspec", "fastapi", "uvicorn", "pydantic")
PROGRAMS = (("haproxy", "-v"), ("wrk", "-v"))

Measured = dict[tuple[str, int], list[Measurement]]  # (contender, connections) -> one for each round


def run(rounds: int, duration_s: float, console: Console) -> Measured:
    measured: Measured = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="understudy-bench-") as folder:
        work = Path(folder)
        digits_model.write_model(work / "model.onnx")
        expected = digits_model.right_answer(work / "model.onnx")
        body_path = work / "body.json"
        body_path.write_text(json.dumps(digits_model.request()))
        for turn in range(rounds):
            for contender in line_up(work):
                console.print(f"round {turn + 1} of {rounds}: {contender.name}", highlight=False)
                with contenders.running(contender, work, body_path.read_bytes(), expected):
                    measure(contender.url, body_path, CONNECTIONS, WARM_UP_S)
                    for connections in (CONNECTIONS, 1):
                        result = measure(contender.url, body_path, connections, duration_s)
                        measured[contender.name, connections].append(result)
    return measured


def line_up(work: Path) -> list[contenders.Contender]:
    """More than one set-up of the others, because which is best depends on the machine."""
    return [
        contenders.understudy(work),
        contenders.fastapi(work, workers=1),
        contenders.fastapi(work, workers=2),
        contenders.haproxy(work, threads=1),
        contenders.haproxy(work, threads=2),
        contenders.http_worker(work),
    ]


def rows_of(measured: Measured) -> list[results.Row]:
    rows = []
    for (name, connections), runs in measured.items():
        where = f"{name}, {connections} connection{'s' if connections > 1 else ''}"
        rows.append(results.row(f"{where}: throughput", "requests/s", [r.requests_per_s for r in runs]))
        rows.append(results.row(f"{where}: p50", "us", [r.p50_us for r in runs]))
        rows.append(results.row(f"{where}: p99", "us", [r.p99_us for r in runs]))
    return rows


def comparisons(measured: Measured) -> list[results.Row]:
    """Round by round, so that a slow minute of the machine is on both sides of the division."""
    ours = [r.requests_per_s for r in measured["Understudy", CONNECTIONS]]
    rows = []
    for name in (FASTAPI_ONE_PROCESS, best(measured, "FastAPI"), best(measured, "HAProxy")):
        theirs = [r.requests_per_s for r in measured[name, CONNECTIONS]]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        rows.append(results.row(f"Understudy / {name}: throughput", "ratio", ratios))
    for proxy, name in (("the gateway", "Understudy"), ("HAProxy", best(measured, "HAProxy"))):
        pairs = zip(measured[name, 1], measured["worker over HTTP", 1], strict=True)
        added = [through.p50_us - direct.p50_us for through, direct in pairs]
        rows.append(results.row(f"added by {proxy} at one connection: p50", "us", added))
    return rows


def best(measured: Measured, rival: str) -> str:
    """The set-up of `rival` with the highest median throughput."""
    medians = {
        name: statistics.median(r.requests_per_s for r in runs)
        for (name, connections), runs in measured.items()
        if connections == CONNECTIONS and name.startswith(rival)
    }
    return max(medians, key=lambda name: medians[name])


def aims_of(compared: list[results.Row]) -> list[results.Aim]:
    one_process, fastapi, haproxy, added, _ = compared
    return [
        results.aim(one_process.figure, one_process.median, 4.0, "higher"),
        results.aim(fastapi.figure, fastapi.median, 4.0, "higher"),
        results.aim(haproxy.figure, haproxy.median, 0.7, "higher"),
        results.aim(f"{added.figure}, us", added.median, 100.0, "lower"),
    ]


def show(console: Console, measured: Measured, compared: list[results.Row], aims: list[results.Aim]) -> None:
    table = Table(title="medians over the rounds")
    for heading in ("server", "connections", "requests/s", "p50 µs", "p99 µs"):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    for (name, connections), runs in sorted(measured.items(), key=lambda item: -item[0][1]):
        figures = ([r.requests_per_s for r in runs], [r.p50_us for r in runs], [r.p99_us for r in runs])
        table.add_row(name, str(connections), *(f"{statistics.median(values):,.0f}" for values in figures))
    console.print(table)
    for row in compared:
        spread = f"{row.min:g} to {row.max:g}"
        console.print(f"{row.figure}: {row.median:g} {row.unit} ({spread})", highlight=False)
    for aim in aims:
        sign = "≥" if aim.better == "higher" else "≤"
        verdict = "met    " if aim.met else "NOT MET"
        console.print(f"{verdict} {aim.name}: {aim.value:g} (aim {sign} {aim.aim:g})", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    options = parser.parse_args()
    console = Console()
    load_before = os.getloadavg()[0]
    measured = run(options.rounds, options.seconds, console)
    compared = comparisons(measured)
    environment = results.environment(
        PACKAGES,
        PROGRAMS,
        seed=digits_model.SEED,
        rounds=options.rounds,
        duration_s=options.seconds,
        load_before=round(load_before, 2),
    )
    rows = rows_of(measured) + compared
    aims = aims_of(compared)
    path = results.write("http", environment, rows, aims)
    show(console, measured, compared, aims)
    console.print(f"written: {path}", highlight=False)


if __name__ == "__main__":
    main()
