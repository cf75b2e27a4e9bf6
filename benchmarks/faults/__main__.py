"""Understudy and its peers while they are broken: the same faults at the same steady load, in the same run.

Every server has two replicas of a model that waits (`benchmarks.faults.accelerator`). A repetition begins
when the server is whole: both replicas answer, and it says so itself where it can. If it isn't in time after
a repetition, that is counted, and it is started afresh.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from rich.console import Console

from benchmarks import results
from benchmarks.faults.faults import Fault, Strike
from benchmarks.faults.load import opened, write_payload
from benchmarks.faults.report import OURS, aims_of, rows_of, show
from benchmarks.faults.servers import LINE_UP, ONE_MACHINE, REPLICAS, Server
from benchmarks.faults.windows import Figures, fault_figures, overload_figures
from benchmarks.load import closed
from benchmarks.models import SEED
from benchmarks.processes import MissingError, version
from understudy.wire.errors import UnderstudyError

RATE_PER_S = 100.0  # a quarter of what two replicas can do, half of what is left of them
STEADY_S = 1.5
FAULT_S = 3.0
CAPACITY_S = 2
CAPACITY_CONNECTIONS = 8
OVERLOAD_FACTOR = 3
OVERLOAD_S = 4.0
RECOVERY_TIMEOUT_S = 30.0
REST_S = 1.0  # between a recovery and the next fault's load
POLL_S = 0.1

PEERS = {"mlserver": "mlserver", "litserve": "litserve", "rayserve": "ray"}
PACKAGES = ("understudy", "uvloop", "httptools", "msgspec")
PROGRAMS = (("haproxy", "-v"), ("wrk", "-v"))


class Run:
    """All repetitions of all faults on all servers."""

    def __init__(self, work: Path, console: Console) -> None:
        self.measured: dict[tuple[str, Fault], list[Figures]] = defaultdict(list)
        self.restarts: dict[tuple[str, Fault], int] = defaultdict(int)
        self.missing: dict[str, str] = {}
        self._work = work
        self._console = console
        self._payload = write_payload(work)

    def server(self, name: str, faults: list[Fault], repetitions: int) -> None:
        for fault in faults:
            if fault is Fault.NODE and name in ONE_MACHINE:
                self.missing[f"{name}, {fault}"] = ONE_MACHINE[name]
                continue
            try:
                self._fault(name, fault, repetitions)
            except (MissingError, RuntimeError, UnderstudyError) as error:
                self.missing[f"{name}, {fault}"] = str(error).partition("\n")[0]
                self._console.print(f"not measured: {name}, {fault}: {error}", highlight=False, markup=False)

    def _fault(self, name: str, fault: Fault, repetitions: int) -> None:
        """All repetitions, on one instance of the server as long as it recovers."""
        left = repetitions
        while left:
            server = LINE_UP[name](self._work)
            with server.running():
                if not self._until_whole(server):
                    raise MissingError(f"no {REPLICAS} replicas answer")
                while left:
                    left -= 1
                    time.sleep(REST_S)
                    self._repeat(server, fault)
                    if not self._until_whole(server):
                        self.restarts[name, fault] += 1
                        self._console.print(f"{name} has not recovered", highlight=False)
                        break

    def _repeat(self, server: Server, fault: Fault) -> None:
        figures = self._overload(server) if fault is Fault.OVERLOAD else self._break(server, fault)
        self.measured[server.name, fault].append(figures)
        words = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
        self._console.print(f"{server.name}, {fault}: {words}", highlight=False, soft_wrap=True)

    def _break(self, server: Server, fault: Fault) -> Figures:
        strike = Strike(server, fault, server.busiest(self._payload), self._work)
        with strike, opened(server.url, RATE_PER_S) as samples:  # undone when all have been answered
            time.sleep(STEADY_S)
            struck_s = strike()
            time.sleep(FAULT_S)
        return fault_figures(samples, struck_s, STEADY_S, FAULT_S)

    def _overload(self, server: Server) -> Figures:
        capacity_per_s = closed(server.url, self._payload, CAPACITY_CONNECTIONS, CAPACITY_S).requests_per_s
        with opened(server.url, OVERLOAD_FACTOR * capacity_per_s) as samples:
            time.sleep(OVERLOAD_S)
        return overload_figures(samples, capacity_per_s)

    def _until_whole(self, server: Server) -> bool:
        deadline_s = time.monotonic() + RECOVERY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            # Always asked, because some only find out by requests that a replica is well again.
            if len(server.replicas(self._payload)) == REPLICAS and server.protected():
                return True
            time.sleep(POLL_S)
        return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=30, help="of ours")
    parser.add_argument("--peers-repetitions", type=int, default=5, help="of every other server")
    parser.add_argument(
        "--servers", nargs="*", choices=LINE_UP, metavar="NAME", help="these, and write nothing"
    )
    parser.add_argument(
        "--faults",
        nargs="*",
        type=Fault,
        choices=list(Fault),
        metavar="NAME",
        help="these, and write nothing",
    )
    options = parser.parse_args()
    console = Console()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="understudy-faults-") as folder:
        run = Run(Path(folder), console)
        for name in options.servers or LINE_UP:
            count = options.repetitions if name == OURS else options.peers_repetitions
            run.server(name, options.faults or list(Fault), count)
    show(console, run.measured)
    if options.servers or options.faults:
        return
    environment = results.environment(
        PACKAGES,
        PROGRAMS,
        peers={package: version(peer, package) for peer, package in PEERS.items()},
        seed=SEED,
        rate_per_s=RATE_PER_S,
        steady_s=STEADY_S,
        fault_s=FAULT_S,
        load_before=round(load_before, 2),
        missing=run.missing,
        not_recovered={f"{name}, {fault}": count for (name, fault), count in run.restarts.items()},
    )
    path = results.write("faults", environment, list(rows_of(run.measured)), list(aims_of(run.measured)))
    console.print(f"written: {path}", highlight=False)


if __name__ == "__main__":
    main()
