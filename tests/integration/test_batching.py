"""On real processes: what one client gets doesn't depend on what others send in the same instant."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from harness import Answer, Harness, running
from onnx import TensorProto, helper

CLIENTS = 6

PADS = """
import numpy as np

class Model:
    def load(self, path): pass
    def predict(self, inputs):
        words = [text.split() for text in inputs["x"]]
        y = np.zeros((len(words), max(map(len, words), default=0)), np.int64)
        for row, found in enumerate(words):
            y[row, :len(found)] = [len(word) for word in found]
        return {"y": y}
"""
DETECTOR = """
import numpy as np

class Model:
    def load(self, path): pass
    def predict(self, inputs):
        x = inputs["x"]
        return {"y": x[x[:, 0] > 1.0]}
"""
DECLARED = {
    "pads": ("BYTES", [-1], "INT64", [-1, -1], PADS),
    "detector": ("FP32", [-1, 2], "FP32", [-1, 2], DETECTOR),
}
GRAPHS: dict[str, list[onnx.NodeProto]] = {
    "centred": [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ],
    "over-rows": [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
    "summed": [helper.make_node("CumSum", ["x", "zero"], ["y"])],
    "row-wise": [helper.make_node("Softmax", ["x"], ["y"], axis=1)],
}


def write_apps(apps: Path) -> None:
    for name, nodes in GRAPHS.items():
        _write_app(apps / name, name, "onnx", "m.onnx")
        shape = ["rows", 2]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [helper.make_tensor("zero", TensorProto.INT64, [], [0])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, str(apps / name / "m.onnx"))
    for name, (datatype, shape_in, out, shape_out, source) in DECLARED.items():
        declared = f'inputs = [{{ name = "x", datatype = "{datatype}", shape = {shape_in} }}]\n'
        declared += f'outputs = [{{ name = "y", datatype = "{out}", shape = {shape_out} }}]\n'
        _write_app(apps / name, name, "python", "m.py", declared)
        (apps / name / "m.py").write_text(source)


def _write_app(folder: Path, name: str, runtime: str, artifact: str, declared: str = "") -> None:
    folder.mkdir(parents=True)
    variant = f'[[variants]]\nname = "only"\nruntime = "{runtime}"\nartifact = "{artifact}"\naccuracy = 0.9\n'
    (folder / "APP.toml").write_text(f'name = "{name}"\ndeadline_ms = 10000\n{declared}{variant}')


def inputs(app: str, client: int) -> dict[str, Any]:
    if app == "pads":
        data: Any = {"name": "x", "datatype": "BYTES", "shape": [1], "data": ["word " * (1 + client)]}
    else:
        rows = [float(client), 0.0, client + 2.0, 4.0]
        data = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": rows}
    return {"inputs": [data]}


async def ask(harness: Harness, app: str, client: int) -> Any:
    answer: Answer = await harness.ask(
        "POST", f"/v2/models/{app}/infer", msgspec.json.encode(inputs(app, client))
    )
    assert answer.status == 200, answer
    return answer.json["outputs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("batching")
    write_apps(made / "apps")
    return made


def test_company_changes_no_answer_and_status_says_why(folder: Path) -> None:
    async def test() -> None:
        async with running(folder) as harness:
            for app in (*GRAPHS, *DECLARED):
                alone = [await ask(harness, app, client) for client in range(CLIENTS)]
                for _ in range(5):
                    together = await asyncio.gather(*(ask(harness, app, n) for n in range(CLIENTS)))
                    for one, other in zip(alone, together, strict=True):
                        assert one[0]["shape"] == other[0]["shape"], app
                        assert one[0]["data"] == pytest.approx(other[0]["data"], abs=1e-6), app
            said = {app["name"]: app["batching"]["only"] for app in (await told(harness, "status"))["apps"]}
            assert said.pop("row-wise") == "runs together: its graph works row by row"
            assert all(sentence.startswith("one request at a time: output 'y'") for sentence in said.values())
            assert "Softmax works along the rows" in said["over-rows"]
            assert "for one row" in said["detector"] or "rows for" in said["detector"]
            explained = await told(harness, "plan", "--explain", "centred")
            (reason,) = [r for r in explained["explanation"]["reasons"] if r["about"] == "batching"]
            assert "ReduceMean works along the rows" in reason["sentences"][0]
            decided = {event["app"]: event["message"] for event in await harness.events("batching.decided")}
            assert decided.keys() == {*GRAPHS, *DECLARED}

    asyncio.run(test())


async def told(harness: Harness, *command: str) -> Any:
    return await asyncio.to_thread(harness.cli, *command, "--json")
