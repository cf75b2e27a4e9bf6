"""Predictions of 0.1 to 60 s and loads of 60 s, under kills and freezes: nothing that had time left may fail.

    python tests/longwork/run.py [--longest SECONDS] [--seed N]

Prints a row for each way of keeping a worker busy. Exit status 1 if a request failed, or if anybody was
blamed for working. About five minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from harness import Harness, running
from long_work import APPS, Outcome, ask, client, failed, strike, unjust, write_apps, write_slow_loader

DEADLINE_MS = 300_000
LENGTHS = (1 / 600, 1 / 60, 1 / 20, 1 / 6, 1 / 2, 1.0)  # of the longest
STRIKES = ("kill", "freeze", "halt")


async def struck(harness: Harness, app: str, seconds: float, rng: random.Random) -> list[Outcome]:
    """The longest work three times, with something done to its worker each time."""
    outcomes = []
    for kind in STRIKES:
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(ask(harness, app, seconds, DEADLINE_MS / 1000))
            tasks.create_task(strike(harness, app, kind, rng, halt_s=1.0))
        outcomes.append(asked.result())
    return outcomes


async def load(harness: Harness, folder: Path, way: str, longest_s: float) -> list[Outcome]:
    """An app that takes the longest to load."""
    name = f"loader-{way}"
    write_slow_loader(folder / name, way, load_s=longest_s, load_timeout_s=3 * longest_s)
    await asyncio.to_thread(harness.cli, "deploy", str(folder / name), "--json")
    return [await ask(harness, name, 0.1, 30)]


def report(clients: list[list[Outcome]]) -> int:
    """How many failed."""
    for outcomes in clients:
        took = ", ".join(f"{o.seconds:.3g} s in {o.took_s:.2f}" for o in outcomes)
        row = f"{outcomes[0].app:>14}: {len(failed([outcomes]))} of {len(outcomes)} failed; {took}"
        sys.stdout.write(f"{row}\n")
    for o in failed(clients):
        sys.stdout.write(f"{o.app} {o.seconds:g} s: {o.status} {o.problem}\n")
    sys.stdout.flush()
    return len(failed(clients))


async def play(folder: Path, longest_s: float, seed: int) -> bool:
    rng = random.Random(seed)
    write_apps(folder / "apps", DEADLINE_MS)
    lengths = [fraction * longest_s for fraction in LENGTHS]
    async with running(folder) as harness:
        await harness.protected(*APPS)
        parts = (
            ("left alone", [client(harness, app, lengths, DEADLINE_MS / 1000) for app in APPS]),
            ("killed, frozen, halted", [struck(harness, app, longest_s / 4, rng) for app in APPS]),
            ("loads", [load(harness, folder, way, longest_s) for way in ("sleeps", "holds")]),
        )
        problems = 0
        for title, work in parts:
            sys.stdout.write(f"{title}:\n")
            problems += report(await asyncio.gather(*work))
        blamed = await unjust(harness)
    sys.stdout.writelines(f"{problem}\n" for problem in blamed)
    return not problems and not blamed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--longest", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        well = asyncio.run(play(Path(folder), arguments.longest, arguments.seed))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
