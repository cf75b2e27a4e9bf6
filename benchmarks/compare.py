"""Understudy and its peers: the same models on the same machine in the same run, closed and open loop.

Every contender runs alone, in turn, round after round, so that whatever else the machine does meets all of
them. Load and servers share the machine's cores: the figures are for comparing, not for sizing. A contender
is measured only after it answered as ONNX Runtime does without a server.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import load, models, results
from benchmarks.contenders import LINE_UP
from benchmarks.load import Measurement
from benchmarks.processes import Contender, MissingError, answer, running, version
from benchmarks.quiet import Quiet

OURS = "Understudy"
CONNECTIONS, IMAGE_CONNECTIONS, GRPC_CALLS = 32, 8, 32
OPEN_PART = 0.7  # of what the contender did in the closed loop of the same round
COMMON_RATE_PER_S = 200  # what the slowest contender can do too
WARM_UP_S = 1
CLOSED = f"JSON, {CONNECTIONS} connections"
ONE = "JSON, 1 connection"
OPEN = f"JSON, open loop at {OPEN_PART:.0%} of its capacity"
COMMON = f"JSON, open loop at {COMMON_RATE_PER_S}/s"
IMAGE = f"image, {IMAGE_CONNECTIONS} connections"
IMAGE_OPEN = f"image, open loop at {OPEN_PART:.0%} of its capacity"
GRPC = f"gRPC, {GRPC_CALLS} calls"

PEERS = {
    "mlserver": "mlserver",
    "litserve": "litserve",
    "bentoml": "bentoml",
    "rayserve": "ray",
    "fastapi": "fastapi",
}
PACKAGES = ("understudy", "onnxruntime", "uvloop", "httptools", "msgspec")
PROGRAMS = (("haproxy", "-v"), ("wrk", "-v"))
# Ours divided by theirs, throughput in JSON: a set-up, or the best of those whose names begin so.
AIMS = {
    "MLServer": 5.0,
    "LitServe": 15.0,
    "BentoML": 30.0,
    "Ray Serve": 40.0,
    "Ray Serve, as installed": 40.0,
    "FastAPI, uvicorn x 1": 4.0,
    "FastAPI": 4.0,
    "HAProxy": 0.8,
}
ADDED_US_MAX = 100.0

PEERS_WITH_MORE = ("MLServer", "LitServe", "BentoML", "Ray Serve")

Measured = dict[tuple[str, str], dict[int, Measurement]]  # (contender, load) -> round -> what was seen
Missing = dict[str, str]  # contender, or contender and load -> why


class Run:
    """All rounds. What can't be measured is reported, and the others are measured all the same.

    What was disturbed by other users of the machine is measured once more; then it counts, and is marked.
    """

    def __init__(self, work: Path, seconds: int, console: Console, quiet: Quiet) -> None:
        self._quiet = quiet
        self.measured: Measured = defaultdict(dict)
        self.missing: Missing = {}
        self._work = work
        self._seconds = seconds
        self._console = console
        models.write_models(work)
        self._payloads = models.write_payloads(work)
        self._expected = {name: models.right_answer(work, name) for name in models.SHAPES}

    def round(self, turn: int, only: list[str]) -> None:
        for name, make in LINE_UP.items():
            if name in self.missing or (only and name not in only):
                continue
            self._console.print(f"round {turn}: {name}", highlight=False)
            try:
                contender = make(self._work)
                for _ in range(2):
                    self._quiet.wait()
                    with running(contender, self._work):
                        self._measure_all(turn, contender)
                    if not self._quiet.note(f"{name}, round {turn}"):
                        self._quiet.disturbed.pop(f"{name}, round {turn}", None)
                        break
            except (MissingError, RuntimeError) as error:
                self._miss(name, error)

    def _miss(self, what: str, error: Exception) -> None:
        self.missing[what] = str(error).partition("\n")[0]
        self._console.print(f"not measured: {what}: {error}", highlight=False, markup=False)

    def _measure_all(self, turn: int, contender: Contender) -> None:
        payload, url, seconds = self._payloads[contender.json], contender.url, self._seconds
        self._check(models.is_right(answer(url, payload), self._expected["digits"]))
        load.closed(url, payload, CONNECTIONS, WARM_UP_S)
        capacity = load.closed(url, payload, CONNECTIONS, seconds)
        self._keep(turn, contender, CLOSED, capacity)
        self._keep(turn, contender, ONE, load.closed(url, payload, 1, seconds))
        if contender.closed_only:
            return
        for name, rate_per_s in ((OPEN, OPEN_PART * capacity.requests_per_s), (COMMON, COMMON_RATE_PER_S)):
            self._keep(turn, contender, name, load.opened(url, payload, rate_per_s, seconds))
        for name, measure in (("image", self._measure_image), ("gRPC", self._measure_grpc)):
            what = f"{contender.name}, {name}"
            if what not in self.missing:
                try:
                    measure(turn, contender)
                except (MissingError, RuntimeError) as error:
                    self._miss(what, error)

    def _measure_image(self, turn: int, contender: Contender) -> None:
        payload, url = self._payloads[contender.image], contender.url
        self._check(models.is_right(answer(url, payload), self._expected["image"]))
        capacity = load.closed(url, payload, IMAGE_CONNECTIONS, self._seconds)
        self._keep(turn, contender, IMAGE, capacity)
        rate_per_s = OPEN_PART * capacity.requests_per_s
        self._keep(turn, contender, IMAGE_OPEN, load.opened(url, payload, rate_per_s, self._seconds))

    def _measure_grpc(self, turn: int, contender: Contender) -> None:
        if not contender.grpc:
            return
        payload = self._payloads["digits as protobuf"]
        self._check(
            models.is_right_protobuf(load.grpc_answer(contender.grpc, payload), self._expected["digits"])
        )
        seen = load.grpc(contender.grpc, payload, GRPC_CALLS, self._seconds)
        self._keep(turn, contender, GRPC, seen)

    def _check(self, right: bool) -> None:
        if not right:
            raise MissingError("it gave a wrong answer")

    def _keep(self, turn: int, contender: Contender, what: str, seen: Measurement) -> None:
        self.measured[contender.name, what][turn] = seen


def rows_of(measured: Measured) -> Iterator[results.Row]:
    for (name, what), rounds in measured.items():
        runs = rounds.values()
        yield results.row(f"{name}, {what}: throughput", "requests/s", [r.requests_per_s for r in runs])
        yield results.row(f"{name}, {what}: p50", "us", [r.p50_us for r in runs])
        yield results.row(f"{name}, {what}: p99", "us", [r.p99_us for r in runs])
        yield results.row(f"{name}, {what}: failed", "requests", [r.failed for r in runs])


def ratios(measured: Measured, what: str, theirs: str) -> list[float]:
    """Ours divided by theirs, round by round: a slow minute of the machine is on both sides."""
    ours, others = measured.get((OURS, what), {}), measured.get((theirs, what), {})
    return [ours[turn].requests_per_s / others[turn].requests_per_s for turn in ours.keys() & others.keys()]


def best(measured: Measured, rival: str) -> str:
    """The set-up of `rival` with the highest median throughput in JSON; `rival` if there is none."""
    medians = {
        name: statistics.median(r.requests_per_s for r in rounds.values())
        for (name, what), rounds in measured.items()
        if what == CLOSED and name.startswith(rival)
    }
    return max(medians, key=lambda name: medians[name], default=rival)


def compared(measured: Measured) -> Iterator[results.Row]:
    """Every ratio of throughputs, and what a hop adds."""
    names = dict.fromkeys(name for name, _ in measured)
    for what in (CLOSED, IMAGE, GRPC):
        for name in names:
            if name not in (OURS, "Understudy x 2", "worker over HTTP") and (
                found := ratios(measured, what, name)
            ):
                yield results.row(f"{OURS} / {name}, {what}: throughput", "ratio", found)
    for proxy, name in (("the gateway", OURS), ("HAProxy", best(measured, "HAProxy"))):
        through, direct = measured.get((name, ONE), {}), measured.get(("worker over HTTP", ONE), {})
        added = [through[turn].p50_us - direct[turn].p50_us for turn in through.keys() & direct.keys()]
        if added:
            yield results.row(f"added by {proxy} at one connection: p50", "us", added)


def aims_of(measured: Measured) -> Iterator[results.Aim]:
    """Those whose contender was measured."""
    for name, aim in {best(measured, rival): aim for rival, aim in AIMS.items()}.items():
        if found := ratios(measured, CLOSED, name):
            median = statistics.median(found)
            yield results.aim(f"{OURS} / {name}: throughput", median, aim, "higher", rounds=len(found))
    for row in compared(measured):
        if row.figure.startswith("added by the gateway"):
            yield results.aim(f"{row.figure}, us", row.median, ADDED_US_MAX, "lower", rounds=row.n)


def about_http(figure: str) -> bool:
    """Is it of JSON in closed loop, of servers that speak nothing but HTTP? That has a file of its own."""
    return not any(other in figure for other in ("image", "gRPC", "open loop", *PEERS_WITH_MORE))


def show(console: Console, measured: Measured, missing: Missing) -> None:
    table = Table(title="medians over the rounds")
    for heading in ("server", "load", "requests/s", "p50 µs", "p99 µs", "failed"):
        table.add_column(heading, justify="left" if heading in ("server", "load") else "right")
    for (name, what), rounds in sorted(measured.items(), key=lambda item: item[0][1]):
        runs = rounds.values()
        figures = ([getattr(r, f) for r in runs] for f in ("requests_per_s", "p50_us", "p99_us", "failed"))
        table.add_row(name, what, *(f"{statistics.median(values):,.0f}" for values in figures))
    console.print(table)
    for row in compared(measured):
        console.print(
            f"{row.figure}: {row.median:g} {row.unit} ({row.min:g} to {row.max:g})", highlight=False
        )
    for aim in aims_of(measured):
        sign = "≥" if aim.better == "higher" else "≤"
        verdict = "met    " if aim.met else "NOT MET"
        console.print(f"{verdict} {aim.name}: {aim.value:g} (aim {sign} {aim.aim:g})", highlight=False)
    for what, why in missing.items():
        console.print(f"not measured: {what}: {why}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument(
        "--only", nargs="*", default=[], choices=LINE_UP, metavar="NAME", help="and write nothing"
    )
    options = parser.parse_args()
    console = Console()
    load_before = os.getloadavg()[0]
    quiet = Quiet(console)
    with tempfile.TemporaryDirectory(prefix="understudy-bench-") as folder:
        run = Run(Path(folder), options.seconds, console, quiet)
        for turn in range(1, options.rounds + 1):
            run.round(turn, options.only)
    quiet.stop()
    show(console, run.measured, run.missing)
    if options.only:
        return
    environment = results.environment(
        PACKAGES,
        PROGRAMS,
        peers={package: version(peer, package) for peer, package in PEERS.items()},
        seed=models.SEED,
        rounds=options.rounds,
        duration_s=options.seconds,
        load_before=round(load_before, 2),
        missing=run.missing,
        disturbed=quiet.disturbed,
    )
    rows = [*rows_of(run.measured), *compared(run.measured)]
    aims = list(aims_of(run.measured))
    for name, part in (("peers", lambda _: True), ("http", about_http)):
        parts = [row for row in rows if part(row.figure)], [aim for aim in aims if part(aim.name)]
        console.print(f"written: {results.write(name, environment, *parts)}", highlight=False)


if __name__ == "__main__":
    main()
