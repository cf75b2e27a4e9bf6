"""On real processes: models without a manifest, static answers in every form, and manifests of all sorts."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_calls import METHOD
from harness import Answer, Harness, open_folder, running

import manifests
from understudy.adapters.control import cluster_controllers
from understudy.cli.packing import pack
from understudy.wire.inference import ModelInferRequest, ModelInferResponse

MODEL = """
from pathlib import Path
import numpy as np

ORDERS = Path({orders!r})

class Model:
    inputs = [("x", "FP32", [-1, 2])]
    outputs = [("y", "FP32", [-1, 2]), ("label", "BYTES", [-1])]

    def load(self, path):
        pass

    def predict(self, inputs):
        if ORDERS.exists():
            raise RuntimeError("told to fail")
        return {{"y": inputs["x"] * 2, "label": np.full(len(inputs["x"]), "live", object)}}
"""
MANIFEST = """
name = "stoic"
deadline_ms = 3000
[[variants]]
name = "v"
runtime = "python"
artifact = "code"
accuracy = 0.9
[static]
outputs = [
    { name = "y", datatype = "FP32", shape = [1, 2], data = [[7, 0.5]] },
    { name = "label", datatype = "BYTES", shape = [1], data = ["declared"] },
]
"""


class Scene:
    """The cluster of all tests here, and the loop that asks it."""

    def __init__(self, harness: Harness, runner: asyncio.Runner, folder: Path) -> None:
        self.harness = harness
        self.runner = runner
        self.folder = folder
        self.orders = folder / "orders" / "fail"

    def infer(self, rows: int = 1, **more: Any) -> Answer:
        tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": [1.0] * 2 * rows}
        body = json.dumps({"inputs": [tensor], **more}).encode()
        return self.runner.run(self.harness.ask("POST", "/v2/models/stoic/infer", body))

    def until(self, holds: Any, what: str) -> None:
        self.runner.run(self.harness.until(holds, 60, what))

    def deploy(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        cluster = str(self.harness.cluster.config_path)
        command = [sys.executable, "-m", "understudy", "deploy", *arguments, "--cluster", cluster]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, cwd=self.folder
        )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("promises")
    (folder / "apps" / "stoic" / "code").mkdir(parents=True)
    source = MODEL.format(orders=str(open_folder(folder / "orders") / "fail"))
    (folder / "apps" / "stoic" / "code" / "model.py").write_text(source)
    (folder / "apps" / "stoic" / "APP.toml").write_text(MANIFEST)
    with asyncio.Runner() as runner:
        place = running(folder, nodes={"n1": "a", "n2": "b"}, grpc=True)
        scene = Scene(runner.run(place.__aenter__()), runner, folder)
        try:
            yield scene
        finally:
            runner.run(place.__aexit__(None, None, None))


def test_a_directory_with_a_class_that_says_what_it_takes_is_served(scene: Scene) -> None:
    (scene.folder / "double").mkdir()
    source = "class Model:\n    inputs = outputs = [('x', 'FP32', [-1])]\n    def load(self, path): ...\n"
    source += "    def predict(self, inputs): return {'x': inputs['x'] * 2}\n"
    (scene.folder / "double" / "model.py").write_text(source)
    done = scene.deploy("double", "--save", "double.toml")
    assert done.returncode == 0, done.stderr
    assert "double version 1 is ready" in done.stdout
    again = scene.deploy("double.toml")
    assert "unchanged" in again.stdout, again.stderr
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}
    body = json.dumps({"inputs": [tensor]}).encode()
    answer = scene.runner.run(scene.harness.ask("POST", "/v2/models/double/infer", body))
    assert answer.json["outputs"][0]["data"] == [2.0, 4.0]


def test_a_static_answer_is_given_in_the_form_that_was_asked_for(scene: Scene) -> None:
    assert scene.infer().degraded == ""
    scene.orders.touch()
    try:
        scene.until(lambda: scene_static(scene), "nothing but the static answer is left")
        whole = scene.infer(rows=3, id="seven")
        assert (whole.status, whole.degraded, whole.json["id"]) == (200, "static", "seven")
        assert [(o["name"], o["shape"], o["data"]) for o in whole.json["outputs"]] == [
            ("y", [1, 2], [7, 0.5]),
            ("label", [1], ["declared"]),
        ]
        part = scene.infer(outputs=[{"name": "y", "parameters": {"binary_data": True}}])
        length = int(part.headers["inference-header-content-length"])
        (output,) = json.loads(part.body[:length])["outputs"]
        assert (output["name"], np.frombuffer(part.body[length:], np.float32).tolist()) == ("y", [7, 0.5])
        unknown = scene.infer(outputs=[{"name": "z"}])
        assert unknown.status == 400
        assert "output 'z'" in unknown.json["error"]
        _check_grpc(scene)
    finally:
        scene.orders.unlink()


async def scene_static(scene: Scene) -> bool:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 1.0]}
    body = json.dumps({"inputs": [tensor]}).encode()
    return (await scene.harness.ask("POST", "/v2/models/stoic/infer", body)).degraded == "static"


def _check_grpc(scene: Scene) -> None:
    address = scene.harness.cluster.config.gateways[0].grpc
    for names, expected in (((), ["y", "label"]), (("label",), ["label"]), (("z",), None)):
        request = ModelInferRequest(
            model_name="stoic",
            inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
            outputs=[{"name": name} for name in names],
            raw_input_contents=[np.ones(2, np.float32).tobytes()],
        )
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(METHOD)
            if expected is None:
                with pytest.raises(grpc.RpcError) as refused:
                    call(request.SerializeToString(), timeout=10)
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                continue
            answer = ModelInferResponse.FromString(call(request.SerializeToString(), timeout=10))
        assert [output.name for output in answer.outputs] == expected
        assert answer.parameters["understudy-degraded"].string_param == "static"
        assert answer.raw_output_contents[-1] == b"\x08\0\0\0declared"


def test_manifests_of_all_sorts_end_no_process(scene: Scene) -> None:
    cluster = scene.harness.cluster
    pids = {name: role.pid for name, role in cluster.roles.items()}
    controllers = cluster_controllers(cluster.config, source="")
    with pack(scene.folder / "apps" / "stoic" / "APP.toml") as package:
        artifact = package.description["variants"][0]["artifact"]
    label = {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["declared"]}
    static = {"outputs": [manifests.TENSOR, label]}
    base = {**manifests.BASE, "outputs": [], "inputs": [], "static": static}
    begun: list[tuple[str, str]] = []
    for seed in range(120):
        document = manifests.mutated(random.Random(seed), base)
        document["name"] = f"sort{seed}" if document.get("name") == "digits" else document.get("name")
        manifests.give_artifact(document, artifact)
        reply = controllers.call("POST", "/v1/apps", body=manifests.as_json(document))
        assert reply.status in (202, 400, 409), (seed, reply)
        if reply.status == 202:
            begun.append((reply.document()["deployment"], reply.document()["app"]))
    assert 5 < len(begun) < 110

    def ended() -> bool:
        return all(
            controllers.get(f"/v1/deployments/{id}")["state"] in ("ready", "failed") for id, _ in begun
        )

    scene.until(ended, "every deployment has an end")
    assert {name: role.pid for name, role in cluster.roles.items()} == pids
    assert "process_died" not in (cluster.logs_dir / "gateway-g1.log").read_text()
    assert scene.infer().status == 200
    for _, app in begun:
        controllers.call("DELETE", f"/v1/apps/{app}")
