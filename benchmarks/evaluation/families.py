"""The published profiles as families of variants, and how long a variant takes to answer for the first time.

Lives here: everything that is read from `benchmarks/data/vision_profiles.csv` or from another benchmark's
results. What it is used for is in `workloads` and `figures`.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

from benchmarks.results import RESULTS, ROOT
from understudy.core.planning.footprint import LOAD_MS, LOAD_MS_PER_MB
from understudy.wire.records import ArtifactRef, Profile, Variant

PROFILES = ROOT / "benchmarks" / "data" / "vision_profiles.csv"
# Two lines through the published loading times, ms and ms per MB of file. Those of efficientnet_b, shufflenet
# and resnet18-152 lie near the first and the others near the second: cached and uncached reads, it seems.
CACHED_READ = (298.0, 1.07)
UNCACHED_READ = (354.0, 9.67)
ACTIVATE_MS = 5.0  # asking the agent, which hands the model to a blank worker: what the planner reckons with


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the table. Accuracy is a fraction; what isn't in the name is on the NVIDIA A2."""

    family: str
    variant: str
    accuracy: float
    file_mb: float
    memory_mb: float
    first_inference_ms: float
    latency_ms: float


@cache
def table() -> dict[str, Measured]:
    """Rows by the variant's name."""
    with PROFILES.open(newline="") as file:
        return {
            row["variant"]: Measured(
                row["family"],
                row["variant"],
                float(row["top1_pct"]) / 100,
                float(row["file_mb"]),
                float(row["gpu_memory_mb"]),
                float(row["first_inference_ms"]),
                float(row["latency_ms"]),
            )
            for row in csv.DictReader(file)
        }


@cache
def ladders() -> dict[str, tuple[Variant, ...]]:
    """Family -> variants, best first, without those that another one beats in accuracy at no more memory."""
    families: dict[str, list[Measured]] = defaultdict(list)
    for row in table().values():
        families[row.family].append(row)
    found = {}
    for family, rows in families.items():
        kept: list[Measured] = []
        for row in sorted(rows, key=lambda r: (-r.accuracy, r.memory_mb)):
            if not kept or row.memory_mb < kept[-1].memory_mb:
                kept.append(row)
        found[family] = tuple(_variant(row) for row in kept)
    return found


def _variant(row: Measured) -> Variant:
    load_ms, first_ms = a2_cached(row)
    profile = Profile(0.0, row.memory_mb, load_ms + first_ms, row.latency_ms, "NVIDIA A2")
    artifact = ArtifactRef("0" * 64, round(row.file_mb * 1e6), f"{row.variant}.onnx")
    return Variant(row.variant, "onnx", artifact, row.accuracy, profile=profile)


# How long loading takes, and the first inference after it: (ms, ms)


def a2_cached(row: Measured) -> tuple[float, float]:
    base_ms, per_mb_ms = CACHED_READ
    return base_ms + per_mb_ms * row.file_mb, row.first_inference_ms


def a2_uncached(row: Measured) -> tuple[float, float]:
    base_ms, per_mb_ms = UNCACHED_READ
    return base_ms + per_mb_ms * row.file_mb, row.first_inference_ms


def cpu(row: Measured) -> tuple[float, float]:
    """ONNX Runtime on a CPU, file cached: the planner's estimate, which has the first inference in it."""
    return LOAD_MS + LOAD_MS_PER_MB * row.file_mb, 0.0


@cache
def detect_route_ms() -> float:
    """Fault -> the request is with a warm standby, and back: mean over the warm recoveries of `make demo`."""
    report = json.loads((RESULTS / "demo.json").read_text())
    return float(report["totals"]["mttr_warm_ms_mean"])
