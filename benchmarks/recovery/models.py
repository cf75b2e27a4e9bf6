"""The models that recover: files of published architectures, the right answers, manifests of each scheme.

Weights are random, so accuracies are not measured: they are those of benchmarks/data/vision_profiles.csv.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import cache
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx

from benchmarks.recovery.architectures import ARCHITECTURES
from benchmarks.recovery.graph import INPUT, OUTPUT, SHAPE, Graph
from understudy.wire.records import Criticality

SEED = 20_250_811
PROFILES = Path(__file__).resolve().parents[1] / "data" / "vision_profiles.csv"
SOURCES = ("architectures.py", "graph.py", "models.py")
MIB = 2**20
DEADLINE_MS = 5000.0

Array = npt.NDArray[np.float32]


class Scheme(StrEnum):
    """How apps are protected. All three are played on the same cluster, in one run."""

    UNDERSTUDY = "Understudy"
    COLD = "full-size-cold"
    WARM = "full-size-warm"


DEFINITIONS = {
    Scheme.UNDERSTUDY: "every variant deployed; apps critical (warm standby) and standard (cold) in turn",
    Scheme.COLD: "only the full-size variant of each app deployed; every app standard, so what is lost is "
    "loaded in full size on a node with room for it",
    Scheme.WARM: "only the full-size variant of each app deployed; every app critical, so as many as fit "
    "have a full-size standby, and the others are loaded in full size where a node has room",
}


class Published(msgspec.Struct, frozen=True):
    """A row of the table: what the literature says of a variant. Sizes in MiB."""

    family: str
    variant: str
    top1_pct: float
    file_mb: float


class Model(msgspec.Struct, frozen=True):
    """A file that was built. `best` and `logit`: the class that it gives the image, and its number."""

    family: str
    variant: str
    top1_pct: float
    published_mb: float
    file_mb: float
    digest: str
    best: int
    logit: float


class App(msgspec.Struct, frozen=True):
    """A family as it is deployed, best variant first."""

    name: str
    criticality: Criticality
    models: tuple[Model, ...]

    @property
    def full_size(self) -> Model:
        return self.models[0]


@cache
def published() -> dict[str, Published]:
    """Those rows of the table whose architecture can be built, by variant."""
    with PROFILES.open(newline="") as file:
        rows = [
            Published(row["family"], row["variant"], float(row["top1_pct"]), float(row["file_mb"]))
            for row in csv.DictReader(file)
        ]
    return {row.variant: row for row in rows if row.variant in ARCHITECTURES}


def image() -> Array:
    return np.random.default_rng(SEED).random((1, *SHAPE), np.float32)


def build(folder: Path) -> list[Model]:
    """Every variant as `<folder>/<variant>.onnx`; built once, and again when its recipe changes."""
    folder.mkdir(parents=True, exist_ok=True)
    key, stamp = _recipe_key(), folder / "built.json"
    if stamp.exists():
        built = json.loads(stamp.read_text())
        if built["key"] == key:
            return msgspec.convert(built["models"], list[Model])
        stamp.unlink()
    models = [build_model(variant, folder) for variant in published()]
    described = {"key": key, "models": msgspec.to_builtins(models)}
    stamp.write_text(json.dumps(described, indent=1))
    return models


def build_model(variant: str, folder: Path) -> Model:
    """Write one file, and find out what it answers."""
    path = folder / f"{variant}.onnx"
    graph = Graph(SEED)
    graph.write(ARCHITECTURES[variant](graph), path)
    logits = infer(path, image())
    best = int(logits.argmax())
    row = published()[variant]
    size_mb = round(path.stat().st_size / MIB, 2)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Model(
        row.family, variant, row.top1_pct, row.file_mb, size_mb, digest, best, float(logits[0, best])
    )


def infer(path: Path, rows: Array) -> Array:
    """The model's own answer, asked without any server."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits: Array = session.run([OUTPUT], {INPUT: rows})[0]
    return logits


def apps_of(models: Iterable[Model], scheme: Scheme) -> list[App]:
    """One app for each family. Their criticality takes turns in alphabetical order, or is the scheme's."""
    turns = (Criticality.CRITICAL, Criticality.STANDARD)
    fixed = {Scheme.COLD: Criticality.STANDARD, Scheme.WARM: Criticality.CRITICAL}
    apps = []
    by_family = groupby(sorted(models, key=lambda m: m.family), key=lambda m: m.family)
    for number, (family, members) in enumerate(by_family):
        ordered = sorted(members, key=lambda m: -m.top1_pct)
        kept = ordered if scheme is Scheme.UNDERSTUDY else ordered[:1]
        apps.append(App(family, fixed.get(scheme, turns[number % 2]), tuple(kept)))
    return apps


def write_manifests(apps: Sequence[App], models: Path, folder: Path) -> None:
    """`<folder>/<app>/APP.toml`, with the files in `models` as artifacts."""
    for app in apps:
        lines = [
            f"name = {json.dumps(app.name)}",
            f"criticality = {json.dumps(app.criticality.value)}",
            f"deadline_ms = {DEADLINE_MS}",
        ]
        for model in app.models:
            lines += [
                "",
                "[[variants]]",
                f"name = {json.dumps(model.variant)}",
                'runtime = "onnx"',
                f"artifact = {json.dumps(str(models / f'{model.variant}.onnx'))}",
                f"accuracy = {model.top1_pct / 100:.5f}",
            ]
        (folder / app.name).mkdir(parents=True)
        (folder / app.name / "APP.toml").write_text("\n".join(lines) + "\n")


def _recipe_key() -> str:
    digest = hashlib.sha256(onnx.__version__.encode())
    for source in SOURCES:
        digest.update(Path(__file__).with_name(source).read_bytes())
    return digest.hexdigest()
