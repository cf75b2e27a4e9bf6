"""`understudy demo`: build, start, break, measure, report."""

from __future__ import annotations

import asyncio
import datetime
import importlib.metadata
import os
import platform
import shutil
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from understudy.adapters.neighbours import BUSY_SHARE, Neighbours, too_busy
from understudy.adapters.task_groups import first_of
from understudy.cli.deploy import Bars, Silent, deploy
from understudy.cli.output import Output
from understudy.core.lifecycle import DeploymentPhase
from understudy.demo.memory import MemoryUse, measure
from understudy.demo.models import BuiltApp, build_with_progress
from understudy.demo.recording import LoadProcess, Recording, quantile
from understudy.demo.report import (
    AppFacts,
    DemoReport,
    broken_promises,
    phase_report,
    phase_table,
    totals_of,
    totals_table,
    write_report,
)
from understudy.demo.scenario import (
    GATEWAY,
    NODE_MEMORY_MB,
    NODES,
    OFFERED_FRACTION,
    Play,
    load_plan,
    offered_per_s,
    write_cluster,
)
from understudy.demo.view import REFRESH_S, View
from understudy.local.supervisor import Cluster
from understudy.wire.errors import Code, UnderstudyError

START_TIMEOUT_S = 30.0
DEPLOY_TIMEOUT_S = 120.0
CALIBRATED_S = 1.5  # of a closed loop, to find what this machine can do
LIBRARIES = ("msgspec", "numpy", "onnxruntime", "scikit-learn", "uvloop")


def run_demo(out_dir: Path, output: Output) -> bool:
    """The whole demonstration. False if something promised was not kept; the report says what.

    Raises BUSY where something was not kept while others used most of this machine: that says nothing.
    Writes `report.json`, the models, the cluster's files and logs under `out_dir`. As JSON the report
    goes to standard output and everything for people to standard error.
    """
    console = output.stderr if output.as_json else output.stdout
    out_dir.mkdir(parents=True, exist_ok=True)
    apps = build_with_progress(out_dir, console)
    cluster_dir = out_dir / "cluster"
    shutil.rmtree(cluster_dir, ignore_errors=True)
    cluster_dir.mkdir()
    cluster = Cluster(write_cluster(cluster_dir))
    try:
        report, broken = asyncio.run(_run(cluster, apps, console))
    except BaseExceptionGroup as group:
        error = first_of(group, UnderstudyError)
        if error is None:
            raise
        console.print(f"logs: {cluster.logs_dir}", soft_wrap=True)
        raise error from group
    write_report(out_dir / "report.json", report)
    if output.as_json:
        output.data(report)
    console.print(*map(phase_table, report.phases), totals_table(report.totals))
    console.print(f"report: {out_dir / 'report.json'}", soft_wrap=True)
    for sentence in broken:
        console.print(f"[bold red]not kept:[/] {sentence}", soft_wrap=True)
    if broken:
        console.print(f"logs: {cluster.logs_dir}", soft_wrap=True)
        if (share := report.environment["others_share"]) >= BUSY_SHARE:
            raise UnderstudyError(Code.BUSY, too_busy(share))
    return not broken


async def _run(cluster: Cluster, apps: list[BuiltApp], console: Console) -> tuple[DemoReport, list[str]]:
    facts = {a.family.app: AppFacts(a.family.criticality, "none", a.variants[0].name) for a in apps}
    address = cluster.config.gateway_named(GATEWAY).http
    neighbours = Neighbours()
    neighbours.start()
    set_up_s = time.monotonic()
    async with cluster:
        await _deploy(cluster, apps, console)
        deployed_s = time.monotonic()
        capacity_per_s = await _capacity_per_s(apps, address)
        rate_per_s = offered_per_s(capacity_per_s, len(apps))
        load = LoadProcess(load_plan(apps, address, rate_per_s))
        started_s = time.monotonic()
        with View(console, load.recording, facts) as view:
            view.tell(f"{len(apps)} apps deployed in {deployed_s - set_up_s:.1f} s")
            sent_per_s = len(apps) * rate_per_s
            view.tell(f"the machine does {capacity_per_s:,.0f} requests/s now; sending {sent_per_s:,.0f}")
            scenario = Play(cluster, load.recording, facts, view)
            memory = await _play(scenario, cluster, load, view)
    phases = scenario.phases
    reports = [phase_report(load.recording, phase, facts) for phase in phases]
    ended_s = time.monotonic()
    neighbours.stop()
    environment = _environment(load.recording, memory, ended_s - started_s) | {
        "capacity_per_s": round(capacity_per_s),
        "offered_fraction_max": OFFERED_FRACTION,
        "rate_per_s_per_app": round(rate_per_s, 1),
        "others_share": round(neighbours.share(started_s, ended_s), 3),
    }
    report = DemoReport(reports, totals_of(reports, memory.overhead_pct), environment)
    return report, broken_promises(load.recording, phases, reports, facts)


