"""The demonstration's models: what the manifests promise is what the artifacts do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from understudy.config import load_manifest
from understudy.demo.families import FAMILIES
from understudy.demo.models import build_app, build_models, recipe_key
from understudy.wire.records import Criticality
from understudy.worker.runtimes import make_runtime


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two apps built for real; the others are marked as built, so that nothing else is."""
    out = tmp_path_factory.mktemp("demo")
    models_dir = out / "models"
    models_dir.mkdir()
    for app in ("wine", "digits-nearest"):
        build_app(app, models_dir, recipe_key())
    return out


@pytest.mark.parametrize("app", ["wine", "digits-nearest"])
def test_declared_accuracy_is_measured_and_falls_with_size(out_dir: Path, app: str) -> None:
    directory = out_dir / "models" / app
    manifest = load_manifest(directory / "APP.toml")
    with np.load(directory / "held-out.npz") as held_out:
        x, y = held_out["x"], held_out["y"]
    for variant in manifest.variants:
        model = make_runtime(variant.runtime, threads=1)
        model.load(str(directory / variant.artifact), variant.options)
        answer = model.predict({"input": x})
        assert np.mean(answer["label"] == y) == pytest.approx(variant.accuracy, abs=1e-4)
        assert answer["probabilities"].shape == (len(x), manifest.outputs[1].shape[1])
    accuracies = [variant.accuracy for variant in manifest.variants]
    assert accuracies == sorted(set(accuracies), reverse=True)
    sizes = [_bytes(directory / variant.artifact) for variant in manifest.variants]
    assert sizes[0] > 10 * sizes[1] > 0


def _bytes(artifact: Path) -> int:
    files = artifact.rglob("*") if artifact.is_dir() else [artifact]
    return sum(file.stat().st_size for file in files if file.is_file())


def test_wine_declares_an_answer_for_when_nothing_else_can(out_dir: Path) -> None:
    manifest = load_manifest(out_dir / "models" / "wine" / "APP.toml")
    assert manifest.static is not None
    label, shares = manifest.static["outputs"]
    assert label["data"] == [1]
    assert sum(shares["data"]) == pytest.approx(1.0, abs=1e-3)


def test_nothing_is_built_again_unless_the_recipe_changed(
    out_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = [family for family in FAMILIES if family.app in ("wine", "digits-nearest")]
    monkeypatch.setattr("understudy.demo.models.FAMILIES", tuple(built))
    seen: list[tuple[str, bool]] = []
    apps = build_models(out_dir, lambda app, fresh: seen.append((app, fresh)))
    assert seen == [("digits-nearest", False), ("wine", False)]
    assert [app.variants[0].name for app in apps] == ["all-shifted", "forest"]
    monkeypatch.setattr("understudy.demo.models.recipe_key", lambda: "changed")
    monkeypatch.setattr("understudy.demo.models.FAMILIES", tuple(built[1:]))
    seen.clear()
    build_models(out_dir, lambda app, fresh: seen.append((app, fresh)))
    assert seen == [("wine", True)]


def test_the_apps_are_what_the_demonstration_needs() -> None:
    assert len(FAMILIES) >= 8
    assert all(len(family.variants) >= 3 for family in FAMILIES)
    assert len({family.app for family in FAMILIES}) == len(FAMILIES)
    criticalities = [family.criticality for family in FAMILIES]
    assert criticalities.count(Criticality.CRITICAL) >= 3
    assert criticalities.count(Criticality.BEST_EFFORT) == 1
    assert any(v.runtime == "python" for family in FAMILIES for v in family.variants)
    assert any(f.static_label is not None and f.criticality is Criticality.STANDARD for f in FAMILIES)
