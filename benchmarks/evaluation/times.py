"""How long an app is silent: from the fault to the first answer, in parts, under several assumptions.

What loading and the first inference take is in `families`; who loads what where is what was played.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.evaluation.families import (
    ACTIVATE_MS,
    Measured,
    a2_cached,
    a2_uncached,
    cpu,
    detect_route_ms,
    table,
)
from benchmarks.evaluation.replayer import Answer

Parts = tuple[float, float, float]  # detecting and routing, loading, the first inference; ms


@dataclass(frozen=True, slots=True)
class Timing:
    """`read`: loading and first inference of a variant, ms. `in_turn`: a node loads one after the other."""

    read: Callable[[Measured], tuple[float, float]]
    in_turn: bool = False


MAIN_TIMING = "A2"
TIMINGS = {
    MAIN_TIMING: Timing(a2_cached),
    "A2 in turn": Timing(a2_cached, in_turn=True),
    "A2 uncached": Timing(a2_uncached),
    "CPU": Timing(cpu),
}


def parts_ms(recovered: Iterable[Answer], timing: Timing) -> list[Parts]:
    """Of each answer, in the order in which they were played. Loading includes the waiting for others."""
    found = []
    waiting_ms: dict[tuple[str, str], float] = defaultdict(float)  # by failure and node
    for answer in recovered:
        assert answer.first is not None
        row = table()[answer.first.name]
        if answer.how == "warm":
            found.append((detect_route_ms(), 0.0, row.latency_ms))
            continue
        load_ms, first_ms = timing.read(row)
        waited_ms = waiting_ms[answer.failure, answer.node]
        found.append((detect_route_ms() + ACTIVATE_MS, waited_ms + load_ms, first_ms))
        if timing.in_turn:
            waiting_ms[answer.failure, answer.node] += load_ms + first_ms
    return found
