"""From samples to figures: phases, totals, what was promised and not kept, the table, `report.json`.

Everything is computed from what clients saw. Recovery time runs from the moment before the fault was
injected to the end of the first good answer to a request that was due after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import msgspec
from rich import box
from rich.table import Table

from understudy.demo.load import Sample
from understudy.demo.recording import Recording, quantile
from understudy.wire.records import Criticality

Standby = Literal["warm", "cold", "none"]

FAILLITE_MTTR_MS = 175.5  # published mean over 27 models, all schemes together (arXiv 2504.15856)
FAILLITE_ACCURACY_LOSS = 0.006
WARM_AIM_MS = 20.0
COLD_AIM_MS = 175.0
END_WINDOW_S = 0.5  # an app answers at the end of a phase if it did within this


class AppFacts(msgspec.Struct, frozen=True):
    criticality: Criticality
    standby: Standby
    full_size: str  # name of the variant


class Phase(msgspec.Struct, frozen=True):
    """One fault. Times are of the monotonic clock; phases follow each other without gaps."""

    fault: str
    target: str
    began_s: float  # steady since
    injected_s: float
    repaired_s: float  # when whatever was broken began to be brought back
    ended_s: float
    lost: frozenset[str] = frozenset()  # apps whose serving replica the fault took
    standbys: dict[str, Standby] = {}  # of each app, by the plan in force when the fault came


class AppPhase(msgspec.Struct):
    """One app in one phase. Requests and latencies are of the whole phase, accuracies of its two parts."""

    criticality: str
    standby: str
    variant_before: str
    variant_first: str
    variant_after: str  # at the end of the phase
    mttr_ms: float | None
    requests: int
    failed: int
    degraded: int
    accuracy_before: float
    accuracy_after: float  # fault -> repair
    p50_ms: float
    p99_ms: float
    max_ms: float


class PhaseReport(msgspec.Struct):
    fault: str
    target: str
    apps: dict[str, AppPhase]


class Totals(msgspec.Struct):
    """Accuracies are means over the apps that lost their replica, once per loss."""

    requests: int
    failed: int
    failed_critical: int
    mttr_warm_ms_mean: float
    mttr_cold_ms_mean: float
    mttr_ms_max: float
    accuracy_before: float
    accuracy_during: float
    memory_overhead_pct: float


class DemoReport(msgspec.Struct):
    phases: list[PhaseReport]
    totals: Totals
    environment: dict[str, Any]


def phase_report(recording: Recording, phase: Phase, apps: dict[str, AppFacts]) -> PhaseReport:
    accounts = {app: _account(recording, phase, app, facts) for app, facts in apps.items()}
    return PhaseReport(phase.fault, phase.target, accounts)


def _account(recording: Recording, phase: Phase, app: str, facts: AppFacts) -> AppPhase:
    samples = recording.window(app, phase.began_s, phase.ended_s)
    good = sorted((s for s in samples if s.outcome == "ok"), key=lambda s: s.done_s)
    before = [s for s in good if s.done_s < phase.injected_s]
    after = [s for s in good if s.due_s >= phase.injected_s]
    first = after[0] if after else None
    latencies_ms = sorted(s.latency_s * 1000 for s in samples)
    mttr_ms = None
    if app in phase.lost and first is not None:
        mttr_ms = round((first.done_s - phase.injected_s) * 1000, 2)
    return AppPhase(
        criticality=facts.criticality.value,
        standby=phase.standbys.get(app, facts.standby),
        variant_before=_usual_variant(before),
        variant_first=first.variant if first else "",
        variant_after=after[-1].variant if after else "",
        mttr_ms=mttr_ms,
        requests=len(samples),
        failed=len(samples) - len(good),
        degraded=sum(1 for s in good if s.degraded),
        accuracy_before=_accuracy(before),
        accuracy_after=_accuracy([s for s in after if s.due_s < phase.repaired_s] or after),
        p50_ms=round(quantile(latencies_ms, 0.5) or 0.0, 3),
        p99_ms=round(quantile(latencies_ms, 0.99) or 0.0, 3),
        max_ms=round(latencies_ms[-1], 3) if latencies_ms else 0.0,
    )


def _usual_variant(samples: Sequence[Sample]) -> str:
    """Who serves; a hedged request that another variant answered doesn't count."""
    return Counter(s.variant for s in samples).most_common(1)[0][0] if samples else ""


def _accuracy(samples: Sequence[Sample]) -> float:
    return round(fmean(s.correct for s in samples), 4) if samples else 0.0


def totals_of(phases: Iterable[PhaseReport], memory_overhead_pct: float) -> Totals:
    accounts = [account for phase in phases for account in phase.apps.values()]
    lost = [a for a in accounts if a.mttr_ms is not None]

    def mttr_mean(standby: Standby) -> float:
        return _mean(a.mttr_ms for a in lost if a.standby == standby and a.mttr_ms is not None)

    return Totals(
        requests=sum(a.requests for a in accounts),
        failed=sum(a.failed for a in accounts),
        failed_critical=sum(a.failed for a in accounts if a.criticality == Criticality.CRITICAL),
        mttr_warm_ms_mean=round(mttr_mean("warm"), 2),
        mttr_cold_ms_mean=round(mttr_mean("cold"), 2),
        mttr_ms_max=max((a.mttr_ms for a in lost if a.mttr_ms is not None), default=0.0),
        accuracy_before=round(_mean(a.accuracy_before for a in lost), 4),
        accuracy_during=round(_mean(a.accuracy_after for a in lost), 4),
        memory_overhead_pct=round(memory_overhead_pct, 1),
    )


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return fmean(listed) if listed else 0.0


