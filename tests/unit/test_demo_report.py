"""Figures from synthetic samples, worked out by hand."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from understudy.demo.load import Sample
from understudy.demo.recording import Recording, quantile
from understudy.demo.report import (
    AppFacts,
    DemoReport,
    Phase,
    broken_promises,
    phase_report,
    phase_table,
    totals_of,
    totals_table,
    write_report,
)
from understudy.demo.view import state_of
from understudy.wire.records import Criticality

APPS = {
    "digits": AppFacts(Criticality.CRITICAL, "none", "large"),
    "wine": AppFacts(Criticality.STANDARD, "none", "large"),
}
PHASE = Phase(
    fault="node killed",
    target="n1",
    began_s=100.0,
    injected_s=102.0,
    repaired_s=104.0,
    ended_s=106.0,
    lost=frozenset({"digits"}),
    standbys={"digits": "warm", "wine": "cold"},
)


def sample(app: int, due_s: float, latency_s: float = 0.002, **changes: Any) -> Sample:
    fields = {"lag_s": 0.001, "outcome": "ok", "status": 200, "variant": "large", "correct": True} | changes
    return Sample(app, due_s, latency_s=latency_s, **fields)


def recording(*extra: Sample) -> Recording:
    """Both apps answer every half second; digits by `small` from the fault until the repair."""
    whole = Recording(APPS)
    for number in range(12):
        due_s = 100.0 + number / 2
        small = 102.0 <= due_s < 104.0
        changes = {"variant": "small", "degraded": "n1 lost", "correct": False} if small else {}
        whole.add([sample(0, due_s, 0.013 if due_s == 102.0 else 0.002, **changes), sample(1, due_s)])
    whole.add(extra)
    return whole


def test_recovery_runs_to_the_end_of_the_first_good_answer_due_after_the_fault() -> None:
    before = sample(0, 101.999, 0.005)  # in flight when the fault came: not a sign of recovery
    sooner = sample(0, 102.004, 0.006, variant="small", degraded="n1 lost")  # due later, answered first
    digits = phase_report(recording(before, sooner), PHASE, APPS).apps["digits"]
    assert digits.mttr_ms == pytest.approx(10.0)
    assert (digits.variant_before, digits.variant_first, digits.variant_after) == ("large", "small", "large")


def test_a_failed_request_is_no_recovery() -> None:
    failed = sample(0, 102.001, 0.002, outcome="status", status=503)
    digits = phase_report(recording(failed), PHASE, APPS).apps["digits"]
    assert digits.mttr_ms == pytest.approx(13.0)
    assert digits.failed == 1


def test_an_app_that_lost_nothing_has_no_recovery_time() -> None:
    wine = phase_report(recording(), PHASE, APPS).apps["wine"]
    assert wine.mttr_ms is None
    assert (wine.standby, wine.criticality) == ("cold", "standard")


def test_each_phase_counts_all_of_its_requests_and_no_others() -> None:
    digits = phase_report(recording(sample(0, 106.0), sample(0, 99.9)), PHASE, APPS).apps["digits"]
    assert (digits.requests, digits.failed, digits.degraded) == (12, 0, 4)
    assert (digits.accuracy_before, digits.accuracy_after) == (1.0, 0.0)
    assert (digits.p50_ms, digits.max_ms) == (2.0, 13.0)


def test_totals_are_over_apps_that_lost_their_replica() -> None:
    phases = [phase_report(recording(), PHASE, APPS) for _ in range(2)]
    phases[1].apps["wine"].mttr_ms = 120.0
    phases[1].apps["wine"].failed = 3
    totals = totals_of(phases, memory_overhead_pct=12.34)
    assert (totals.requests, totals.failed, totals.failed_critical) == (48, 3, 0)
    assert (totals.mttr_warm_ms_mean, totals.mttr_cold_ms_mean, totals.mttr_ms_max) == (13.0, 120.0, 120.0)
    assert totals.accuracy_before == 1.0
    assert totals.accuracy_during == pytest.approx(1 / 3, abs=1e-4)
    assert totals.memory_overhead_pct == 12.3


def broken(whole: Recording) -> list[str]:
    return broken_promises(whole, [PHASE], [phase_report(whole, PHASE, APPS)], APPS)


def test_nothing_is_broken_when_everything_was_kept() -> None:
    assert broken(recording()) == []


def test_a_critical_app_may_not_fail_a_standard_one_may() -> None:
    assert broken(recording(sample(1, 102.1, outcome="timeout", status=0))) == []
    (sentence,) = broken(recording(sample(0, 102.1, outcome="timeout", status=0)))
    assert "digits: 1 of 13 requests failed" in sentence


def test_every_app_answers_at_the_end_in_full_size() -> None:
    whole = Recording(APPS)
    whole.add([sample(0, 102.5), sample(0, 105.9, variant="small"), sample(1, 102.5)])
    sentences = broken(whole)
    assert len(sentences) == 2
    assert "wine: no answer at the end of the phase" in sentences[0]
    assert sentences[1] == "at the end digits is served by small, not full-size"


def test_a_lost_app_that_never_answers_again_is_told() -> None:
    whole = Recording(APPS)
    whole.add([sample(0, 101.0), sample(1, 105.9)])
    assert any("digits: never answered again" in sentence for sentence in broken(whole))


def test_the_report_is_written_as_described(tmp_path: Path) -> None:
    phases = [phase_report(recording(), PHASE, APPS)]
    report = DemoReport(phases, totals_of(phases, 10.0), {"cpus": 2})
    write_report(tmp_path / "report.json", report)
    document = json.loads((tmp_path / "report.json").read_text())
    assert set(document) == {"phases", "totals", "environment"}
    assert set(document["phases"][0]) == {"fault", "target", "apps"}
    assert set(document["phases"][0]["apps"]["digits"]) == {
        *("criticality", "standby", "variant_before", "variant_first", "variant_after", "mttr_ms"),
        *("requests", "failed", "degraded", "accuracy_before", "accuracy_after"),
        *("p50_ms", "p99_ms", "max_ms"),
    }
    assert set(document["totals"]) == {
        *("requests", "failed", "failed_critical", "mttr_warm_ms_mean", "mttr_cold_ms_mean", "mttr_ms_max"),
        *("accuracy_before", "accuracy_during", "memory_overhead_pct"),
    }
    assert document["phases"][0]["apps"]["wine"]["mttr_ms"] is None


def test_the_tables_put_the_published_figures_beside_the_measured_ones() -> None:
    phases = [phase_report(recording(), PHASE, APPS)]
    report = DemoReport(phases, totals_of(phases, 10.0), {})
    console = Console(file=StringIO(), width=200)
    console.print(phase_table(phases[0]), totals_table(report.totals))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "large → small → large" in text
    assert "175.5 ms" in text


def test_the_last_second_says_who_serves() -> None:
    whole = Recording(APPS)
    whole.add([sample(0, 100.0), sample(0, 100.1, variant="small", degraded="n1 lost")])
    assert state_of(whole.recent("digits", 100.2), "large") == "degraded"
    whole.add([sample(0, 100.2)])
    assert state_of(whole.recent("digits", 100.3), "large") == "full-size"
    assert state_of(whole.recent("digits", 200.0), "large") == ""
    whole.add([sample(0, 200.0, outcome="lost", status=0, variant="")])
    assert state_of(whole.recent("digits", 200.1), "large") == "no answer"
    assert whole.failed("digits") == 1


def test_quantiles_are_samples() -> None:
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile([1.0, 2.0, 3.0], 0.99) == 3.0
    assert quantile([], 0.5) is None
