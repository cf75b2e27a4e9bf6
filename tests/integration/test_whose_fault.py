"""On real processes: bad data of one client harms nobody else, and operators see what users get."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from harness import Harness, infer_body, running

CAREFUL = '''
"""Doubles what isn't negative; version by version it may be more careful."""
class Model:
    def load(self, path):
        pass

    def predict(self, inputs):
        x = inputs["x"]
        if {careful} and (x < 0).any():
            raise {error}("age must not be negative")
        return {{"y": x * {factor}}}
'''
IO = """
inputs = [{ name = "x", datatype = "FP32", shape = [-1, 4] }]
outputs = [{ name = "y", datatype = "FP32", shape = [-1, 4] }]
"""


def write_careful_app(folder: Path, name: str, careful: bool, factor: int, error: str = "ValueError") -> None:
    (folder / "m").mkdir(parents=True, exist_ok=True)
    model = CAREFUL.format(careful=careful, factor=factor, error=error)
    if "." in error:
        module = error.rpartition(".")[0]
        model = model.replace("class Model", f"import {module}\nclass Model")
    (folder / "m" / "model.py").write_text(model)
    (folder / "APP.toml").write_text(
        f'name = "{name}"\ncriticality = "best-effort"\n{IO}\n'
        '[[variants]]\nname = "v"\nruntime = "python"\nartifact = "m"\naccuracy = 0.9\n'
    )


def rows(*values: float) -> list[list[float]]:
    return [list(values)]


def test_bad_data_of_one_client_recalls_nothing_and_operators_are_told(tmp_path: Path):
    folder = tmp_path / "apps" / "careful"
    write_careful_app(folder, "careful", careful=False, factor=1)
    invalid = "understudy.wire.errors.InvalidArgument"
    write_careful_app(tmp_path / "apps" / "polite", "polite", careful=True, factor=2, error=invalid)

    async def test() -> None:
        async with running(tmp_path) as harness:
            await bad_input_is_the_callers(harness)
            write_careful_app(folder, "careful", careful=True, factor=2)
            await asyncio.to_thread(harness.cli, "deploy", str(folder), "--json")
            await bad_data_recalls_nothing(harness)
            await operators_are_told(harness)

    asyncio.run(test())


async def bad_input_is_the_callers(harness: Harness) -> None:
    for number in range(12):
        answer = await harness.infer("polite", rows(-1 - number, 0, 0, 0))
        assert (answer.status, answer.headers["understudy-code"]) == (400, "invalid-argument")
        assert answer.json["error"] == "age must not be negative"
    app = await harness.app("polite")
    assert (app["failed"], app["rejected"], app["failing"]) == (0, 12, "")
    assert {replica["breaker"] for replica in app["replicas"]} == {"closed"}


async def bad_data_recalls_nothing(harness: Harness) -> None:
    good, bad = infer_body(rows(1, 2, 3, 4)), infer_body(rows(-1, 2, 3, 4))
    path = "/v2/models/careful/infer"

    async def is_new() -> bool:
        return (await harness.ask("POST", path, good)).headers["understudy-version"] == "2"

    await harness.until(is_new, 10, "version 2 answers")
    for number in range(60):
        answer = await harness.ask("POST", path, bad)
        assert (answer.status, answer.headers["understudy-code"]) == (500, "model-failed")
        if number % 3 == 0:  # and other bad ones, when somebody else is there
            body = infer_body(rows(-2 - number, 2, 3, 4))
            assert (await harness.ask("POST", path, body)).status == 500
            answer = await harness.ask("POST", path, good)
            assert (answer.status, answer.degraded) == (200, "")
            assert answer.json["outputs"][0]["data"] == [2.0, 4.0, 6.0, 8.0]
        await asyncio.sleep(0.03)
    for _ in range(20):
        answer = await harness.ask("POST", path, good)
        assert (answer.headers["understudy-version"], answer.degraded) == ("2", "")
    assert not await harness.events("version.recalled")


async def operators_are_told(harness: Harness) -> None:
    async def status() -> Any:
        return await asyncio.to_thread(harness.cli, "status", "--json")

    async def failing() -> bool:
        return next(app for app in (await status())["apps"] if app["name"] == "careful")["state"] == "failing"

    await harness.until(failing, 10, "the controller says that users are failed")
    [careful] = [app for app in (await status())["apps"] if app["name"] == "careful"]
    assert "requests failed in the last 60 s: model-failed: the model raised ValueError" in careful["reason"]
    assert len(await harness.events("app.failing")) == 1, "once, not for each request"
    ready = await harness.ask("GET", "/v2/models/careful/ready")
    assert (ready.status, ready.json["ready"]) == (200, True), "one client's data takes nobody's model away"
    assert ready.json["failing"] == careful["reason"]

    answer = await harness.ask("POST", "/v2/models/careful/infer", infer_body(rows(-9, 0, 0, 0)))
    id_ = answer.headers["x-request-id"]
    failures = (await harness.ask("GET", "/understudy/failures/careful")).json["failures"]
    record = next(failure for failure in failures if failure["request_id"] == id_)
    assert (record["code"], record["variant"], record["client"]) == ("model-failed", "v", "127.0.0.1")
    assert record["node"]
    shown = await asyncio.to_thread(harness.cli, "failures", "careful", "--id", id_, "--json")
    assert (shown["request_id"], shown["traceback"]) == (id_, record["traceback"])
