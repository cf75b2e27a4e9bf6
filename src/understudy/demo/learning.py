"""Learning and exporting: from labelled rows to an artifact that a worker can load.

Every exported model answers alike, so that any variant of an app can stand in for any other: input
`input` FP32 [-1, features]; outputs `label` INT64 [-1] and `probabilities` FP32 [-1, classes].
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType
from sklearn.base import BaseEstimator
from sklearn.cluster import MiniBatchKMeans
from sklearn.compose import make_column_transformer
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

Floats = np.ndarray[Any, np.dtype[np.float32]]
Labels = np.ndarray[Any, np.dtype[np.int64]]

ONNX_OPSET = 17
SEED = 7
IMAGE_SIDE = 8  # of scikit-learn's handwritten digits
KNN_SOURCE = Path(__file__).with_name("knn_model.py")


@dataclass(frozen=True)
class Rows:
    """Labelled rows of one app, split once: nothing is learned from the held-out part."""

    x: Floats  # [rows, features]
    y: Labels  # [rows], 0 .. classes - 1
    x_held_out: Floats
    y_held_out: Labels
    classes: int


# Learns from the rows and writes the artifact (a file, or a directory for the python runtime).
Learner = Callable[[Rows, Path], None]


def exported(estimator: BaseEstimator) -> Learner:
    """Fit a scikit-learn classifier and write it as ONNX."""

    def learn(rows: Rows, path: Path) -> None:
        estimator.fit(rows.x, rows.y)
        model = to_onnx(
            estimator,
            initial_types=[("input", FloatTensorType([None, rows.x.shape[1]]))],
            final_types=[
                ("label", Int64TensorType([None])),
                ("probabilities", FloatTensorType([None, rows.classes])),
            ],
            options={id(estimator): {"zipmap": False}},
            target_opset=ONNX_OPSET,
        )
        path.write_bytes(model.SerializeToString())

    return learn


def forest(trees: int) -> Learner:
    """Extremely randomised trees, grown to the end: large files, but an answer touches little of them."""
    return exported(ExtraTreesClassifier(trees, random_state=SEED))


def tree(depth_max: int) -> Learner:
    return exported(DecisionTreeClassifier(max_depth=depth_max, random_state=SEED))


def linear(columns: slice = slice(None)) -> Learner:
    """Logistic regression on standardised features; on some of the `columns` only, if given."""
    scaler: Any = StandardScaler()
    if columns != slice(None):
        scaler = make_column_transformer((scaler, columns))
    return exported(make_pipeline(scaler, LogisticRegression(max_iter=300)))


def mlp(*hidden: int, rounds: int = 40) -> Learner:
    """Multi-layer perceptron on standardised features."""
    network = MLPClassifier(hidden, max_iter=rounds, random_state=SEED)
    return exported(make_pipeline(StandardScaler(), network))


def convolution(filters: int, hidden: int, rounds: int) -> Learner:
    """A convolutional network for 8 x 8 images whose 3 x 3 filters are cluster centres of image patches.

    Rectified responses, averaged over a 4 x 4 grid, feed a perceptron. (Coates, Lee and Ng, AISTATS
    2011: k-means features.)
    """
    side, threshold = 3, 0.2

    def learn(rows: Rows, path: Path) -> None:
        kernels = _patch_centres(rows.x, side, filters)
        features = _pooled_responses(rows.x, kernels, threshold)
        mean, scale = features.mean(0), features.std(0) + 1e-3
        network = MLPClassifier((hidden,), alpha=1e-2, max_iter=rounds, random_state=SEED)
        network.fit((features - mean) / scale, rows.y)
        path.write_bytes(_convolution_graph(rows, kernels, threshold, mean, scale, network))

    return learn


def nearest(neighbours: int, keep: int | None, *, shifted: bool = False) -> Learner:
    """k nearest neighbours in NumPy, for the `python` runtime: a directory with `model.py` and its data.

    `keep` prototypes per class (k-means) instead of all rows; `shifted` adds each 8 x 8 image moved by
    one pixel in each of the eight directions.
    """

    def learn(rows: Rows, path: Path) -> None:
        x, y = rows.x, rows.y
        if shifted:
            moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
            x = np.concatenate([_moved(rows.x, down, right) for down, right in moves])
            y = np.tile(rows.y, len(moves))
        if keep is not None:
            x, y = _prototypes(x, y, rows.classes, keep)
        path.mkdir()
        shutil.copyfile(KNN_SOURCE, path / "model.py")
        np.savez(
            path / "neighbours.npz", points=x.astype(np.float32), labels=y, classes=rows.classes, k=neighbours
        )

    return learn


def _moved(x: Floats, down: int, right: int) -> Floats:
    images = np.pad(x.reshape(-1, IMAGE_SIDE, IMAGE_SIDE), ((0, 0), (1, 1), (1, 1)))
    window = images[:, 1 - down : 1 - down + IMAGE_SIDE, 1 - right : 1 - right + IMAGE_SIDE]
    moved: Floats = window.reshape(len(x), -1)
    return moved


def _prototypes(x: Floats, y: Labels, classes: int, keep: int) -> tuple[Floats, Labels]:
    centres = [
        MiniBatchKMeans(keep, n_init=3, random_state=SEED).fit(x[y == label]).cluster_centers_
        for label in range(classes)
    ]
    return np.concatenate(centres), np.repeat(np.arange(classes), keep)


def _patches(x: Floats, side: int) -> Floats:
    """[rows, 8, 8, side * side]: what a kernel sees around each pixel, zero beyond the border."""
    edge = side // 2
    images = np.pad(x.reshape(-1, IMAGE_SIDE, IMAGE_SIDE), ((0, 0), (edge, edge), (edge, edge)))
    windows: Floats = sliding_window_view(images, (side, side), axis=(1, 2))
    return windows.reshape(len(x), IMAGE_SIDE, IMAGE_SIDE, side * side)


def _unit(vectors: Floats) -> Floats:
    centred = vectors - vectors.mean(1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: Floats = (centred / np.maximum(lengths, 1e-6)).astype(np.float32)
    return unit


def _patch_centres(x: Floats, side: int, filters: int) -> Floats:
    patches = _patches(x, side).reshape(-1, side * side)
    patches = patches[patches.std(1) > 0.05]
    sample = np.random.default_rng(SEED).permutation(len(patches))[:20_000]
    clusters = MiniBatchKMeans(filters, n_init=1, random_state=SEED, batch_size=2048, max_iter=20)
    return _unit(clusters.fit(_unit(patches[sample])).cluster_centers_)


def _pooled_responses(x: Floats, kernels: Floats, threshold: float) -> Floats:
    """[rows, filters * 16], ordered as the graph's Flatten orders them: filter, grid row, grid column."""
    side = int(np.sqrt(kernels.shape[1]))
    responses = np.maximum(_patches(x, side) @ kernels.T - threshold, 0.0)
    pooled: Floats = responses.reshape(len(x), 4, 2, 4, 2, len(kernels)).mean((2, 4))
    return pooled.transpose(0, 3, 1, 2).reshape(len(x), -1)


def _convolution_graph(
    rows: Rows, kernels: Floats, threshold: float, mean: Floats, scale: Floats, network: MLPClassifier
) -> bytes:
    side = int(np.sqrt(kernels.shape[1]))
    first, last = network.coefs_
    first = first / scale[:, None]  # standardisation folded into the first layer
    bias = network.intercepts_[0] - mean @ first
    weights = {
        "kernels": kernels.reshape(-1, 1, side, side),
        "thresholds": np.full(len(kernels), -threshold),
        "first": first,
        "first_bias": bias,
        "last": last,
        "last_bias": network.intercepts_[1],
    }
    initializers = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([-1, 1, IMAGE_SIDE, IMAGE_SIDE]), "image_shape"))
    edge = [side // 2] * 4
    nodes = [
        helper.make_node("Reshape", ["input", "image_shape"], ["image"]),
        helper.make_node("Conv", ["image", "kernels", "thresholds"], ["responses"], pads=edge),
        helper.make_node("Relu", ["responses"], ["rectified"]),
        helper.make_node("AveragePool", ["rectified"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "first", "first_bias"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "last", "last_bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [None, rows.x.shape[1]])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, rows.classes]),
        ],
        initializers,
    )
    opsets = [helper.make_opsetid("", ONNX_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