def broken_promises(
    recording: Recording, phases: Sequence[Phase], reports: Sequence[PhaseReport], apps: dict[str, AppFacts]
) -> list[str]:
    """One sentence for each thing that should have held and did not. Empty: the demonstration succeeded."""
    broken = []
    for phase, report in zip(phases, reports, strict=True):
        for app, account in report.apps.items():
            where = f"{report.fault} ({report.target}): {app}"
            if account.failed and account.criticality == Criticality.CRITICAL:
                broken.append(f"{where}: {account.failed} of {account.requests} requests failed")
            end = recording.window(app, phase.ended_s - END_WINDOW_S, phase.ended_s)
            if not any(s.outcome == "ok" for s in end):
                broken.append(f"{where}: no answer at the end of the phase")
            if app in phase.lost and account.mttr_ms is None:
                broken.append(f"{where}: never answered again after the fault")
    for app, account in reports[-1].apps.items() if reports else ():
        if account.variant_after != apps[app].full_size:
            broken.append(
                f"at the end {app} is served by {account.variant_after or 'nothing'}, not full-size"
            )
    return broken


def write_report(path: Path, report: DemoReport) -> None:
    """Whole or not at all, for whoever reads it meanwhile."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    partial.replace(path)


def phase_table(phase: PhaseReport) -> Table:
    """A line for each app that lost its replica; one for all others together."""
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{phase.fault}: {phase.target}", title_justify="left", title_style="bold"
    )
    table.add_column("app", min_width=14)
    table.add_column("standby", min_width=7)
    table.add_column("variant before → first → after", min_width=46)
    for heading in ("recovery ms", "requests", "failed", "accuracy %", "p50 ms", "p99 ms", "max ms"):
        table.add_column(heading, justify="right")
    for app, account in phase.apps.items():
        if account.mttr_ms is not None:
            table.add_row(*_account_cells(app, account))
    table.add_row(*_others_cells([a for a in phase.apps.values() if a.mttr_ms is None]))
    return table


def _account_cells(app: str, account: AppPhase) -> list[str]:
    variants = [account.variant_before, account.variant_first, account.variant_after]
    return [
        f"[bold]{app}[/]" if account.criticality == Criticality.CRITICAL else app,
        account.standby,
        " → ".join(variant or "?" for variant in variants),
        f"{account.mttr_ms:.1f}",
        str(account.requests),
        f"[bold red]{account.failed}[/]" if account.failed else "0",
        f"{account.accuracy_before * 100:.1f} → {account.accuracy_after * 100:.1f}",
        f"{account.p50_ms:.1f}",
        f"{account.p99_ms:.1f}",
        f"{account.max_ms:.1f}",
    ]


def _others_cells(accounts: Sequence[AppPhase]) -> list[str]:
    def over(pick: Callable[[AppPhase], float]) -> str:
        return f"{max(map(pick, accounts), default=0.0):.1f}"

    failed = sum(a.failed for a in accounts)
    return [
        f"[dim]{len(accounts)} others[/]",
        "",
        "[dim]not hit; latencies of the slowest[/]",
        "",
        str(sum(a.requests for a in accounts)),
        f"[bold red]{failed}[/]" if failed else "0",
        "",
        over(lambda a: a.p50_ms),
        over(lambda a: a.p99_ms),
        over(lambda a: a.max_ms),
    ]


def totals_table(totals: Totals) -> Table:
    """Measured beside aimed at beside published."""
    table = Table(box=box.SIMPLE_HEAD, title="in total", title_justify="left")
    table.add_column("")
    for heading in ("measured", "aim", "FailLite, as published"):
        table.add_column(heading, justify="right")
    failed_critical = _judged(totals.failed_critical, totals.failed_critical == 0, "d")
    table.add_row("requests", str(totals.requests), "", "")
    table.add_row("failed", str(totals.failed), "", "")
    table.add_row("failed, critical apps", failed_critical, "0", "")
    warm_ms, cold_ms = totals.mttr_warm_ms_mean, totals.mttr_cold_ms_mean
    published = f"{FAILLITE_MTTR_MS} ms"
    table.add_row(
        "recovery by warm standby, mean",
        _judged(warm_ms, warm_ms <= WARM_AIM_MS, ".1f") + " ms",
        f"≤ {WARM_AIM_MS:g} ms",
        published,
    )
    table.add_row(
        "recovery from cold, mean",
        _judged(cold_ms, cold_ms <= COLD_AIM_MS, ".1f") + " ms",
        f"≤ {COLD_AIM_MS:g} ms",
        published,
    )
    table.add_row("recovery, longest", f"{totals.mttr_ms_max:.1f} ms", "", "")
    loss = 0.0
    if totals.accuracy_before:
        loss = (totals.accuracy_before - totals.accuracy_during) / totals.accuracy_before
    table.add_row("accuracy lost while failed over", f"{loss:.1%}", "", f"{FAILLITE_ACCURACY_LOSS:.1%}")
    table.add_row("memory spent on protection", f"{totals.memory_overhead_pct:.1f} %", "", "")
    return table


def _judged(value: float, met: bool, form: str) -> str:
    return f"[bold {'green' if met else 'red'}]{value:{form}}[/]"
