"""Load on the waiting model: open loop by the demonstration's generator, closed loop by wrk."""

from __future__ import annotations

import io
import json
import random
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from benchmarks.faults.accelerator import NAME
from benchmarks.faults.windows import CLIENT_TIMEOUT_S
from benchmarks.models import JSON, SEED, Payload
from understudy.demo.load import LENGTH, AppLoad, LoadPlan, Sample, framed

BODIES = 256
NUMBERS = 64
START_TIMEOUT_S = 10.0
END_TIMEOUT_S = CLIENT_TIMEOUT_S + 5.0

decode = msgspec.msgpack.Decoder(list[Sample]).decode


def app_load(rate_per_s: float) -> AppLoad:
    """Different requests, so that an answer to another one is seen to be wrong."""
    generator = random.Random(SEED)
    rows = [[round(generator.random(), 4) for _ in range(NUMBERS)] for _ in range(BODIES)]
    labels = tuple(max(range(NUMBERS), key=row.__getitem__) for row in rows)
    bodies = tuple(_body(row) for row in rows)
    return AppLoad(NAME, bodies, labels, NUMBERS, rate_per_s, 1000 * CLIENT_TIMEOUT_S)


def _body(row: list[float]) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(row)], "data": row}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()


def write_payload(folder: Path) -> Payload:
    """One of the requests."""
    payload = Payload(NAME, folder / NAME, {"Content-Type": JSON})
    payload.file.write_bytes(app_load(1).bodies[0])
    return payload


@contextmanager
def opened(url: str, rate_per_s: float) -> Iterator[list[Sample]]:
    """Open loop while the block runs, which begins when the first answers are there. The list is full after
    the block: every request has been answered or given up.
    """
    parts = urlsplit(url)
    plan = LoadPlan(parts.hostname or "", parts.port or 80, (app_load(rate_per_s),))
    samples: list[Sample] = []
    command = [sys.executable, "-m", "understudy.demo.load"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(framed(msgspec.msgpack.encode(plan)))
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
            if not ready:
                raise RuntimeError("the load generator does not begin")
            yield samples
            output, _ = process.communicate(timeout=END_TIMEOUT_S)
        finally:
            process.kill()
    stream = io.BytesIO(output)
    while batch := _batch(stream):
        samples += batch


def _batch(stream: io.BytesIO) -> list[Sample]:
    """The next one; nothing at the end of the stream."""
    length = stream.read(LENGTH.size)
    return decode(stream.read(*LENGTH.unpack(length))) if len(length) == LENGTH.size else []
