"""Builds the demonstration's models: `python -m understudy.demo.models OUT_DIR`.

Per app a directory `<out>/models/<app>` with `APP.toml`, one artifact per variant and `held-out.npz` (rows
and labels nothing was learned from). A directory is built whole or not at all, and again only when it is
missing or its recipe changed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import multiprocessing
import shutil
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from understudy.demo.families import FAMILIES, Family, VariantRecipe
from understudy.demo.learning import Floats, Labels, Rows
from understudy.wire.errors import Code, UnderstudyError
from understudy.worker.runtimes import make_runtime

SOURCES = ("families.py", "knn_model.py", "learning.py", "models.py")
LIBRARIES = ("numpy", "onnx", "scikit-learn", "skl2onnx")
BUILD_PROCESSES_MAX = 4
OnBuilt = Callable[[str, bool], None]  # app, whether it had to be built


@dataclass(frozen=True)
class BuiltVariant:
    name: str
    runtime: str
    artifact: str
    accuracy: float
    size_bytes: int


@dataclass(frozen=True)
class BuiltApp:
    """An app ready to be deployed. `variants` stand best first, by measured accuracy."""

    family: Family
    directory: Path
    variants: tuple[BuiltVariant, ...]

    @property
    def manifest(self) -> Path:
        return self.directory / "APP.toml"

    def held_out(self) -> tuple[Floats, Labels]:
        """Rows and labels that no variant has learned from."""
        with np.load(self.directory / "held-out.npz") as data:
            return data["x"], data["y"]


def build_models(out_dir: Path, on_built: OnBuilt = lambda app, fresh: None) -> list[BuiltApp]:
    """All apps, built where needed, in the order of `FAMILIES`. About twenty seconds on two cores."""
    key = recipe_key()
    models_dir = out_dir / "models"
    models_dir.mkdir(parents=True, exist_ok=True)
    stale = []
    for family in FAMILIES:
        if _is_current(models_dir / family.app, key):
            on_built(family.app, False)
        else:
            stale.append(family.app)
    if stale:
        # Spawned, not forked: the caller may run threads (a progress display does)
        context = multiprocessing.get_context("spawn")
        processes = min(BUILD_PROCESSES_MAX, multiprocessing.cpu_count(), len(stale))
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            built = {pool.submit(build_app, app, models_dir, key): app for app in stale}
            for future in as_completed(built):
                future.result()
                on_built(built[future], True)
    return [_read_app(family, models_dir / family.app) for family in FAMILIES]


def recipe_key() -> str:
    """Changes with whatever the models depend on: this package's sources and the libraries that learn."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update(Path(__file__).with_name(source).read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}".encode())
    return digest.hexdigest()


def build_app(app: str, models_dir: Path, key: str) -> None:
    """Learn, export, measure, describe; then put in place."""
    family = next(f for f in FAMILIES if f.app == app)
    partial = models_dir / f".{app}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    rows = family.split()
    with threadpool_limits(1), warnings.catch_warnings():  # one core per app; and sums always in one order
        warnings.simplefilter("ignore", ConvergenceWarning)  # training stops early on purpose
        variants = [_build_variant(recipe, rows, partial) for recipe in family.variants]
    variants.sort(key=lambda v: (-v.accuracy, v.size_bytes))
    if variants[0].name != family.variants[0].name:
        raise UnderstudyError(
            Code.INTERNAL,
            f"{app}: {variants[0].name} is more accurate than the full-size {family.variants[0].name}",
        )
    np.savez(partial / "held-out.npz", x=rows.x_held_out, y=rows.y_held_out)
    (partial / "APP.toml").write_text(_manifest(family, variants, rows))
    described = {"key": key, "variants": [v.__dict__ for v in variants]}
    (partial / "built.json").write_text(json.dumps(described, indent=2))
    shutil.rmtree(models_dir / app, ignore_errors=True)
    partial.rename(models_dir / app)