async def _deploy(cluster: Cluster, apps: list[BuiltApp], console: Console) -> None:
    """Start to ready. Raises LOAD_FAILED naming the apps that could not be deployed."""
    with console.status("starting three nodes in two sites"):
        await cluster.wait_until(lambda views: True, START_TIMEOUT_S, "the cluster's start")
    directory = apps[0].directory.parent
    with Bars(Output()) if console.is_terminal else nullcontext(Silent()) as progress:
        deployed = await asyncio.to_thread(
            deploy, cluster.control, directory, progress, wait_s=DEPLOY_TIMEOUT_S
        )
    failed = [f"{d.app}: {d.message}" for d in deployed if d.state != DeploymentPhase.READY]
    if failed:
        raise UnderstudyError(Code.LOAD_FAILED, f"deployment failed: {'; '.join(failed)}")


async def _capacity_per_s(apps: list[BuiltApp], address: str) -> float:
    """Right answers per second, over a few connections per app that ask again once they are answered."""
    load = LoadProcess(load_plan(apps, address, 0.0))
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(load.run())
        await asyncio.sleep(CALIBRATED_S)
        load.stop()
        await sending
    recording = load.recording
    samples = [s for app in recording.apps for s in recording.window(app, 0.0, float("inf"))]
    ends_s = sorted(s.done_s for s in samples if s.outcome == "ok")
    return (len(ends_s) - 1) / (ends_s[-1] - ends_s[0]) if len(ends_s) > 1 else 0.0


async def _play(scenario: Play, cluster: Cluster, load: LoadProcess, view: View) -> MemoryUse:
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(load.run())
        drawing = group.create_task(_draw(view))
        await scenario.warm_up()
        memory = measure(cluster, await scenario.replicas())
        await scenario.run()
        load.stop()
        await sending
        drawing.cancel()
    return memory


async def _draw(view: View) -> None:
    while True:
        await asyncio.sleep(REFRESH_S)
        view.refresh()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _environment(recording: Recording, memory: MemoryUse, run_s: float) -> dict[str, Any]:
    """Where it was measured, how, and what the words in the report mean."""
    samples = [s for app in recording.apps for s in recording.window(app, 0.0, float("inf"))]
    lags_ms = sorted(s.lag_s * 1000 for s in samples)
    failures = Counter(f"{s.outcome} {s.status or ''}".strip() for s in samples if s.outcome != "ok")
    return {
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform()},
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "nodes": {name: {"site": site, "memory_mb": NODE_MEMORY_MB} for name, site in NODES.items()},
        "run_s": round(run_s, 1),
        "send_lag_ms": {
            "p50": round(quantile(lags_ms, 0.5) or 0.0, 2),
            "p99": round(quantile(lags_ms, 0.99) or 0.0, 2),
            "max": round(lags_ms[-1], 2) if lags_ms else 0.0,
        },
        "failures": dict(failures),
        "memory_mb": {name: round(mb, 1) for name, mb in memory._asdict().items()},
        "definitions": {
            "mttr_ms": "fault -> end of the first good answer to a request that was due after it",
            "failed": "anything but a 200 with a well-formed answer within its deadline, for the client",
            "latency": "from the time at which a request was due, whenever it was sent",
            "accuracy": "share of answers with the true label; totals are over apps that lost their replica",
            "capacity_per_s": "what cluster and load generator do in a closed loop, before any fault",
            "others_share": "of the processors, used by processes that don't belong to the demonstration",
            "memory_overhead_pct": "PSS of standby replicas and blank workers, by that of primaries",
        },
    }
