"""Bugs to plant in a copy of the sources, one at a time: how soon does the simulator find each?

    python tests/sim/planted.py [--seeds N] [NAME ...]

Prints a row for each bug: its name, what was seen, and the first seed that fails. One of `BUGS` that isn't
found within N seeds fails the run. The rows of docs/design.md are from here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src"
CORE = "understudy/core"
SEEDS = 1000
SEARCH = """
import sys
from understudy.sim.seeds import run_seed
for seed in range(1, int(sys.argv[1]) + 1):
    done = run_seed(seed)
    if done.failure:
        print(f"{seed}\\t{done.failure}")
        break
"""


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    old: str
    new: str


BUGS = (
    Bug(
        "a controller publishes before it has heard who may know more",
        f"{CORE}/controller/machine.py",
        "        if not self.hearing.over or self._knows_less:\n",
        "        if self._knows_less:\n",
    ),
    Bug(
        "a controller forgets what peers told it that it didn't know",
        f"{CORE}/controller/catalog.py",
        "        self.currents |= learned.currents\n",
        "",
    ),
    Bug(
        "a gateway sends requests to replicas that it suspects",
        f"{CORE}/gateway/rotation.py",
        "return ready and not self.suspect and not self.node_suspect",
        "return ready and not self.node_suspect",
    ),
    Bug(
        "an agent kills workers that are slow",
        f"{CORE}/agent/vitality.py",
        "if signs.running_s > tuning.hang_factor * permitted_s:",
        "if signs.running_s > 0.3:",
    ),
    Bug(
        "a breaker never opens",
        f"{CORE}/gateway/breaker.py",
        "        if self._consecutive < settings.consecutive_failures and not too_many:\n",
        "        if not too_many or too_many:\n",
    ),
    Bug(
        "one client's bad data is held against a variant",
        f"{CORE}/gateway/conduct.py",
        "        if not alone or len(by_client) > 1:\n",
        "        if not by_client:\n",
    ),
    Bug(
        "the queue of waiting requests has no bound",
        f"{CORE}/gateway/waiting_room.py",
        "elif len(app.queues.waiting) >= self._settings.admission.waiting_max:",
        "elif False:",
    ),
    Bug(
        "a request that timed out is answered by whoever comes late",
        f"{CORE}/gateway/dispatch.py",
        "        if request.done:\n            return\n        self.flights.end(request, keep=flight)\n",
        "        self.flights.end(request, keep=flight)\n",
    ),
    Bug(
        "a request that is turned away is counted as one that ended",
        f"{CORE}/gateway/flights.py",
        "        request.done = True\n        request.failed(error)\n",
        "        request.done = True\n        request.app.inflight -= 1\n        request.failed(error)\n",
    ),
    Bug(
        "the deadline of a request that waits isn't looked at",
        f"{CORE}/gateway/vigil.py",
        "            kept = [r for r in queue if not self._expired(r, now)]\n",
        "            kept = list(queue)\n",
    ),
    Bug(
        "a full disk is held against the variants that can't be loaded from it",
        f"{CORE}/agent/restarts.py",
        "Code.TOO_LARGE, Code.UNAVAILABLE})",
        "Code.TOO_LARGE})",
    ),
    Bug(
        "an agent forgets what its draining replicas still hold",
        f"{CORE}/agent/replicas.py",
        "*LOADED, ReplicaPhase.DRAINING})",
        "*LOADED})",
    ),
    Bug(
        "an agent starts a replica without looking at its memory",
        f"{CORE}/agent/loading.py",
        "        replica.refused_for_memory = needs_mb > free_mb and replica.asker is None\n",
        "        replica.refused_for_memory = False\n",
    ),
    Bug(
        "an agent starts one replica for each gateway that asks",
        f"{CORE}/agent/replicas.py",
        "        replica = candidates.pop(0)\n",
        "        replica = candidates[0]\n",
    ),
    Bug(
        "a restarted agent forgets the replicas that it adopted",
        f"{CORE}/agent/machine.py",
        "            self._roster.add(replica)\n            if stats.state",
        "            if stats.state",
    ),
    Bug(
        "a restarted controller begins its revisions anew",
        f"{CORE}/controller/publications.py",
        "        self.revision = self.epoch * REVISIONS_PER_EPOCH\n        self.table",
        "        self.revision = REVISIONS_PER_EPOCH\n        self.table",
    ),
    Bug(
        "two agents that start at the same time give their workers the same names",
        f"{CORE}/agent/machine.py",
        'Roster(f"{node}-{incarnation:x}", ',
        'Roster(f"{incarnation:x}", ',
    ),
    Bug(
        "a controller never lets a node that died come back",
        f"{CORE}/lifecycle.py",
        '    (NodePhase.DEAD, "hello"): NodePhase.RETURNING,\n',
        "",
    ),
)

# Each was in the code until the simulator found it, and is planted anew to show that it still would.
MENDED = (
    Bug(
        "an app that nobody planned for takes the room of another one's contingency",
        f"{CORE}/gateway/activation.py",
        "    if choice.failure != LAST_RESORT:\n        return False\n",
        "    if choice.failure:\n        return False\n",
    ),
    Bug(
        "requests that fail in panic eject a replica for longer and longer",
        f"{CORE}/gateway/breaker.py",
        "            if now < self.open_until:\n",
        "            if now < 0.0:\n",
    ),
    Bug(
        "panic goes on after a good answer",
        f"{CORE}/gateway/dispatch.py",
        "        if ejected or replica not in app.ranked:\n",
        "        if not replica.breaker.closed or replica not in app.ranked:\n",
    ),
    Bug(
        "requests wait as long as every tick of their gateway is late",
        f"{CORE}/gateway/machine.py",
        "        if not late or self._was_late:",
        "        if not late:",
    ),
    Bug(
        "a replica that was silent while the network was broken stays ejected",
        f"{CORE}/gateway/breaker.py",
        "        if self._silent:\n            self.open_until = min(self.open_until, now)\n",
        "",
    ),
)

# What a thousand seeds don't find: the simulator's blind spots.
MISSED = (
    Bug(
        "retries aren't counted against their budget",
        f"{CORE}/gateway/budget.py",
        "        self._spent += 1\n",
        "",
    ),
    Bug(
        "a gateway asks for the contingency of another failure",
        f"{CORE}/gateway/activation.py",
        "        return min(planned, key=preference)\n",
        "        return max(planned, key=preference)\n",
    ),
)


def first_failure(bug: Bug, seeds: int) -> tuple[int, str]:
    """The first seed that finds `bug`, and what it saw; 0 if none of them does."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(SOURCES, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        plant(bug, Path(scratch))
        command = [sys.executable, "-c", SEARCH, str(seeds)]
        env = {**os.environ, "PYTHONPATH": scratch}
        found = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    seed, _, failure = found.strip().partition("\t")
    return int(seed or 0), failure


def plant(bug: Bug, sources: Path) -> None:
    """Raises `ValueError` if the code has changed under it."""
    path = sources / bug.file
    code = path.read_text()
    if code.count(bug.old) != 1:
        raise ValueError(f"{bug.name}: its place isn't in {bug.file} once, but {code.count(bug.old)} times")
    path.write_text(code.replace(bug.old, bug.new))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the names of those to plant; default: all")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    missed = 0
    for bug in (*BUGS, *MENDED, *MISSED):
        if options.names and not any(name in bug.name for name in options.names):
            continue
        seed, failure = first_failure(bug, options.seeds)
        missed += not seed and bug in BUGS
        sys.stdout.write(f"{bug.name} | {failure or 'not found'} | {seed or f'> {options.seeds}'}\n")
        sys.stdout.flush()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