def _build_variant(recipe: VariantRecipe, rows: Rows, directory: Path) -> BuiltVariant:
    artifact = recipe.name if recipe.runtime == "python" else f"{recipe.name}.onnx"
    path = directory / artifact
    recipe.learn(rows, path)
    files = path.rglob("*") if path.is_dir() else [path]
    size_bytes = sum(file.stat().st_size for file in files if file.is_file())
    accuracy = _accuracy(recipe.runtime, path, rows)
    return BuiltVariant(recipe.name, recipe.runtime, artifact, accuracy, size_bytes)


def _accuracy(runtime: str, path: Path, rows: Rows) -> float:
    """Share of held-out rows that the exported artifact, not the estimator it came from, labels rightly."""
    model = make_runtime(runtime, threads=1)
    model.load(str(path), {})
    labels = model.predict({"input": rows.x_held_out})["label"]
    return round(float(np.mean(labels == rows.y_held_out)), 4)


def _manifest(family: Family, variants: list[BuiltVariant], rows: Rows) -> str:
    """APP.toml. JSON's strings and lists are TOML's too."""
    features, classes = rows.x.shape[1], rows.classes
    lines = [
        f"# {family.about}",
        f"name = {json.dumps(family.app)}",
        f"criticality = {json.dumps(family.criticality.value)}",
        "deadline_ms = 1000.0",
        f'inputs = [{{ name = "input", datatype = "FP32", shape = [-1, {features}] }}]',
        'outputs = [{ name = "label", datatype = "INT64", shape = [-1] }, '
        f'{{ name = "probabilities", datatype = "FP32", shape = [-1, {classes}] }}]',
    ]
    for variant in variants:
        lines += [
            "",
            "[[variants]]",
            f"name = {json.dumps(variant.name)}",
            f"runtime = {json.dumps(variant.runtime)}",
            f"artifact = {json.dumps(variant.artifact)}",
            f"accuracy = {variant.accuracy}",
        ]
    if family.static_label is not None:
        shares = np.bincount(rows.y, minlength=classes) / len(rows.y)
        lines += [
            "",
            "# The last resort: the most frequent class, with the shares that the classes have.",
            "[[static.outputs]]",
            'name = "label"',
            'datatype = "INT64"',
            "shape = [1]",
            f"data = [{family.static_label}]",
            "[[static.outputs]]",
            'name = "probabilities"',
            'datatype = "FP32"',
            f"shape = [1, {classes}]",
            f"data = {json.dumps([round(float(share), 4) for share in shares])}",
        ]
    return "\n".join(lines) + "\n"


def _is_current(directory: Path, key: str) -> bool:
    try:
        return bool(json.loads((directory / "built.json").read_text())["key"] == key)
    except (OSError, ValueError, KeyError):
        return False


def _read_app(family: Family, directory: Path) -> BuiltApp:
    described = json.loads((directory / "built.json").read_text())
    return BuiltApp(family, directory, tuple(BuiltVariant(**v) for v in described["variants"]))


def build_with_progress(out_dir: Path, console: Console) -> list[BuiltApp]:
    """`build_models` with a bar on a terminal, or a line per app elsewhere."""
    columns = (TextColumn("building models"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(FAMILIES))

        def on_built(app: str, fresh: bool) -> None:
            progress.advance(task)
            if fresh and not console.is_terminal:
                console.print(f"built {app}")

        return build_models(out_dir, on_built)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m understudy.demo.models", description=__doc__)
    parser.add_argument("out_dir", type=Path)
    console = Console()
    for app in build_with_progress(parser.parse_args(arguments).out_dir, console):
        console.print(f"[bold]{app.family.app}[/] ({app.family.criticality})  {app.manifest}")
        for variant in app.variants:
            size_mb = variant.size_bytes / 1e6
            console.print(
                f"    {variant.name:14} {variant.accuracy:7.2%} {size_mb:8.2f} MB  {variant.runtime}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
