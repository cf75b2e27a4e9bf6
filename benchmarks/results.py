"""The file that a benchmark leaves: where it ran, every figure, and which aims are met."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


class Row(msgspec.Struct):
    """One figure over the rounds of a run."""

    figure: str
    unit: str
    n: int
    min: float
    median: float
    p99: float
    max: float
    mean: float


class Aim(msgspec.Struct):
    name: str
    value: float
    aim: float
    better: str  # higher | lower
    met: bool
    rounds: int = 0  # that the value is the median of; 0: not a median of rounds


def row(figure: str, unit: str, values: Sequence[float]) -> Row:
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    figures = (ordered[0], statistics.median(ordered), p99, ordered[-1], statistics.fmean(ordered))
    rounded = (round(value, 4) for value in figures)
    return Row(figure, unit, len(ordered), *rounded)


def aim(name: str, value: float, aim: float, better: str, *, rounds: int = 0) -> Aim:
    met = value >= aim if better == "higher" else value <= aim
    return Aim(name, round(value, 3), aim, better, met, rounds)


def environment(packages: Sequence[str], programs: Sequence[Sequence[str]], **more: Any) -> dict[str, Any]:
    """Machine, versions and commit. `programs` are commands that print their version first."""
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in packages}
    versions |= {command[0]: _first_line(command) for command in programs}
    return {
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        "date": datetime.date.today().isoformat(),
        "versions": versions,
        "commit": _first_line(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]),
        **more,
    }


def write(
    name: str, environment: dict[str, Any], rows: list[Row], aims: list[Aim], *, flat: bool = False
) -> Path:
    """`flat` gives each row and aim a line of its own instead of one for each of its fields."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    if flat:
        parts = [f'"environment": {msgspec.json.encode(environment).decode()}']
        for key, found in (("rows", rows), ("aims", aims)):
            lines = ",\n".join(msgspec.json.encode(one).decode() for one in found)
            parts.append(f'"{key}": [\n{lines}\n]')
        path.write_text("{" + ",\n".join(parts) + "}\n")
        return path
    content = {"environment": environment, "rows": rows, "aims": aims}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    return path


def _cpu() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def _first_line(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "none"
    return (done.stdout or done.stderr).partition("\n")[0].strip()
