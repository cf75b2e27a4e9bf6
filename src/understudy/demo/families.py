"""The demonstration's apps: real data that scikit-learn ships, a family of variants each.

Variants stand best first, as the recipes were chosen; what the manifest says is measured on held-out rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.model_selection import train_test_split

from understudy.demo.learning import (
    SEED,
    Floats,
    Labels,
    Learner,
    Rows,
    convolution,
    forest,
    linear,
    mlp,
    nearest,
    tree,
)
from understudy.wire.records import Criticality

HELD_OUT_FRACTION = 0.4
MEAN_MEASUREMENTS = slice(0, 10)  # breast cancer: ten means, then their errors and extremes
SEPAL_MEASUREMENTS = slice(0, 2)  # iris


@dataclass(frozen=True)
class VariantRecipe:
    name: str
    learn: Learner
    runtime: str = "onnx"


@dataclass(frozen=True)
class Family:
    """One app. `static_label` is what it answers when nothing else can: a declared last resort."""

    app: str
    about: str
    criticality: Criticality
    rows: Callable[[], tuple[Floats, Labels]]
    variants: tuple[VariantRecipe, ...]
    static_label: int | None = None

    def split(self) -> Rows:
        x, y = self.rows()
        x_train, x_held_out, y_train, y_held_out = train_test_split(
            x.astype(np.float32),
            y.astype(np.int64),
            test_size=HELD_OUT_FRACTION,
            stratify=y,
            random_state=SEED,
        )
        return Rows(x_train, y_train, x_held_out, y_held_out, classes=int(y.max()) + 1)


def _digits() -> tuple[Floats, Labels]:
    x, y = load_digits(return_X_y=True)
    return x / 16.0, y


def _digits_parity() -> tuple[Floats, Labels]:
    x, y = _digits()
    return x, y % 2


def _digits_high() -> tuple[Floats, Labels]:
    x, y = _digits()
    return x, (y >= 5).astype(np.int64)


def _digits_top() -> tuple[Floats, Labels]:
    x, y = _digits()
    return x[:, :32], y


FAMILIES = (
    Family(
        "digits",
        "which digit was written, 8 x 8 pixels",
        Criticality.CRITICAL,
        _digits,
        (
            VariantRecipe("convolution", convolution(filters=64, hidden=512, rounds=25)),
            VariantRecipe("convolution-small", convolution(filters=16, hidden=64, rounds=20)),
            VariantRecipe("linear", linear()),
            VariantRecipe("tree", tree(depth_max=8)),
        ),
    ),
    Family(
        "tumour",
        "malignant or benign, from thirty measurements of cell nuclei",
        Criticality.CRITICAL,
        lambda: load_breast_cancer(return_X_y=True),
        (
            VariantRecipe("mlp-large", mlp(1024, 512, rounds=30)),
            VariantRecipe("mlp-small", mlp(128, 64)),
            VariantRecipe("linear-means", linear(MEAN_MEASUREMENTS)),
            VariantRecipe("tree", tree(depth_max=2)),
        ),
    ),
    Family(
        "digits-parity",
        "is the written digit odd",
        Criticality.CRITICAL,
        _digits_parity,
        (
            VariantRecipe("forest", forest(200)),
            VariantRecipe("forest-small", forest(20)),
            VariantRecipe("mlp-small", mlp(64)),
            VariantRecipe("tree", tree(depth_max=5)),
        ),
    ),
    Family(
        "digits-high",
        "is the written digit five or more",
        Criticality.STANDARD,
        _digits_high,
        (
            VariantRecipe("forest", forest(200)),
            VariantRecipe("forest-small", forest(15)),
            VariantRecipe("mlp-small", mlp(64)),
            VariantRecipe("tree", tree(depth_max=6)),
        ),
    ),
    Family(
        "digits-top",
        "which digit was written, seen only its upper half",
        Criticality.STANDARD,
        _digits_top,
        (
            VariantRecipe("forest", forest(90)),
            VariantRecipe("forest-small", forest(20)),
            VariantRecipe("mlp-small", mlp(64)),
            VariantRecipe("tree", tree(depth_max=8)),
        ),
    ),
    Family(
        "digits-nearest",
        "which digit was written, by comparison with known ones",
        Criticality.STANDARD,
        _digits,
        (
            VariantRecipe("all-shifted", nearest(3, None, shifted=True), "python"),
            VariantRecipe("prototypes", nearest(1, 10), "python"),
            VariantRecipe("centres", nearest(1, 1), "python"),
        ),
    ),
    Family(
        "wine",
        "which of three growers, from thirteen chemical measurements",
        Criticality.STANDARD,
        lambda: load_wine(return_X_y=True),
        (
            VariantRecipe("forest", forest(150)),
            VariantRecipe("forest-small", forest(10)),
            VariantRecipe("linear", linear()),
            VariantRecipe("tree", tree(depth_max=2)),
        ),
        static_label=1,
    ),
    Family(
        "iris",
        "which of three species, from four measurements of the flower",
        Criticality.BEST_EFFORT,
        lambda: load_iris(return_X_y=True),
        (
            VariantRecipe("mlp-large", mlp(512, 256, rounds=150)),
            VariantRecipe("tree", tree(depth_max=2)),
            VariantRecipe("linear-sepal", linear(SEPAL_MEASUREMENTS)),
        ),
    ),
)
