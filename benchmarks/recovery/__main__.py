"""Kill the nodes of real clusters that serve real models, and measure from outside how long apps are away.

The same apps, nodes and kills under three schemes: Understudy, full-size-cold and full-size-warm
(`benchmarks.recovery.models.DEFINITIONS`). Models are built in build/recovery the first time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import results
from benchmarks.recovery import graph, load
from benchmarks.recovery.models import DEFINITIONS, SEED, App, Model, Scheme, apps_of, build, write_manifests
from benchmarks.recovery.report import PARTS, Recovery, aims_of, mean_ms, recoveries, rows_of
from benchmarks.recovery.scenario import NODE_MEMORY_MB, NODES, Played, play

FOLDER = results.ROOT / "build" / "recovery"
PACKAGES = ("understudy", "onnx", "onnxruntime", "numpy", "uvloop", "msgspec")
ACCURACY = "top-1 of benchmarks/data/vision_profiles.csv, as published: the weights here are random"
MTTR = (
    "kill -> end of the first right answer to a request sent after it, for apps whose only serving replica "
    "was on the node; figures are of those that were back before the node was"
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="kills of each node under each scheme")
    parser.add_argument(
        "--schemes", nargs="*", type=Scheme, choices=list(Scheme), metavar="NAME", help="these; write nothing"
    )
    options = parser.parse_args()
    console = Console()
    began_s, load_before = time.monotonic(), os.getloadavg()[0]
    console.print("building the models (the first time takes a minute)", highlight=False)
    models = build(FOLDER / "models")
    found: list[Recovery] = []
    clusters: dict[str, Any] = {}
    for scheme in options.schemes or list(Scheme):
        apps = apps_of(models, scheme)
        played = _play(scheme, apps, options.rounds, console)
        found += recoveries(scheme, apps, played)
        clusters[scheme] = _described(played)
    _show(console, found)
    if options.schemes:
        return
    environment = results.environment(
        PACKAGES,
        (),
        seed=SEED,
        rounds=options.rounds,
        nodes={name: {"memory_mb": NODE_MEMORY_MB} for name in NODES},
        image=list(graph.SHAPE),
        steady_s=load.STEADY_S,
        haste_s=load.HASTE_S,
        load_before=round(load_before, 2),
        priority=_priority(),
        run_s=round(time.monotonic() - began_s),
        schemes={scheme.value: words for scheme, words in DEFINITIONS.items()},
        clusters=clusters,
        parts=PARTS,
        accuracy=ACCURACY,
        mttr_ms=MTTR,
        models=[_row_of(model) for model in models],
        recoveries=msgspec.to_builtins(found),
    )
    path = results.write("recovery", environment, list(rows_of(found)), list(aims_of(found)))
    console.print(f"written: {path}", highlight=False)


def _play(scheme: Scheme, apps: list[App], rounds: int, console: Console) -> Played:
    manifests = FOLDER / "manifests"
    shutil.rmtree(manifests, ignore_errors=True)
    write_manifests(apps, FOLDER / "models", manifests)
    cluster = FOLDER / "clusters" / scheme.value
    began_s = time.monotonic()
    try:
        played = asyncio.run(play(apps, manifests, cluster, rounds))
    finally:
        shutil.rmtree(cluster / "data" / "artifacts", ignore_errors=True)  # gigabytes; the logs stay
        for copies in (cluster / "data" / "agent").glob("*/artifacts"):
            shutil.rmtree(copies, ignore_errors=True)
    console.print(
        f"{scheme}: {len(played.kills)} nodes killed in {time.monotonic() - began_s:.0f} s", highlight=False
    )
    return played


def _described(played: Played) -> dict[str, Any]:
    """`headroom`: room beyond the primaries, as a fraction of what they take when everything is well."""
    total_mb = NODE_MEMORY_MB * len(NODES)
    requests = sum(map(len, played.samples.values()))
    wrong = sum(not sample.right for samples in played.samples.values() for sample in samples)
    return {
        "kills": len(played.kills),
        "primaries_mb": round(played.primaries_mb),
        "standbys_mb": round(played.standbys_mb),
        "headroom": round(total_mb / played.primaries_mb - 1, 3),
        "requests": requests,
        "not_answered_rightly": wrong,
        "not_whole_in_time": played.not_whole,
    }


def _priority() -> str:
    """Of this session against others on the machine; "nice 0" unless somebody raised it."""
    autogroup = Path("/proc/self/autogroup")
    return autogroup.read_text().partition(" ")[2].strip() if autogroup.exists() else f"nice {os.nice(0)}"


def _row_of(model: Model) -> dict[str, Any]:
    return {
        name: getattr(model, name) for name in ("family", "variant", "top1_pct", "published_mb", "file_mb")
    }


def _show(console: Console, found: list[Recovery]) -> None:
    table = Table(title="recoveries")
    for heading in ("scheme", "node", "app", "standby", "before → first → after", "ms", "parts"):
        table.add_column(heading)
    for r in found:
        variants = " → ".join((r.variant_before, r.variant_first or "?", r.variant_after or "?"))
        parts = " ".join(f"{name} {value:.0f}" for name, value in r.parts_ms.items())
        ms = "never" if r.mttr_ms is None else f"{r.mttr_ms:.0f}"
        table.add_row(r.scheme, r.node, r.app, r.standby, variants, ms, parts)
    console.print(table)
    for scheme in dict.fromkeys(Scheme(r.scheme) for r in found):
        lost = [r for r in found if r.scheme == scheme]
        back = sum(r.mttr_ms is not None for r in lost)
        mean = f"mean over apps {mean_ms(found, scheme):.1f} ms"
        console.print(f"{scheme}: {back} of {len(lost)} recovered, {mean}", highlight=False)
    for aim in aims_of(found) if {r.scheme for r in found} == set(Scheme) else ():
        verdict = "met    " if aim.met else "NOT MET"
        console.print(f"{verdict} {aim.name}: {aim.value:g} (aim ≤ {aim.aim:g})", highlight=False)


if __name__ == "__main__":
    main()
