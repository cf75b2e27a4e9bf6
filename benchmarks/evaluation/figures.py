"""What is concluded from played failures: rows and aims. docs/evaluation.md defines every figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, takewhile
from statistics import fmean, median

from benchmarks import results
from benchmarks.evaluation.replayer import Answer, Played, Protection
from benchmarks.evaluation.schemes import FULL_WARM, UNDERSTUDY, Planned
from benchmarks.evaluation.times import MAIN_TIMING, TIMINGS, parts_ms
from benchmarks.evaluation.workloads import Cluster
from understudy.core.planning.footprint import replica_mb
from understudy.wire.records import Role

RECOVERED = "recovered"
PROTECTED = "apps protected"
WARM = "answered warm"
FIRST_LOST = "accuracy lost, first reply"
AFTER_LOST = "accuracy lost, after upgrade"
ALL_LOST = "accuracy lost, all apps and failures"
OVERHEAD = "memory overhead"
PER_GB = "apps protected per GB of spare room"
PLANNING = "planning time"
GAP = "gap"
FULL_SIZE = "primaries at full size"
MTTR, MTTR_WARM, MTTR_COLD = "MTTR", "MTTR warm", "MTTR cold"
MTTR_MEAN = "MTTR mean"
MTTR_COLD_MEAN = "MTTR cold mean"
PARTS = ("MTTR cold, detect and route", "MTTR cold, load", "MTTR cold, first inference")
UNITS = {PER_GB: "1/GB", PLANNING: "s"}
FULL_WARM_PCT_MAX = 20.0
PROTECTED_PCT_MIN = 100.0
LOST_PCT_MAX = 0.6

Scalars = dict[str, float]


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One point of the sweep. `kind` is what is lost: node, site or two nodes; `headroom` is a fraction."""

    nodes: int
    apps: int
    mix: str
    kind: str
    headroom: float

    def __str__(self) -> str:
        where = f"{self.nodes} nodes, {self.apps} apps, {self.mix}"
        return f"{where}, headroom {100 * self.headroom:g} %, {self.kind} lost"


@dataclass(slots=True)
class Sample:
    """Figures of one scheme in one case and seed: one value each, or one for each recovery (ms)."""

    scheme: str
    scalars: Scalars
    times_ms: dict[str, list[float]] = field(default_factory=dict)


Samples = Mapping[Case, Sequence[Sample]]


def sample(
    cluster: Cluster, protection: Protection, played: Played, failures: int, *, detailed: bool
) -> Sample:
    """`failures` were played, also those that silence nobody."""
    recovered = [answer for answer in played.answers if answer.last is not None]
    lost = [_lost_pct(answer) for answer in recovered]
    silent = {answer.app.app for answer in played.answers if answer.last is None}
    silent |= {app.app for app in cluster.apps} - protection.primaries.keys()
    struck = silent | {answer.app.app for answer in played.answers}
    protected = 1 - len(silent) / len(struck) if struck else 1.0
    spent_mb = sum(played.reserved_mb.values())
    spent_mb += sum(replica_mb(running.variant) for running in protection.standbys.values())
    primaries_mb = sum(replica_mb(running.variant) for running in protection.primaries.values())
    silences = len(played.answers) - len(recovered)
    spare_mb = sum(node.memory_mb for node in cluster.nodes) - primaries_mb
    scalars = {
        RECOVERED: _pct(len(recovered), len(played.answers)),
        PROTECTED: 100 * protected,
        WARM: _pct(sum(answer.how == "warm" for answer in recovered), len(played.answers)),
        OVERHEAD: _pct(spent_mb, primaries_mb),
        PER_GB: 1000 * len(cluster.apps) * protected / spare_mb,
        ALL_LOST: (sum(lost) + 100.0 * silences) / (failures * len(cluster.apps)),
    }
    if recovered:
        scalars[FIRST_LOST] = fmean(_lost_pct(answer, first=True) for answer in recovered)
        scalars[AFTER_LOST] = fmean(lost)
    return _with_times(Sample(protection.scheme, scalars), recovered, detailed=detailed)


