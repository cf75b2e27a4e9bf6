"""Models that work for as long as they are asked to, in every way that a worker can be kept busy.

Used by a short test here, and by `tests/longwork/run.py` for the whole range.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from harness import Harness, closed, read_answer, request_bytes
from onnx import TensorProto, helper, numpy_helper

ROUNDS_PER_S = 500_000  # of the ONNX loop; only the order of magnitude matters
WAYS = {
    "sleeps": "time.sleep(seconds)",
    "spins": "until = time.monotonic() + seconds\n    while time.monotonic() < until: pass",
    "holds": "ctypes.PyDLL(None).usleep(ctypes.c_uint(int(seconds * 1e6)))  # with the interpreter's lock",
}
APPS = (*WAYS, "loops")
MODEL = """
import ctypes, time

def work(seconds):
    {way}

class Model:
    def load(self, path):
        work({load_s})

    def predict(self, inputs):
        work(float(inputs["x"][0, 0]))
        return {{"y": inputs["x"] * 2}}
"""
MANIFEST = """
name = "{name}"
criticality = "critical"
deadline_ms = {deadline_ms}
batching.rows_max = 1
{tensors}

[[variants]]
name = "only"
runtime = "{runtime}"
artifact = "{artifact}"
accuracy = 0.9
{more}
"""
TENSORS = """
inputs = [{ name = "x", datatype = "FP32", shape = [-1, 1] }]
outputs = [{ name = "y", datatype = "FP32", shape = [-1, 1] }]
"""


def write_apps(apps: Path, deadline_ms: float) -> None:
    for name, way in WAYS.items():
        folder = apps / name
        (folder / "m").mkdir(parents=True)
        (folder / "m" / "model.py").write_text(MODEL.format(way=way, load_s=0))
        manifest = MANIFEST.format(
            name=name, deadline_ms=deadline_ms, tensors=TENSORS, runtime="python", artifact="m", more=""
        )
        (folder / "APP.toml").write_text(manifest)
    folder = apps / "loops"
    folder.mkdir()
    onnx.save(loop_model(), folder / "m.onnx")
    manifest = MANIFEST.format(
        name="loops", deadline_ms=deadline_ms, tensors="", runtime="onnx", artifact="m.onnx", more=""
    )
    (folder / "APP.toml").write_text(manifest)


def write_slow_loader(folder: Path, way: str, load_s: float, load_timeout_s: float) -> None:
    """An app whose model loads for `load_s`."""
    (folder / "m").mkdir(parents=True)
    code = MODEL.format(way=WAYS[way], load_s=load_s)
    (folder / "m" / "model.py").write_text(code)
    more = f"load_timeout_s = {load_timeout_s}"
    manifest = MANIFEST.format(
        name=folder.name, deadline_ms=60_000, tensors=TENSORS, runtime="python", artifact="m", more=more
    )
    (folder / "APP.toml").write_text(manifest)


def loop_model() -> onnx.ModelProto:
    """y = 2 x, after as many rounds of a loop as x says."""
    one = numpy_helper.from_array(np.array([1.0], dtype=np.float32), "one")
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Add", ["sum", "one"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]),
        ],
        [one],
    )
    constants = [
        numpy_helper.from_array(np.array(ROUNDS_PER_S, dtype=np.float32), "per_s"),
        numpy_helper.from_array(np.array([0.0], dtype=np.float32), "nothing"),
        numpy_helper.from_array(np.array(0.0, dtype=np.float32), "zero"),
        numpy_helper.from_array(np.array(2.0, dtype=np.float32), "two"),
    ]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["longest"], keepdims=0),
        helper.make_node("Mul", ["longest", "per_s"], ["rounds"]),
        helper.make_node("Cast", ["rounds"], ["count"], to=TensorProto.INT64),
        helper.make_node("Loop", ["count", "", "nothing"], ["sum"], body=body),
        helper.make_node("Mul", ["sum", "zero"], ["none"]),
        helper.make_node("Mul", ["x", "two"], ["twice"]),
        helper.make_node("Add", ["twice", "none"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    graph = helper.make_graph(nodes, "loops", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Outcome(msgspec.Struct):
    app: str
    seconds: float
    status: int
    took_s: float
    problem: str = ""


async def ask(harness: Harness, app: str, seconds: float, timeout_s: float) -> Outcome:
    """One prediction that works for `seconds`."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [seconds]}
    body = json.dumps({"inputs": [tensor]}).encode()
    began = time.monotonic()
    status, problem = 0, ""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", harness.ports[0])
            try:
                writer.write(request_bytes("POST", f"/v2/models/{app}/infer", body))
                answer = await read_answer(reader)
            finally:
                await closed(writer)
        status = answer.status
        if status != 200:
            problem = answer.body.decode()[:200]
        elif abs(answer.json["outputs"][0]["data"][0] - 2 * seconds) > 1e-3 * seconds:
            problem = "a wrong answer"
    except (OSError, TimeoutError) as error:
        problem = repr(error)
    return Outcome(app, seconds, status, time.monotonic() - began, problem)


async def client(harness: Harness, app: str, lengths: Iterable[float], timeout_s: float) -> list[Outcome]:
    return [await ask(harness, app, seconds, timeout_s) for seconds in lengths]


async def at_work(harness: Harness, app: str) -> int:
    """The process of a replica that owes an answer."""

    async def found() -> Any:
        replicas = [r for r in (await harness.app(app))["replicas"] if r["state"] == "ready"]
        return next((r["pid"] for r in replicas if r["outstanding"]), None)

    pid: int = await harness.until(found, 60, f"a replica of {app} works")
    return pid


async def strike(harness: Harness, app: str, kind: str, rng: random.Random, halt_s: float) -> str:
    """Kill a worker of `app` in the middle of its work, or freeze it: for `halt_s`, or for good."""
    pid = await at_work(harness, app)
    await asyncio.sleep(rng.uniform(0.0, 0.3))
    try:
        os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        if kind == "halt":
            await asyncio.sleep(halt_s)
            os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return ""  # it had been replaced
    return f"{kind} {app}"


async def unjust(harness: Harness) -> list[str]:
    """Events that blame somebody for working."""
    told = []
    for kind in ("request.poisoned", "variant.quarantined"):
        told += [f"{kind}: {event['message']}" for event in await harness.events(kind)]
    for event in await harness.events("worker.given_up"):
        if "stopped" not in event["message"]:
            told.append(f"worker.given_up: {event['message']}")
    return told


def failed(clients: Iterable[list[Outcome]]) -> list[Outcome]:
    return [outcome for outcomes in clients for outcome in outcomes if outcome.problem]
