"""What tests that attack a cluster share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacked import Attacked
from families import write_linear_app, write_python_app
from harness import running

EXTRA = """
[gateway.cors]
origins = ["https://shop.example"]
[agent]
worker_environment = ["ALLOWED_*"]
"""
SECRETS = (
    "UNDERSTUDY_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "https_proxy",
    "SSH_AUTH_SOCK",
    "ALLOWED_ONE",
)
LIAR = """
import os
import resource

from understudy.wire.errors import Code, UnderstudyError

class Model:
    def load(self, path):
        pass

    def predict(self, inputs):
        number = int(inputs["x"][0, 0])
        if number == 1000:
            names = [name for name, value in os.environ.items() if "s3cret" in value]
            raise ValueError(f"sees {names} and {sorted(os.environ)[:3]}, {resource.getrlimit(4)[0]} of core")
        if number < 0:
            return {"y": inputs["x"]}
        text = "\\x1b[2J\\x07\\r\\nSet-Cookie: a=b\\u202e"
        raise UnderstudyError(list(Code)[number], text, status=302, allow="ALL", wait_s=10**9)
"""
LIARS_SETTINGS = """
batching = {mode = "never"}
probe = {inputs = [{name = "x", datatype = "FP32", shape = [1, 4], data = [-1, 0, 0, 0]}]}
"""


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder: Path = tmp_path_factory.mktemp("attacked")
    write_linear_app(folder / "apps" / "plain", "plain", "standard", "deadline_ms = 10000")
    write_python_app(folder / "apps" / "liar", "liar", {"full": LIAR}, LIARS_SETTINGS, datatype="FP32")
    with asyncio.Runner() as runner:
        context = running(folder, nodes={"n1": "a"}, extra=EXTRA)
        with pytest.MonkeyPatch.context() as patch:
            for name in SECRETS:
                patch.setenv(name, "s3cret")
            harness = runner.run(context.__aenter__())
        runner.run(harness.full_size("plain", "liar"))
        control = int(harness.cluster.config.controllers[0].http.rpartition(":")[2])
        yield Attacked(harness, control, harness.ports[0])
        runner.run(context.__aexit__(None, None, None))
