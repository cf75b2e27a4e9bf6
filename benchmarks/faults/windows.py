"""What one repetition comes to: samples of requests in, figures out. Pure.

A request is good if it was answered 200 with the right content within the objective, counted from when it
was due. Any other has failed. Windows go by when a request was due.
"""

from __future__ import annotations

from collections.abc import Sequence

from understudy.demo.load import Sample
from understudy.demo.recording import quantile

OBJECTIVE_S = 0.25
CLIENT_TIMEOUT_S = 5.0
SHED_STATUSES = (429, 503)

Figures = dict[str, float]
FAILED = "failed, per 10,000"
LAST_BAD = "fault to last bad answer, s"
P99 = "p99 during the fault, ms"
ADDED = "p99 added by the fault, ms"
GOODPUT = "goodput / capacity"
ADMITTED = "p99 of what was admitted, ms"
SHED = "shed, per 10,000"
SHED_P99 = "p99 of what was shed, ms"


def is_good(sample: Sample) -> bool:
    return sample.outcome == "ok" and sample.correct and sample.latency_s <= OBJECTIVE_S


def p99_ms(samples: Sequence[Sample]) -> float:
    """Of all requests; one without a right answer counts as the client's timeout. 0 of none."""
    latencies_s = sorted(
        s.latency_s if s.outcome == "ok" and s.correct else CLIENT_TIMEOUT_S for s in samples
    )
    return 1000 * (quantile(latencies_s, 0.99) or 0.0)


def fault_figures(samples: Sequence[Sample], struck_s: float, steady_s: float, fault_s: float) -> Figures:
    """Of a fault at `struck_s`, against the `steady_s` before it."""
    before = [s for s in samples if struck_s - steady_s <= s.due_s < struck_s]
    during = [s for s in samples if struck_s <= s.due_s < struck_s + fault_s]
    # What was in flight when the fault struck is its victim too.
    victims = [s for s in before if s.done_s >= struck_s and not is_good(s)]
    bad = [*victims, *(s for s in during if not is_good(s))]
    return {
        FAILED: 10_000 * len(bad) / len(during),
        LAST_BAD: max((_bad_since_s(s) - struck_s for s in bad), default=0.0),
        P99: p99_ms([*during, *victims]),
        ADDED: p99_ms([*during, *victims]) - p99_ms([s for s in before if s.done_s < struck_s]),
    }


def _bad_since_s(sample: Sample) -> float:
    """When its client knew: a late answer is bad from the objective on."""
    return min(sample.done_s, sample.due_s + OBJECTIVE_S)


def overload_figures(samples: Sequence[Sample], capacity_per_s: float) -> Figures:
    """Of requests that all came faster than `capacity_per_s`."""
    began_s, ended_s = min(s.due_s for s in samples), max(s.due_s for s in samples)
    good = [s for s in samples if is_good(s)]
    in_time = sum(s.done_s <= ended_s for s in good)  # what is still queued at the end is not throughput
    shed = [s for s in samples if s.status in SHED_STATUSES]
    admitted = [s for s in samples if s.status not in SHED_STATUSES]
    shed_s = sorted(s.latency_s for s in shed)
    figures = {
        FAILED: 10_000 * (len(admitted) - len(good)) / len(samples),
        GOODPUT: in_time / (ended_s - began_s) / capacity_per_s,
        ADMITTED: p99_ms(admitted),
        SHED: 10_000 * len(shed) / len(samples),
    }
    return figures | ({SHED_P99: 1000 * (quantile(shed_s, 0.99) or 0.0)} if shed else {})
