"""Small real models for the fault tests: an ONNX family, and a python model that misbehaves on command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROWS = [[0.1, 0.2, 0.3, 0.4]]

MISCHIEF = '''
"""Doubles its input. Certain inputs make it misbehave, as does a file beside the test's cluster."""
import os, signal, time
from pathlib import Path
import numpy as np

ORDERS = Path({orders!r})

class Model:
    def load(self, path):
        if (ORDERS / "crash-on-load").exists():
            signal.raise_signal(signal.SIGSEGV)

    def predict(self, inputs):
        x = inputs["x"]
        first = x[:, 0]  # of each request in the batch
        if (first == 666).any():
            signal.raise_signal(signal.SIGSEGV)
        if (first == 512).any():
            self.hoard = np.ones((1024, 1024, 256))
        if (first == 404).any() or (ORDERS / "nan").exists():
            return {{"y": np.full_like(x, np.nan)}}
        if (ORDERS / "raise").exists():
            raise RuntimeError("told to fail")
        return {{"y": x * 2}}
'''


PICKY = '''
"""Doubles its input and always answers its probe (zeros). Users it may fail: see the orders."""
import time
from pathlib import Path
import numpy as np

ORDERS = Path({orders!r})

class Model:
    def load(self, path):
        self.replica = Path(path).parent.name

    def predict(self, inputs):
        x = inputs["x"]
        told = {{path.name for path in ORDERS.iterdir()}} if x.any() else ()
        for who in ({tag!r}, self.replica):
            if who + "-raise" in told:
                raise RuntimeError("told to fail")
            if who + "-nan" in told:
                return {{"y": np.full_like(x, np.nan)}}
            if who + "-sleep" in told:
                time.sleep(0.06)
            if who + "-hang" in told:
                time.sleep(3)
        return {{"y": x * 2}}
'''

SLEEPY = """
import time
import numpy as np

class Model:
    def load(self, path):
        self.weights = np.ones({weights_mb} * 1024 * 1024 // 8)

    def predict(self, inputs):
        time.sleep({pause_s})
        return {{"y": inputs["x"]}}
"""


def write_linear(path: Path, seed: int, hidden: int) -> None:
    """x[-1,4] -> relu(x W) V -> y[-1,3], with `hidden` units."""
    chance = np.random.default_rng(seed)
    w = chance.standard_normal((4, hidden)).astype(np.float32)
    v = chance.standard_normal((hidden, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "v"], ["y"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_linear_app(folder: Path, name: str, criticality: str, extra: str = "") -> None:
    """An app with a full-size variant of about 4 MB and a small one."""
    folder.mkdir(parents=True)
    write_linear(folder / "big.onnx", 1, 150_000)
    write_linear(folder / "small.onnx", 2, 64)
    (folder / "APP.toml").write_text(f'''
name = "{name}"
criticality = "{criticality}"
{extra}
[[variants]]
name = "big"
runtime = "onnx"
artifact = "big.onnx"
accuracy = 0.99

[[variants]]
name = "small"
runtime = "onnx"
artifact = "small.onnx"
accuracy = 0.95
''')


def write_mischief_app(folder: Path, name: str, orders: Path, criticality: str = "standard") -> None:
    """The first python model above, in two variants with the same code."""
    orders.mkdir(parents=True, exist_ok=True)
    code = MISCHIEF.format(orders=str(orders))
    sources = {variant: f"{code}# {variant}\n" for variant in ("full", "lite")}
    write_python_app(folder, name, sources, f'criticality = "{criticality}"\ndeadline_ms = 8000')


def write_picky_app(folder: Path, name: str, orders: Path, tags: dict[str, str], extra: str = "") -> None:
    """The second python model above. `tags`: variant, best first -> how its orders begin, else a replica."""
    orders.mkdir(parents=True, exist_ok=True)
    sources = {variant: PICKY.format(orders=str(orders), tag=tag) for variant, tag in tags.items()}
    write_python_app(folder, name, sources, extra)


def write_sleepy_app(folder: Path, name: str, extra: str = "", **sleep_ms: float) -> None:
    """Variants of the python runtime that take one row at a time and do nothing for so long; best first.

    The first is by far the largest and little better, so a smaller one becomes its standby.
    """
    sources = {
        variant: SLEEPY.format(pause_s=pause_ms / 1000, weights_mb=8 if index else 80)
        for index, (variant, pause_ms) in enumerate(sleep_ms.items())
    }
    extra += "\n[batching]\nrows_max = 1\n"
    write_python_app(folder, name, sources, extra, accuracy_step=0.001, datatype="FP32")


def write_python_app(
    folder: Path,
    name: str,
    sources: dict[str, str],
    extra: str,
    *,
    accuracy_step: float = 0.1,
    datatype: str = "FP64",
) -> None:
    """`sources`: variant, best first -> its code."""
    manifest = f'''
name = "{name}"
{extra}

[[inputs]]
name = "x"
datatype = "{datatype}"
shape = [-1, 4]

[[outputs]]
name = "y"
datatype = "{datatype}"
shape = [-1, 4]
'''
    for index, (variant, source) in enumerate(sources.items()):
        (folder / variant).mkdir(parents=True, exist_ok=True)
        (folder / variant / "model.py").write_text(source)
        manifest += f'''
[[variants]]
name = "{variant}"
runtime = "python"
artifact = "{variant}"
accuracy = {0.9 - index * accuracy_step}
memory_limit_mb = 400
'''
    (folder / "APP.toml").write_text(manifest)
