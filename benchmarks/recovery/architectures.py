"""The published architectures that the benchmark serves, by the names of benchmarks/data/vision_profiles.csv.

Each function adds a network to a graph and returns its last value. Widths, depths, kernels and strides are
those of the papers, in the variants that torchvision publishes:

    ResNet (arXiv 1512.03385), ResNeXt (1611.05431), DenseNet (1608.06993), MobileNetV2 (1801.04381),
    MobileNetV3 (1905.02244), MnasNet (1807.11626), ShuffleNetV2 (1807.11164), EfficientNet (1905.11946),
    RegNetX and RegNetY (2003.13678), ConvNeXt (2201.03545)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from benchmarks.recovery.graph import BRANCH_GAIN, CLASSES, INPUT, SHAPE, Graph

Architecture = Callable[[Graph], str]
Activation = Callable[[Graph, str], str]


def divisible(value: float, by: int = 8) -> int:
    """The nearest multiple of `by` that isn't more than a tenth below `value`."""
    rounded = max(by, int(value + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * value else rounded


def classified(g: Graph, x: str) -> str:
    return g.linear(g.flat(g.mean(x)), CLASSES)


def squeezed(g: Graph, x: str, channels: int, inner: Activation, outer: Activation) -> str:
    """Squeeze and excitation: each channel is weighed by what all of them are on average."""
    weights = g.conv(inner(g, g.conv(g.mean(x), channels)), g.channels[x])
    return g.multiply(x, outer(g, weights))


# ResNet, ResNeXt


def resnet(g: Graph, blocks: tuple[int, ...], *, deep: bool, groups: int = 1, group_width: int = 64) -> str:
    """`deep`: three convolutions in a block, not two."""
    x = g.max_pool(g.relu(g.conv(INPUT, 64, 7, 2)))
    for stage, count in enumerate(blocks):
        for block in range(count):
            stride = 2 if stage and not block else 1
            planes = 64 * 2**stage
            x = (
                _bottleneck(g, x, planes, stride, groups, group_width)
                if deep
                else _plain(g, x, planes, stride)
            )
    return classified(g, x)


def _plain(g: Graph, x: str, planes: int, stride: int) -> str:
    branch = g.conv(g.relu(g.conv(x, planes, 3, stride)), planes, 3, gain=BRANCH_GAIN)
    return g.relu(g.add(_shortcut(g, x, planes, stride), branch))


def _bottleneck(g: Graph, x: str, planes: int, stride: int, groups: int, group_width: int) -> str:
    width = planes * group_width // 64 * groups
    branch = g.relu(g.conv(g.relu(g.conv(x, width)), width, 3, stride, groups))
    branch = g.conv(branch, 4 * planes, gain=BRANCH_GAIN)
    return g.relu(g.add(_shortcut(g, x, 4 * planes, stride), branch))


def _shortcut(g: Graph, x: str, channels: int, stride: int) -> str:
    return x if g.channels[x] == channels and stride == 1 else g.conv(x, channels, 1, stride)


# RegNet


def regnet_x(depth: int, initial: int, slope: float, factor: float, group_width: int) -> Architecture:
    """`initial`, `slope` and `factor` are w0, wa and wm of the paper."""
    stages = _stages(depth, initial, slope, factor, group_width)
    return partial(_regnet, stages=stages, group_width=group_width, excited=False)


def regnet_y(depth: int, initial: int, slope: float, factor: float, group_width: int) -> Architecture:
    """The same with squeeze and excitation in each block."""
    stages = _stages(depth, initial, slope, factor, group_width)
    return partial(_regnet, stages=stages, group_width=group_width, excited=True)


def _regnet(g: Graph, stages: list[tuple[int, int]], group_width: int, excited: bool) -> str:
    x = g.relu(g.conv(INPUT, 32, 3, 2))
    for width, count in stages:
        for block in range(count):
            x = _regnet_block(g, x, width, 1 if block else 2, group_width, excited)
    return classified(g, x)


def _stages(depth: int, initial: int, slope: float, factor: float, group_width: int) -> list[tuple[int, int]]:
    """Width and number of blocks of each stage: the paper's equations 2 to 4, made multiples of groups."""
    widths = []
    for block in range(depth):
        power = round(math.log((initial + slope * block) / initial) / math.log(factor))
        widths.append(round(initial * factor**power / 8) * 8)
    stages = []
    for width in dict.fromkeys(widths):
        group = min(group_width, width)
        stages.append((divisible(width, group), widths.count(width)))
    return stages


def _regnet_block(g: Graph, x: str, width: int, stride: int, group_width: int, excited: bool) -> str:
    groups = width // min(group_width, width)
    branch = g.relu(g.conv(g.relu(g.conv(x, width)), width, 3, stride, groups))
    if excited:
        branch = squeezed(g, branch, round(0.25 * g.channels[x]), Graph.relu, Graph.sigmoid)
    branch = g.conv(branch, width, gain=BRANCH_GAIN)
    return g.relu(g.add(_shortcut(g, x, width, stride), branch))


# DenseNet


def densenet(g: Graph, blocks: tuple[int, ...], initial: int = 64, growth: int = 32) -> str:
    x = g.max_pool(g.relu(g.conv(INPUT, initial, 7, 2)))
    for number, layers in enumerate(blocks):
        for _ in range(layers):
            inner = g.relu(g.conv(g.relu(g.batch_norm(x)), 4 * growth))
            x = g.concat([x, g.conv(inner, growth, 3)])
        if number + 1 < len(blocks):
            x = g.halve(g.conv(g.relu(g.batch_norm(x)), g.channels[x] // 2))
    return classified(g, g.relu(g.batch_norm(x)))


# MobileNet, MnasNet, EfficientNet: inverted residuals


def inverted(
    g: Graph,
    x: str,
    expanded: int,
    channels: int,
    kernel: int,
    stride: int,
    activate: Activation,
    excite: Callable[[Graph, str], str] | None = None,
) -> str:
    """Expand, convolve each channel, perhaps weigh the channels, project; a residual where shapes agree."""
    inner = activate(g, g.conv(x, expanded)) if expanded != g.channels[x] else x
    inner = activate(g, g.depthwise(inner, kernel, stride))
    if excite is not None:
        inner = excite(g, inner)
    keeps_shape = stride == 1 and g.channels[x] == channels
    projected = g.conv(inner, channels, gain=BRANCH_GAIN if keeps_shape else 1.0)
    return g.add(x, projected) if keeps_shape else projected


def mobilenet_v2(g: Graph) -> str:
    x = g.relu6(g.conv(INPUT, 32, 3, 2))
    stages = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    )  # fmt: skip
    for expansion, channels, count, first_stride in stages:
        for block in range(count):
            stride = 1 if block else first_stride
            x = inverted(g, x, expansion * g.channels[x], channels, 3, stride, Graph.relu6)
    return classified(g, g.relu6(g.conv(x, 1280)))


# kernel, expanded channels, channels, squeeze and excitation, hard swish (else ReLU), stride
MOBILENET_V3_SMALL = (
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2),
    (5, 240, 40, 1, 1, 1), (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1),
    (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1),
)  # fmt: skip
MOBILENET_V3_LARGE = (
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2),
    (5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1),
    (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1),
)  # fmt: skip


def mobilenet_v3(g: Graph, blocks: tuple[tuple[int, ...], ...], last: int) -> str:
    x = g.hard_swish(g.conv(INPUT, 16, 3, 2))
    for kernel, expanded, channels, excited, swish, stride in blocks:
        activate = Graph.hard_swish if swish else Graph.relu
        weigh = partial(_weighed_v3, channels=divisible(expanded / 4)) if excited else None
        x = inverted(g, x, expanded, channels, kernel, stride, activate, weigh)
    features = g.flat(g.mean(g.hard_swish(g.conv(x, 6 * g.channels[x]))))
    return g.linear(g.hard_swish(g.linear(features, last)), CLASSES)


def _weighed_v3(g: Graph, x: str, channels: int) -> str:
    return squeezed(g, x, channels, Graph.relu, Graph.hard_sigmoid)


def mnasnet(g: Graph, width: float) -> str:
    stem, first, *rest = (divisible(width * d) for d in (32, 16, 24, 40, 80, 96, 192, 320))
    x = g.relu(g.depthwise(g.relu(g.conv(INPUT, stem, 3, 2)), 3))
    x = g.conv(x, first)
    stages = ((3, 2, 3, 3), (5, 2, 3, 3), (5, 2, 6, 3), (3, 1, 6, 2), (5, 2, 6, 4), (3, 1, 6, 1))
    for channels, (kernel, first_stride, expansion, count) in zip(rest, stages, strict=True):
        for block in range(count):
            stride = 1 if block else first_stride
            x = inverted(g, x, expansion * g.channels[x], channels, kernel, stride, Graph.relu)
    return classified(g, g.relu(g.conv(x, 1280)))


def efficientnet(g: Graph, width: float, depth: float) -> str:
    x = g.silu(g.conv(INPUT, divisible(32 * width), 3, 2))
    stages = (
        (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
    )  # fmt: skip
    for expansion, kernel, first_stride, channels, count in stages:
        for block in range(math.ceil(count * depth)):
            stride = 1 if block else first_stride
            weigh = partial(_weighed_silu, channels=max(1, g.channels[x] // 4))
            expanded = expansion * g.channels[x]
            x = inverted(g, x, expanded, divisible(channels * width), kernel, stride, Graph.silu, weigh)
    return classified(g, g.silu(g.conv(x, 4 * g.channels[x])))


def _weighed_silu(g: Graph, x: str, channels: int) -> str:
    return squeezed(g, x, channels, Graph.silu, Graph.sigmoid)


# ShuffleNetV2


def shufflenet(g: Graph, widths: tuple[int, int, int], last: int) -> str:
    x = g.max_pool(g.relu(g.conv(INPUT, 24, 3, 2)))
    size = SHAPE[1] // 4
    for channels, count in zip(widths, (4, 8, 4), strict=True):
        size //= 2
        for block in range(count):
            if block:
                left, right = g.split(x)
            else:
                left = g.relu(g.conv(g.depthwise(x, 3, 2), channels // 2))
                right = x
            right = g.depthwise(g.relu(g.conv(right, channels // 2)), 3, 1 if block else 2)
            x = g.shuffle(g.concat([left, g.relu(g.conv(right, channels // 2))]), size)
    return classified(g, g.relu(g.conv(x, last)))


# ConvNeXt


def convnext(g: Graph, depths: tuple[int, ...], width: int) -> str:
    x = g.layer_norm(g.channels_last(g.conv(INPUT, width, 4, 4, padding=0)))
    for stage, depth in enumerate(depths):
        channels = width * 2**stage
        if stage:
            x = g.channels_first(g.layer_norm(x))
            x = g.channels_last(g.conv(x, channels, 2, 2, padding=0))
        for _ in range(depth):
            branch = g.layer_norm(g.channels_last(g.depthwise(g.channels_first(x), 7)))
            branch = g.linear(g.gelu(g.linear(branch, 4 * channels)), channels)
            x = g.add(x, g.scale(branch, BRANCH_GAIN))
    features = g.flat(g.mean(g.channels_first(x)))
    return g.linear(g.layer_norm(features), CLASSES)


ARCHITECTURES: dict[str, Architecture] = {
    "convnext_tiny": partial(convnext, depths=(3, 3, 9, 3), width=96),
    "convnext_small": partial(convnext, depths=(3, 3, 27, 3), width=96),
    "convnext_base": partial(convnext, depths=(3, 3, 27, 3), width=128),
    "densenet121": partial(densenet, blocks=(6, 12, 24, 16)),
    "densenet169": partial(densenet, blocks=(6, 12, 32, 32)),
    "densenet201": partial(densenet, blocks=(6, 12, 48, 32)),
    "densenet161": partial(densenet, blocks=(6, 12, 36, 24), initial=96, growth=48),
    "efficientnet_b0": partial(efficientnet, width=1.0, depth=1.0),
    "efficientnet_b1": partial(efficientnet, width=1.0, depth=1.1),
    "efficientnet_b2": partial(efficientnet, width=1.1, depth=1.2),
    "efficientnet_b3": partial(efficientnet, width=1.2, depth=1.4),
    "efficientnet_b4": partial(efficientnet, width=1.4, depth=1.8),
    "efficientnet_b5": partial(efficientnet, width=1.6, depth=2.2),
    "mnasnet0_5": partial(mnasnet, width=0.5),
    "mnasnet1_0": partial(mnasnet, width=1.0),
    "mobilenet_v3_small": partial(mobilenet_v3, blocks=MOBILENET_V3_SMALL, last=1024),
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large": partial(mobilenet_v3, blocks=MOBILENET_V3_LARGE, last=1280),
    "regnet_y_400mf": regnet_y(16, 48, 27.89, 2.09, 8),
    "regnet_y_800mf": regnet_y(14, 56, 38.84, 2.4, 16),
    "regnet_y_1_6gf": regnet_y(27, 48, 20.71, 2.65, 24),
    "regnet_y_3_2gf": regnet_y(21, 80, 42.63, 2.66, 24),
    "regnet_y_8gf": regnet_y(17, 192, 76.82, 2.19, 56),
    "regnet_x_400mf": regnet_x(22, 24, 24.48, 2.54, 16),
    "regnet_x_800mf": regnet_x(16, 56, 35.73, 2.28, 16),
    "regnet_x_1_6gf": regnet_x(18, 80, 34.01, 2.25, 24),
    "regnet_x_3_2gf": regnet_x(25, 88, 26.31, 2.25, 48),
    "resnet18": partial(resnet, blocks=(2, 2, 2, 2), deep=False),
    "resnet34": partial(resnet, blocks=(3, 4, 6, 3), deep=False),
    "resnet50": partial(resnet, blocks=(3, 4, 6, 3), deep=True),
    "resnet101": partial(resnet, blocks=(3, 4, 23, 3), deep=True),
    "resnet152": partial(resnet, blocks=(3, 8, 36, 3), deep=True),
    "resnext50_32x4d": partial(resnet, blocks=(3, 4, 6, 3), deep=True, groups=32, group_width=4),
    "resnext101_64x4d": partial(resnet, blocks=(3, 4, 23, 3), deep=True, groups=64, group_width=4),
    "shufflenet_v2_x0_5": partial(shufflenet, widths=(48, 96, 192), last=1024),
    "shufflenet_v2_x1_0": partial(shufflenet, widths=(116, 232, 464), last=1024),
    "shufflenet_v2_x1_5": partial(shufflenet, widths=(176, 352, 704), last=1024),
    "shufflenet_v2_x2_0": partial(shufflenet, widths=(244, 488, 976), last=2048),
}  # fmt: skip
