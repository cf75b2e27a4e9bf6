"""From what clients saw to figures: recoveries, their parts, rows, aims.

An app's outage lasts from the moment before the kill to the end of the first right answer to a request that
was sent after it. Its parts are read from the cluster's events, whose times are whole milliseconds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

import msgspec

from benchmarks import results
from benchmarks.recovery.models import App, Scheme
from benchmarks.recovery.scenario import Kill, Lost, Played

MTTR_MS_AIM = 88.0
COLD_RATIO_AIM = 0.25
PARTS = {
    "detect": "kill -> the gateway knows",
    "ask": "-> an agent begins the contingency",
    "prepare": "-> a worker begins to load: the file is verified, a limit set",
    "load": "session and first inference inside the worker",
    "answer": "-> the client has its answer",
}


class Recovery(msgspec.Struct):
    """One app that lost its only serving replica. Accuracies in percent, by the published table."""

    scheme: str
    node: str
    app: str
    standby: str  # warm | cold | none, by the plan in force
    variant_before: str
    variant_first: str = ""
    variant_after: str = ""  # when the node was brought back
    mttr_ms: float | None = None  # None: not back before the node was
    accuracy_before: float = 0.0
    accuracy_first: float = 0.0
    accuracy_after: float = 0.0
    parts_ms: dict[str, float] = {}


def recoveries(scheme: Scheme, apps: Sequence[App], played: Played) -> list[Recovery]:
    accuracies = {model.variant: model.top1_pct for app in apps for model in app.models}
    return [_recovery(scheme, kill, lost, played, accuracies) for kill in played.kills for lost in kill.lost]


def _recovery(
    scheme: Scheme, kill: Kill, lost: Lost, played: Played, accuracies: Mapping[str, float]
) -> Recovery:
    found = Recovery(scheme, kill.node, lost.app, lost.standby, lost.variant)
    found.accuracy_before = accuracies[lost.variant]
    answers = [
        s for s in played.samples[lost.app] if s.right and s.sent_s >= kill.at_s and s.done_s < kill.ended_s
    ]
    if not answers:
        return found
    first = min(answers, key=lambda s: s.done_s)
    last = max(answers, key=lambda s: s.sent_s)
    found.variant_first, found.variant_after = first.variant, last.variant
    found.accuracy_first, found.accuracy_after = accuracies[first.variant], accuracies[last.variant]
    found.mttr_ms = round((first.done_s - kill.at_s) * 1000, 2)
    found.parts_ms = parts(kill, lost.app, found.mttr_ms)
    return found


def parts(kill: Kill, app: str, mttr_ms: float) -> dict[str, float]:
    """Milliseconds of each part; those of a load only where one answered. Nothing if events are missing."""
    events = sorted(kill.events, key=lambda e: e["at_unix_ms"])

    def after_ms(kind: str, since_ms: float = 0.0) -> tuple[float, dict[str, Any]] | None:
        for event in events:
            at_ms = event["at_unix_ms"] - kill.at_unix_ms
            mine = event["app"] == app or (not event["app"] and event["node"] == kill.node)
            if event["kind"] == kind and mine and at_ms >= since_ms:
                return max(0.0, at_ms), event
        return None

    seen = [
        at for kind in ("replica.lost", "node.suspected", "contingency.activated") if (at := after_ms(kind))
    ]
    if not seen:
        return {}
    detected_ms = min(mttr_ms, *(at_ms for at_ms, _ in seen))
    found = {"detect": detected_ms}
    accepted, loaded = after_ms("activation.accepted"), after_ms("replica.loaded")
    if accepted and loaded and loaded[0] <= mttr_ms + 1:
        load_ms = min(loaded[1]["data"]["load_ms"], loaded[0])
        found["ask"] = max(0.0, min(accepted[0], loaded[0] - load_ms) - detected_ms)
        found["prepare"] = max(0.0, loaded[0] - load_ms - found["ask"] - detected_ms)
        found["load"] = load_ms
    found["answer"] = max(0.0, mttr_ms - sum(found.values()))
    return {name: round(value, 1) for name, value in found.items()}


def rows_of(found: Sequence[Recovery]) -> Iterator[results.Row]:
    """Each scheme: all apps, then those with a warm standby, then the others."""
    for scheme, members in groupby(found, key=lambda r: r.scheme):
        listed = list(members)
        for kind in ("all", "warm", "cold", "none"):
            chosen = [r for r in listed if kind in ("all", r.standby)]
            if chosen:
                yield from _rows(f"{scheme}, {kind}", chosen)


def _rows(name: str, chosen: Sequence[Recovery]) -> Iterator[results.Row]:
    back = [r for r in chosen if r.mttr_ms is not None]
    yield results.row(f"{name}: recovered", "ratio", [float(r.mttr_ms is not None) for r in chosen])
    yield results.row(f"{name}: accuracy before", "%", [r.accuracy_before for r in chosen])
    if not back:
        return
    yield results.row(f"{name}: recovery", "ms", [r.mttr_ms for r in back if r.mttr_ms is not None])
    for part in PARTS:
        values = [r.parts_ms[part] for r in back if part in r.parts_ms]
        if values:
            yield results.row(f"{name}: {part}", "ms", values)
    yield results.row(
        f"{name}: accuracy lost at the first answer",
        "%",
        [r.accuracy_before - r.accuracy_first for r in back],
    )
    yield results.row(
        f"{name}: accuracy lost after the upgrade", "%", [r.accuracy_before - r.accuracy_after for r in back]
    )


def mean_ms(found: Iterable[Recovery], scheme: Scheme) -> float:
    """Over apps, each by its own mean: one that was lost more often doesn't count more."""
    by_app: dict[str, list[float]] = defaultdict(list)
    for r in found:
        if r.scheme == scheme and r.mttr_ms is not None:
            by_app[r.app].append(r.mttr_ms)
    return fmean(map(fmean, by_app.values())) if by_app else math.inf


def aims_of(found: Sequence[Recovery]) -> Iterator[results.Aim]:
    ours, cold = mean_ms(found, Scheme.UNDERSTUDY), mean_ms(found, Scheme.COLD)
    yield results.aim("recovery, mean over all apps, ms", ours, MTTR_MS_AIM, "lower")
    yield results.aim("that by full-size-cold's", ours / cold, COLD_RATIO_AIM, "lower")
