"""examples/python-model: its files are what its manifest and its README say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from understudy.config import load_manifest
from understudy.settings.manifest import VariantManifest
from understudy.worker.runtimes import make_runtime

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "python-model"
MANIFEST = load_manifest(EXAMPLE / "APP.toml")
HELD_OUT = np.loadtxt(EXAMPLE / "held-out.csv", np.float32, delimiter=",", skiprows=1)


@pytest.mark.parametrize("variant", MANIFEST.variants, ids=lambda variant: variant.name)
def test_declared_accuracies_are_measured(variant: VariantManifest) -> None:
    model = make_runtime(variant.runtime, threads=1)
    model.load(str(EXAMPLE / variant.artifact), variant.options)
    answer = model.predict({"flower": HELD_OUT[:, :4]})
    assert np.mean(answer["species"] == HELD_OUT[:, 4]) == pytest.approx(variant.accuracy, abs=1e-4)
    assert answer["species"].dtype == np.int64
    assert answer["certainty"].dtype == np.float32


def test_nothing_was_learned_from_held_out_flowers() -> None:
    learned = np.loadtxt(EXAMPLE / "nearest" / "flowers.csv", np.float32, delimiter=",", skiprows=1)
    assert (len(learned), len(HELD_OUT)) == (90, 60)