def _with_times(found: Sample, recovered: list[Answer], *, detailed: bool) -> Sample:
    """Each recovery's time; in detail also the parts of the cold ones, and means by the other timings."""
    cold = [answer.how == "cold" for answer in recovered]
    for name, timing in TIMINGS.items() if recovered else ():
        parts = parts_ms(recovered, timing)
        times_ms = list(map(sum, parts))
        if name == MAIN_TIMING or detailed:
            found.scalars[f"{MTTR_MEAN}, {name}"] = fmean(times_ms)
        if name == MAIN_TIMING:
            found.times_ms[MTTR] = times_ms
        if detailed and any(cold):
            found.scalars[f"{MTTR_COLD_MEAN}, {name}"] = fmean(compress(times_ms, cold))
        if detailed and name == MAIN_TIMING:
            found.times_ms[MTTR_WARM] = [ms for ms, late in zip(times_ms, cold, strict=True) if not late]
            found.times_ms[MTTR_COLD] = list(compress(times_ms, cold))
            means = (fmean(values) for values in zip(*compress(parts, cold), strict=True))
            found.scalars |= dict(zip(PARTS, means, strict=False))  # there are none without a cold recovery
    return found


def _lost_pct(answer: Answer, *, first: bool = False) -> float:
    """Of the full-size variant's accuracy."""
    variant = answer.first if first else answer.last
    assert variant is not None
    return 100.0 * (1.0 - variant.accuracy / answer.app.full_size.accuracy)


def _pct(part: float, whole: float) -> float:
    return 100.0 * part / whole if whole else 100.0


def plan_scalars(cluster: Cluster, planned: Planned) -> Scalars:
    full = {(app.app, app.full_size.name) for app in cluster.apps}
    placed = {(p.app, p.variant) for p in planned.plan.placements if p.role is Role.PRIMARY}
    return {
        PLANNING: planned.plan_s,
        GAP: 100.0 * planned.plan.gap,
        FULL_SIZE: _pct(len(full & placed), len(cluster.apps)),
    }


def rows_of(samples: Samples, plans: Mapping[Case, Sequence[Scalars]]) -> Iterator[results.Row]:
    """One value for each seed, except times: one for each recovery of any seed."""
    for case, found in plans.items():
        for figure in dict.fromkeys(name for scalars in found for name in scalars):
            yield results.row(f"{case}: {figure}", UNITS.get(figure, "%"), [s[figure] for s in found])
    for case, of_case in samples.items():
        by_scheme: dict[str, list[Sample]] = defaultdict(list)
        for one in of_case:
            by_scheme[one.scheme].append(one)
        for scheme, seeds in by_scheme.items():
            yield from _scheme_rows(f"{case}, {scheme}", seeds)


def _scheme_rows(name: str, seeds: list[Sample]) -> Iterator[results.Row]:
    for figure in dict.fromkeys(figure for seed in seeds for figure in seed.scalars):
        unit = "ms" if figure.startswith(MTTR) else UNITS.get(figure, "%")
        values = [seed.scalars[figure] for seed in seeds if figure in seed.scalars]
        yield results.row(f"{name}: {figure}", unit, values)
    for figure in (MTTR, MTTR_WARM, MTTR_COLD):
        if pooled := [ms for seed in seeds for ms in seed.times_ms.get(figure, ())]:
            yield results.row(f"{name}: {figure}", "ms", pooled)


def aims_of(samples: Samples) -> Iterator[results.Aim]:
    """For every cluster and mix, when one node is lost."""
    sweeps: dict[tuple[int, int, str], list[Case]] = defaultdict(list)
    for case in sorted(samples):
        if case.kind == "node":
            sweeps[case.nodes, case.apps, case.mix].append(case)
    for (nodes, apps, mix), cases in sweeps.items():
        name = f"{nodes} nodes, {apps} apps, {mix}"
        scarce = [c for c in cases if median(_values(samples[c], FULL_WARM, PROTECTED)) <= FULL_WARM_PCT_MAX]
        if scarce:
            value = min(_values(samples[scarce[-1]], UNDERSTUDY, PROTECTED))
            what = f"apps protected, %, at headroom {100 * scarce[-1].headroom:g} %"
            yield results.aim(f"{name}: {what}", value, PROTECTED_PCT_MIN, "higher")
        lost = [(_lost_max(samples[case]), case) for case in reversed(cases)]
        enough = list(takewhile(lambda found: found[0] <= LOST_PCT_MAX, lost)) or lost[:1]
        what = f"accuracy lost, %, at headroom {100 * enough[-1][1].headroom:g} % and more"
        yield results.aim(f"{name}: {what}", max(enough)[0], LOST_PCT_MAX, "lower")


def _lost_max(found: Sequence[Sample]) -> float:
    """After the upgrade, by the worst seed; everything if an app was left silent."""
    if min(_values(found, UNDERSTUDY, RECOVERED)) < 100.0:
        return 100.0
    return max(_values(found, UNDERSTUDY, AFTER_LOST))


def _values(found: Sequence[Sample], scheme: str, figure: str) -> list[float]:
    return [one.scalars[figure] for one in found if one.scheme == scheme]
