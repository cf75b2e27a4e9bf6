"""Best classes: with the labels of their columns where there are some."""

from __future__ import annotations

import numpy as np

from understudy.gateway import triton
from understudy.wire.records import AppVersion, ArtifactRef, TensorSpec, Variant
from understudy.worker.classification import best_classes

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], np.float32)


def test_labels_follow_the_index() -> None:
    found = best_classes(SCORES, 2, batched=True, labels=("cat", "dog", "eel"))
    assert found.tolist() == [["0.700000:1:dog", "0.200000:2:eel"], ["0.500000:0:cat", "0.300000:2:eel"]]


def test_labels_of_other_columns_are_left_out() -> None:
    assert best_classes(SCORES, 1, batched=True, labels=("cat",)).tolist() == [["0.700000:1"], ["0.500000:0"]]


def test_tritons_configuration_has_formats_and_labels() -> None:
    app = AppVersion(
        "pets",
        1,
        (Variant("v", "onnx", ArtifactRef("0" * 64, 1, "v"), 0.9),),
        inputs=(TensorSpec("image", "FP32", (-1, 3, 8, 8), format="FORMAT_NCHW"),),
        outputs=(TensorSpec("scores", "FP32", (-1, 2), labels=("cat", "dog")),),
    )
    configuration = triton.configuration(app)
    assert configuration["input"][0]["format"] == "FORMAT_NCHW"
    assert configuration["output"][0]["label_filename"] == "scores.labels.txt"
