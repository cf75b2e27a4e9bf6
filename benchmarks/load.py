"""The three generators of load, each a process of its own: closed loop, open loop, gRPC.

Closed loop is wrk: each connection sends its next request when the last one is answered. Open loop is
`benchmarks.open_loop`: requests are due at a constant rate whatever the answers do. gRPC is
`benchmarks.grpc_load`, a closed loop.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks.models import Payload

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = Path(__file__).with_name("post.lua")
TIMEOUT_S = 30.0  # beyond the duration


class Measurement(msgspec.Struct):
    """What one run saw. `requests` were answered with a success, `failed` with an error or not at all."""

    requests: int
    duration_us: float
    p50_us: float
    p99_us: float
    max_us: float
    failed: int

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.duration_us * 1e6


def closed(url: str, payload: Payload, connections: int, duration_s: float) -> Measurement:
    """By wrk, which takes whole seconds."""
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--script", str(SCRIPT)]
    command += ["--duration", f"{duration_s:.0f}s", "--timeout", "5s", url + payload.path]
    return _measure(command, payload, duration_s)


def opened(url: str, payload: Payload, rate_per_s: float, duration_s: float) -> Measurement:
    """Latencies count from when a request was due."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.open_loop",
        url + payload.path,
        str(rate_per_s),
        str(duration_s),
    ]
    return _measure(command, payload, duration_s)


def grpc(address: str, payload: Payload, calls: int, duration_s: float) -> Measurement:
    """`calls` at once, each sent when the last one is answered."""
    command = [sys.executable, "-m", "benchmarks.grpc_load", address, str(calls), str(duration_s)]
    return _measure(command, payload, duration_s)


def grpc_answer(address: str, payload: Payload) -> bytes:
    """The serialized answer to one call. Raises RuntimeError if it fails."""
    return _output([sys.executable, "-m", "benchmarks.grpc_load", address, "0", "0"], payload, 0)


def _measure(command: list[str], payload: Payload, duration_s: float) -> Measurement:
    """Raises RuntimeError if nothing was answered."""
    lines = _output(command, payload, duration_s).decode().splitlines()
    line = next(line for line in lines if line.startswith("RESULT "))
    result = msgspec.json.decode(line.removeprefix("RESULT "), type=Measurement)
    if not result.requests:
        raise RuntimeError(f"no request was answered: {result}")
    return result


def _output(command: list[str], payload: Payload, duration_s: float) -> bytes:
    """What a generator prints. Raises RuntimeError if it fails."""
    headers = "\n".join(f"{name}: {value}" for name, value in payload.headers.items())
    env = {**os.environ, "BODY": str(payload.file), "HEADERS": headers}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, timeout=duration_s + TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:].decode()}")
    return done.stdout


def summary(latencies_s: list[float], duration_s: float, failed: int) -> str:
    """The line that a generator prints."""
    ordered = sorted(latencies_s) or [0.0]
    p50, p99 = (ordered[round(part * (len(ordered) - 1))] * 1e6 for part in (0.5, 0.99))
    result = Measurement(len(latencies_s), duration_s * 1e6, p50, p99, ordered[-1] * 1e6, failed)
    return f"RESULT {msgspec.json.encode(result).decode()}\n"
