"""A cluster for tests with other people's clients: every datatype, large tensors, and a model in ONNX."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tests.integration.families import write_linear_app
from tests.integration.harness import Harness, running

from understudy.wire.tensors import DATATYPES

ECHO = "echo"  # input NAME, output NAME_out, for the lower-case name of each datatype; shape [-1, 2]
LINEAR = "linear"  # x FP32 [-1, 4] -> y FP32 [-1, 3]
IMAGE = "image"  # x FP32 [-1, 3, 224, 224] -> y FP32 [-1, 3], the mean of each channel
ROOT = Path(__file__).resolve().parents[2]

IMAGE_MODEL = """
class Model:
    def load(self, path):
        pass

    def predict(self, inputs):
        return {"y": inputs["x"].mean((2, 3))}
"""
IMAGE_MANIFEST = f"""
name = "{IMAGE}"
deadline_ms = 5000
inputs = [{{ name = "x", datatype = "FP32", shape = [-1, 3, 224, 224] }}]
outputs = [{{ name = "y", datatype = "FP32", shape = [-1, 3] }}]
variants = [{{ name = "full", runtime = "python", artifact = "model.py", accuracy = 0.9 }}]
"""

ECHO_MODEL = """
class Model:
    def load(self, path):
        pass

    def predict(self, inputs):
        return {name + "_out": array for name, array in inputs.items()}
"""


def _write_echo_app(folder: Path) -> None:
    manifest = f'name = "{ECHO}"\ncriticality = "critical"\ndeadline_ms = 5000\n'
    for direction, suffix in (("inputs", ""), ("outputs", "_out")):
        for datatype in DATATYPES:
            manifest += f'\n[[{direction}]]\nname = "{datatype.lower()}{suffix}"\n'
            manifest += f'datatype = "{datatype}"\nshape = [-1, 2]\n'
    for variant, accuracy in (("full", 0.9), ("lite", 0.8)):
        (folder / variant).mkdir(parents=True)
        (folder / variant / "model.py").write_text(f"{ECHO_MODEL}# {variant}\n")
        manifest += f'\n[[variants]]\nname = "{variant}"\nruntime = "python"\n'
        manifest += f'artifact = "{variant}"\naccuracy = {accuracy}\nmemory_limit_mb = 400\n'
    (folder / "APP.toml").write_text(manifest)


def _write_image_app(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(IMAGE_MODEL)
    (folder / "APP.toml").write_text(IMAGE_MANIFEST)


def echo_arrays() -> dict[str, np.ndarray[Any, Any]]:
    """Two rows for each input of the echo app, the limits of its datatype among them. Not yet BF16's form."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for datatype, dtype in DATATYPES.items():
        if dtype.kind in "ui":
            limits = np.iinfo(dtype)
            values = np.array([[limits.min, limits.max], [0, 1]], dtype)
        elif dtype.kind == "b":
            values = np.array([[True, False], [False, True]])
        elif datatype == "BYTES":
            values = np.array([[b"", "näh".encode()], [b"a\0b", b"x" * 300]], dtype=object)
        else:
            values = np.array([[0.5, -1.0], [0.0, 240.0]], dtype)
        arrays[datatype.lower()] = values
    return arrays


class ClientsCluster:
    """A running cluster, for tests that aren't coroutines themselves."""

    def __init__(self, runner: asyncio.Runner, harness: Harness) -> None:
        self.harness = harness
        self._runner = runner

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.harness.ports[0]}"

    @property
    def grpc(self) -> str:
        return self.harness.cluster.config.gateway_named("g1").grpc

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(coroutine)

    @contextmanager
    def losing_a_node(self, app: str) -> Iterator[float]:
        """Kill the node that serves `app`; the block has the moment. Afterwards all is mended."""
        victim = self.run(self.harness.replica(app, role="primary"))["node"]
        self.harness.cluster.kill_node(victim)
        yield time.monotonic()
        self.harness.cluster.start_node(victim)
        self.run(self.mended())

    async def mended(self) -> None:
        await self.harness.node_states()
        await self.harness.full_size(ECHO, LINEAR, IMAGE)
        await self.harness.protected(ECHO, LINEAR)


@contextmanager
def clients_cluster(folder: Path, extra: str = "") -> Iterator[ClientsCluster]:
    """`extra` is appended to the cluster file. `ECHO` and `LINEAR` have a warm standby when it is up."""
    _write_echo_app(folder / "apps" / ECHO)
    _write_image_app(folder / "apps" / IMAGE)
    write_linear_app(folder / "apps" / LINEAR, LINEAR, "critical")
    with asyncio.Runner() as runner:
        context = running(folder, extra=extra, grpc=True)
        harness = runner.run(context.__aenter__())
        try:
            cluster = ClientsCluster(runner, harness)
            runner.run(cluster.mended())
            yield cluster
        finally:
            runner.run(context.__aexit__(None, None, None))
