"""The demonstration, whole, as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 240.0


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("demo")
    argv = [sys.executable, "-m", "understudy", "demo", "--json", "--out", str(out)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return done, out


@pytest.fixture(scope="module")
def report(demo: tuple[subprocess.CompletedProcess[str], Path]) -> Any:
    done, out = demo
    assert done.returncode == 0, done.stderr + _logs(out)
    written: Any = json.loads((out / "report.json").read_text())
    assert json.loads(done.stdout) == written
    return written


def _logs(out: Path) -> str:
    logs = sorted((out / "cluster" / "data" / "logs").glob("*.log"))
    return "".join(f"\n== {log.name}\n{log.read_text()[-3000:]}" for log in logs)


def test_every_fault_was_played(report: Any) -> None:
    faults = [phase["fault"] for phase in report["phases"]]
    assert len(faults) == 5
    assert "frozen" in faults[1]
    assert "node" in faults[2]
    assert "controller" in faults[3]


def test_no_critical_app_lost_a_request(report: Any) -> None:
    assert report["totals"]["failed_critical"] == 0
    assert report["totals"]["requests"] > 10_000


def test_apps_that_lost_their_replica_recovered_warm_and_cold(report: Any) -> None:
    lost = [a for p in report["phases"] for a in p["apps"].values() if a["mttr_ms"] is not None]
    assert {a["standby"] for a in lost} >= {"warm", "cold"}
    assert all(a["variant_first"] for a in lost)


def test_everything_is_in_full_size_at_the_end(report: Any) -> None:
    first, last = report["phases"][0]["apps"], report["phases"][-1]["apps"]
    assert len(last) >= 6
    for app, account in last.items():
        assert account["variant_after"] == first[app]["variant_before"]


def test_no_process_is_left(demo: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, out = demo
    left = [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and str(out) in _command_line(entry)
    ]
    assert not left


def _command_line(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
