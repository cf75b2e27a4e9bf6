"""Packages of models in a real cluster: resolved once, built on every node, there after a failure."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from harness import Harness, running
from tests.wheels import write_wheel

MODEL = """
import frobnicate

class Model:
    inputs = [("x", "FP32", [-1, 4])]
    outputs = [("y", "FP32", [-1, 1])]

    def load(self, path):
        pass

    def predict(self, inputs):
        return {{"y": inputs["x"][:, :1] * 0 + float(frobnicate.VERSION)}}
"""
MANIFEST = """
name = "{name}"
deadline_ms = 8000
[[variants]]
name = "full"
runtime = "python"
artifact = "model"
accuracy = 0.9
{extra}
"""
ROWS = [[0.1, 0.2, 0.3, 0.4]]


def write_app(folder: Path, name: str, version: str, extra: str) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.py").write_text(MODEL.format())
    (folder / "requirements.txt").write_text("frobnicate\n")
    write_wheel(folder / "wheels", "frobnicate", version)
    (folder / "APP.toml").write_text(MANIFEST.format(name=name, extra=extra))
    return folder


async def answers(cluster: Harness, app: str, value: float) -> None:
    answer = await cluster.infer(app, ROWS)
    assert answer.status == 200, answer.body
    assert answer.json["outputs"][0]["data"] == [value]


def test_two_versions_of_a_package_serve_side_by_side_and_survive_their_node(tmp_path: Path) -> None:
    asked = 'requirements = "requirements.txt"\nwheels = "wheels"'
    write_app(tmp_path / "apps" / "one", "one", "1.5", asked)
    write_app(tmp_path / "apps" / "two", "two", "2.5", asked)
    lacking = write_app(tmp_path / "lacking", "lacking", "3.5", "")
    wrong = write_app(tmp_path / "wrong", "wrong", "4.5", 'wheels = "wheels"')
    write_wheel(wrong / "wheels", "gizmo", tag="cp27-cp27m-win32")

    async def test() -> None:
        async with running(tmp_path) as cluster:
            await answers(cluster, "one", 1.5)
            await answers(cluster, "two", 2.5)
            assert "requirements" in await refused(cluster, lacking)
            assert "gizmo-1.0-cp27-cp27m-win32.whl is not for this node's Python" in await refused(
                cluster, wrong
            )
            await cluster.protected("one", "two")
            home = (await cluster.app("one"))["primary_nodes"][0]
            cluster.cluster.kill_node(home)
            await answers(cluster, "one", 1.5)
            await answers(cluster, "two", 2.5)

    asyncio.run(test())


async def refused(cluster: Harness, folder: Path) -> str:
    """What the deployment of an app says that can't be run."""
    command = [sys.executable, "-m", "understudy", "deploy", str(folder / "APP.toml"), "--json"]
    command += ["--cluster", str(cluster.cluster.config_path)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return str(json.loads(done.stdout)["deployments"][0]["message"])
