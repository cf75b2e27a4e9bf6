"""The loop of a fuzz run: inputs from a seed, each judged by its target, none of them slow, nothing kept.

An input is a list of pieces (bytes). What a target makes of them depends on the pieces alone, so they are
enough to replay a finding; the pieces depend on the seed and the input's number alone.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType
from typing import Protocol

import msgspec

HANG_S = 10.0  # of one input; the slowest takes some ms, so this is not a matter of a loaded machine
WATCH_S = 1.0
WARM_FRACTION = 0.25  # of the inputs, in which caches fill
BLOCKS_MAX = 20_000  # objects more than after that; a leak in one input of a hundred exceeds it in a long run
RSS_MB_MAX = 24.0
MEMORY = Path("/dev/shm")
FINDINGS_MAX = 5  # then the run ends


class Target(Protocol):
    name: str

    def generate(self, rng: Random) -> list[bytes]: ...

    def check(self, pieces: list[bytes]) -> str:
        """What became of the input, in a word. Raises whatever is wrong with that."""
        ...


class Finding(msgspec.Struct):
    number: int
    pieces: str
    error: str


class Report(msgspec.Struct):
    """Of one run. Growth is what remained between the end of the warm-up and the end of the run."""

    target: str
    seed: int
    inputs: int
    seconds: float
    slowest_ms: float
    slowest_number: int
    outcomes: dict[str, int]
    blocks_grown: int
    rss_mb_grown: float
    findings: list[Finding]

    @property
    def grew(self) -> bool:
        return self.blocks_grown > BLOCKS_MAX or self.rss_mb_grown > RSS_MB_MAX


class Hang(Exception):
    """One input took longer than `HANG_S`."""


class Watch:
    """Raises `Hang` in the main thread; asked once a second, so that an input costs nothing more."""

    def __init__(self) -> None:
        self.began_s: float | None = None  # None: between two inputs
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, WATCH_S, WATCH_S)

    def _look(self, number: int, frame: FrameType | None) -> None:
        if self.began_s is not None and time.perf_counter() - self.began_s > HANG_S:
            self.began_s = None
            raise Hang(f"longer than {HANG_S} s")

    def end(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def rng_of(seed: int, number: int) -> Random:
    return Random(seed << 40 | number)


def run(make: Callable[[], Target], seed: int, first: int, count: int) -> Report:
    """Inputs `first` to `first + count`. To be called in the main thread."""
    target = make()
    outcomes: Counter[str] = Counter()
    findings: list[Finding] = []
    slowest = (0.0, first)
    warm_at = first + int(count * WARM_FRACTION)
    warm = _held()
    start_s = time.perf_counter()
    watch = Watch()
    number = first
    for number in range(first, first + count):
        if number == warm_at:
            warm = _held()
        pieces = target.generate(rng_of(seed, number))
        began_s = watch.began_s = time.perf_counter()
        try:
            outcomes[target.check(pieces)] += 1
        except Exception:
            findings.append(Finding(number, written(pieces), traceback.format_exc(limit=-8)))
            if len(findings) >= FINDINGS_MAX:
                break
            target = make()  # whatever state it is in
        finally:
            watch.began_s = None
        slowest = max(slowest, (time.perf_counter() - began_s, number))
    watch.end()
    seconds = time.perf_counter() - start_s
    blocks, rss_mb = _held()
    return Report(
        target.name, seed, number + 1 - first, seconds, slowest[0] * 1000, slowest[1], dict(outcomes),
        blocks - warm[0], rss_mb - warm[1], findings,
    )  # fmt: skip


def _held() -> tuple[int, float]:
    """Allocated objects, and MB of resident memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return sys.getallocatedblocks(), pages * resource.getpagesize() / 2**20


def folder_of(target: Target) -> Path:
    """Where writing costs no disk, if there is such a place. It is gone with `target`."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="understudy-fuzz-", dir=place))
    weakref.finalize(target, shutil.rmtree, folder, ignore_errors=True)
    return folder


def written(pieces: list[bytes]) -> str:
    return ".".join(piece.hex() for piece in pieces)


def read(text: str) -> list[bytes]:
    return [bytes.fromhex(piece) for piece in text.split(".")]


def say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def cpus() -> int:
    return len(os.sched_getaffinity(0))
