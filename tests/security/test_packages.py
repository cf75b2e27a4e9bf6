"""Packages that a model brings attack whoever runs them, before there is a worker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from harness import running
from tests.wheels import write_wheel

from understudy.adapters.operator_tokens import FILE_NAME
from understudy.adapters.sandbox.trial import of_environments
from understudy.adapters.sandbox.walls import Tier

# Runs when its folder is added to a path: in the trial, and in the zygote that forks the workers.
START = """
import builtins, os, socket

def tried(attack):
    try:
        return f"got {{attack()}}"
    except OSError as error:
        return "failed " + type(error).__name__

def connect(path):
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(path)

builtins.came = {{
    "read": tried(lambda: open({data!r} + "/{token}").read()),
    "list": tried(lambda: os.listdir({data!r})),
    "store": tried(lambda: os.listdir({data!r} + "/artifacts")),
    "write": tried(lambda: open(os.path.dirname(__file__) + "/harm", "w")),
    "connect": tried(lambda: connect({agent!r})),
    "dial": tried(lambda: socket.create_connection(("127.0.0.1", {port}), 1)),
    "kill": tried(lambda: os.kill(os.getppid(), 9)),
    "scratch": tried(lambda: open(os.environ["TMPDIR"] + "/mine", "w").close()),
}}
"""
MODEL = """
import builtins

class Model:
    inputs = [("x", "FP32", [-1, 1])]
    outputs = [("y", "FP32", [-1, 1])]

    def load(self, path):
        pass

    def predict(self, inputs):
        if inputs["x"][0, 0] == 7:
            raise ValueError(str(builtins.came))
        return {"y": inputs["x"]}
"""
MANIFEST = """
name = "brought"
[[variants]]
name = "full"
runtime = "python"
artifact = "model"
accuracy = 0.9
wheels = "wheels"
"""


def test_packages_have_nothing_of_the_clusters_before_there_is_a_worker(tmp_path: Path) -> None:
    if of_environments(Tier.NONE) is not Tier.LANDLOCK:
        pytest.skip("this kernel has no Landlock")
    app = tmp_path / "brought"
    (app / "model").mkdir(parents=True)
    (app / "model" / "model.py").write_text(MODEL)
    (app / "APP.toml").write_text(MANIFEST)

    async def test() -> None:
        async with running(tmp_path, nodes={"n1": "a"}) as cluster:
            data = str(Path(cluster.cluster.config.data_dir))
            agent = cluster.cluster.config.agent_address("n1").removeprefix("unix:")
            start = START.format(data=data, agent=agent, token=FILE_NAME, port=cluster.ports[0])
            files = {"brought.pth": "import brought_start\n", "brought_start.py": start}
            write_wheel(app / "wheels", "brought", files=files)
            await asyncio.to_thread(cluster.cli, "deploy", str(app), "--json")
            await cluster.full_size("brought")
            answer = await cluster.infer("brought", [[7.0]])
            assert answer.status >= 400
            came = answer.json["error"]
            assert came.count("failed ") == 7, came
            assert "'scratch': 'got None'" in came, came

    asyncio.run(test())
