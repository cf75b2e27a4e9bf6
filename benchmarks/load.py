"""Closed-loop load by wrk: each connection sends its next request when the last one is answered."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec

SCRIPT = Path(__file__).with_name("post.lua")


class Measurement(msgspec.Struct):
    """What one run of wrk saw. `failed`: answers beyond 399; `broken`: connections and time-outs."""

    requests: int
    duration_us: int
    p50_us: float
    p99_us: float
    max_us: float
    failed: int
    broken: int

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.duration_us * 1e6


def measure(url: str, body: Path, connections: int, duration_s: float) -> Measurement:
    """Load `url` for `duration_s` (whole seconds). Raises RuntimeError if any answer was not a success."""
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--script", str(SCRIPT)]
    command += ["--duration", f"{duration_s:.0f}s", "--timeout", "5s", url]
    done = subprocess.run(
        command, env={**os.environ, "BODY": str(body)}, capture_output=True, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    result = msgspec.json.decode(line.removeprefix("RESULT "), type=Measurement)
    if result.failed or result.broken or not result.requests:
        raise RuntimeError(f"{url}: not every request was answered with a success: {result}")
    return result
