"""Triton's load generator, as a client whose every call must succeed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from clients_cluster import LINEAR, ROOT

PERF_ANALYZER = ROOT / "build" / "perf_analyzer" / "bin" / "perf_analyzer"
CUDA_RUNTIME = ROOT / "build" / "perf_analyzer" / "nvidia" / "cuda_runtime" / "lib"  # linked, never used


def perf_analyzer(address: str, csv: Path, *more: str) -> list[str]:
    if not PERF_ANALYZER.exists():
        pytest.skip("needs perf_analyzer: make perf-analyzer")
    argv = [str(PERF_ANALYZER), "-m", LINEAR, "-u", address, "-f", str(csv), *more]
    argv += ["--measurement-interval", "1000"]
    return [*argv, "--stability-percentage", "999", "--max-trials", "3"]  # one measurement is enough


def run_perf_analyzer(argv: list[str]) -> str:
    env = {**os.environ, "LD_LIBRARY_PATH": str(CUDA_RUNTIME)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=env)
    output = done.stdout + done.stderr
    if "libb64" in output:
        pytest.skip("perf_analyzer needs libb64: apt-get install libb64-0d")
    assert done.returncode == 0, output
    assert "Failed" not in output, output
    return output
