"""Writes image classifiers as ONNX graphs, layer by layer, with random weights from a seed.

Batch normalisation that follows a convolution is folded into it, as an exporter does, so a file is as large
as a published one: its size is that of its weights. Weights are scaled so that the activations of deep
networks stay finite.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT, OUTPUT = "image", "logits"
CLASSES = 1000
SHAPE = (3, 64, 64)  # a quick inference; weights, and so files, don't depend on it
BRANCH_GAIN = 0.3  # of the last convolution of a residual branch: sums don't grow with depth
OPSET, IR_VERSION = 20, 9


class Graph:
    """A network under construction. Values are known by name; `channels` says how deep each is."""

    def __init__(self, seed: int) -> None:
        self.channels = {INPUT: SHAPE[0]}
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    # layers

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        gain: float = 1.0,
        padding: int | None = None,
    ) -> str:
        """A convolution with its bias; padded by half its kernel unless told otherwise."""
        per_group = self.channels[x] // groups
        weight = self._drawn(channels, per_group, kernel, kernel, fan_in=per_group * kernel**2, gain=gain)
        pad = kernel // 2 if padding is None else padding
        return self._add(
            "Conv",
            [x, weight, self._constant(np.zeros(channels, np.float32))],
            channels,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            group=groups,
        )

    def depthwise(self, x: str, kernel: int, stride: int = 1) -> str:
        return self.conv(x, self.channels[x], kernel, stride, self.channels[x])

    def linear(self, x: str, features: int, *, gain: float = 1.0) -> str:
        """A matrix and its bias on the last dimension, whatever comes before it."""
        weight = self._drawn(self.channels[x], features, fan_in=self.channels[x], gain=gain)
        product = self._add("MatMul", [x, weight], features)
        return self._add("Add", [product, self._constant(np.zeros(features, np.float32))], features)

    def relu(self, x: str) -> str:
        return self._add("Relu", [x])

    def relu6(self, x: str) -> str:
        limits = [self._constant(np.array(limit, np.float32)) for limit in (0.0, 6.0)]
        return self._add("Clip", [x, *limits])

    def silu(self, x: str) -> str:
        return self._add("Mul", [x, self.sigmoid(x)])

    def sigmoid(self, x: str) -> str:
        return self._add("Sigmoid", [x])

    def hard_swish(self, x: str) -> str:
        return self._add("HardSwish", [x])

    def hard_sigmoid(self, x: str) -> str:
        return self._add("HardSigmoid", [x], alpha=1 / 6, beta=0.5)

    def gelu(self, x: str) -> str:
        return self._add("Gelu", [x])

    def add(self, x: str, y: str) -> str:
        return self._add("Add", [x, y])

    def multiply(self, x: str, y: str) -> str:
        return self._add("Mul", [x, y])

    def scale(self, x: str, gain: float) -> str:
        """One learned factor for each channel of the last dimension."""
        return self._add("Mul", [x, self._constant(np.full(self.channels[x], gain, np.float32))])

    def concat(self, parts: list[str]) -> str:
        return self._add("Concat", parts, sum(self.channels[part] for part in parts), axis=1)

    def batch_norm(self, x: str) -> str:
        """One that precedes its activation and so can't be folded."""
        channels = self.channels[x]
        values = (np.ones, np.zeros, np.zeros, np.ones)  # scale, bias, mean, variance
        return self._add(
            "BatchNormalization", [x, *(self._constant(of(channels, np.float32)) for of in values)]
        )

    def layer_norm(self, x: str) -> str:
        """Over the last dimension."""
        channels = self.channels[x]
        scale, bias = self._constant(np.ones(channels, np.float32)), np.zeros(channels, np.float32)
        return self._add("LayerNormalization", [x, scale, self._constant(bias)], epsilon=1e-6)

    def channels_last(self, x: str) -> str:
        return self._add("Transpose", [x], perm=[0, 2, 3, 1])

    def channels_first(self, x: str) -> str:
        return self._add("Transpose", [x], perm=[0, 3, 1, 2])

    def max_pool(self, x: str) -> str:
        return self._add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)

    def halve(self, x: str) -> str:
        return self._add("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2])

    def mean(self, x: str) -> str:
        """Of each channel, as a 1 x 1 image."""
        return self._add("GlobalAveragePool", [x])

    def flat(self, x: str) -> str:
        return self._add("Flatten", [x])

    def split(self, x: str) -> tuple[str, str]:
        """The two halves of the channels."""
        half = self.channels[x] // 2
        names = [f"v{len(self._nodes)}.{part}" for part in (0, 1)]
        self._nodes.append(helper.make_node("Split", [x], names, axis=1, num_outputs=2))
        self.channels |= dict.fromkeys(names, half)
        return names[0], names[1]

    def shuffle(self, x: str, size: int) -> str:
        """Channels of two groups in turn; `size` is the height and width of the image here."""
        channels = self.channels[x]
        grouped = self._reshaped(x, [-1, 2, channels // 2, size, size])
        turned = self._add("Transpose", [grouped], perm=[0, 2, 1, 3, 4])
        return self._reshaped(turned, [-1, channels, size, size])

    # the result

    def model(self, x: str) -> onnx.ModelProto:
        """The network that ends in `x`, a row of `CLASSES` numbers for each image."""
        self._nodes.append(helper.make_node("Identity", [x], [OUTPUT]))
        graph = helper.make_graph(
            self._nodes,
            "classifier",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", *SHAPE])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", CLASSES])],
            self._weights,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def write(self, x: str, path: Path) -> None:
        path.write_bytes(self.model(x).SerializeToString())

    def _add(self, operator: str, inputs: list[str], channels: int | None = None, **attributes: Any) -> str:
        name = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        self.channels[name] = self.channels[inputs[0]] if channels is None else channels
        return name

    def _reshaped(self, x: str, shape: list[int]) -> str:
        return self._add("Reshape", [x, self._constant(np.array(shape, np.int64))], self.channels[x])

    def _drawn(self, *shape: int, fan_in: int, gain: float) -> str:
        values = self._random.standard_normal(shape, np.float32)
        values *= np.float32(gain * math.sqrt(2 / fan_in))
        return self._constant(values)

    def _constant(self, values: np.ndarray[Any, Any]) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        return name
