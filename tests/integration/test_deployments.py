"""Deployments at a real controller, with the test as its nodes: what is refused, queued and told."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from control_plane import X, Y, control_plane, measure, on_loop, until

import manifests
from understudy.adapters.control import Servers
from understudy.cli.deploy import deploy
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Measure, Measured
from understudy.wire.records import Profile, TensorSpec

MANIFEST = """
name = "{name}"
[[variants]]
name = "v"
runtime = "python"
artifact = "{name}.py"
accuracy = 0.9
"""


@on_loop
async def test_random_manifests_end_no_controller() -> None:
    async with control_plane("n1", "n2") as (controller, agents):
        for agent in agents.values():
            agent.measures = _as_declared
        pid = controller.pid
        artifact = controller.upload(b"class Model: ...")
        seen: dict[int, int] = {}
        for seed in range(250):
            draw = random.Random(seed)
            document = manifests.mutated(draw)
            if document.get("name") == "digits":
                document["name"] = f"digits{seed}"
            if seed % 3:
                manifests.give_artifact(document, artifact)
            body = manifests.as_json(document)
            if seed % 5 == 0:
                body = manifests.scrambled(draw, body)
            status, answer = controller.ask("POST", "/v1/apps", body)
            seen[status] = seen.get(status, 0) + 1
            assert status in (202, 400, 409), (seed, status, answer)
            assert status == 202 or answer["error"], (seed, answer)
        assert seen[202] > 10
        assert seen[400] > 100
        await until(
            lambda: all(d["state"] != "down" for d in controller.get("/v1/status")["apps"]), "settled"
        )
        assert controller.pid == pid
        done = await controller.deploy(controller.manifest(name="still-works"))
        assert done["state"] == "ready", done


def _as_declared(asked: Measure) -> Measured:
    return Measured(Profile(0.5, 0.5, 20.0, 1.0), asked.app.inputs or (X,), asked.app.outputs or (Y,))


@pytest.mark.parametrize(
    "body",
    [
        b'{"name":' + b"[" * 100_000,
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b'{"name": "a", "replicas": ' + b"9" * 5000 + b"}",
        b'{"name": "a", "weight": 1e999}',
        b'"' + b"x" * 1_000_000 + b'"',
        b"\0",
        b"[]",
    ],
    ids=["deep", "no-text", "surrogate", "digits", "infinite", "long", "nul", "list"],
)
@on_loop
async def test_a_body_that_is_no_manifest_is_a_bad_request(body: bytes) -> None:
    async with control_plane("n1") as (controller, _):
        for path in ("/v1/apps", "/v1/plan/what-if"):
            status, answer = controller.ask("POST", path, body)
            assert (status, answer["code"]) == (400, "invalid-argument"), answer
            assert len(answer["error"]) < 2000
        assert controller.pid


@on_loop
async def test_apps_that_no_message_could_hold_are_refused() -> None:
    long = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0.5] * 4, "note": "x" * 9000}]
    }
    async with control_plane("n1", settings="apps_bytes_max = 15000") as (controller, agents):
        done = await controller.deploy(controller.manifest(probe=long))
        assert done["state"] == "ready"
        second = controller.manifest(name="second", probe=long)
        status, refused = controller.ask("POST", "/v1/apps", second)
        assert (status, refused["code"]) == (413, "too-large")
        assert "apps_bytes_max" in refused["error"]
        done = await controller.deploy(controller.manifest(probe={**long, "id": "again"}))
        assert done["state"] == "ready", "it takes the place of its former version"
        outputs = (TensorSpec("y", "FP32", (-1, 2), labels=("x" * 9000, "b")),)
        agents["n1"].measures = lambda asked: Measured(Profile(40, 10, 20, 1.0), (X,), outputs)
        done = await controller.deploy(
            controller.manifest(name="second", deadline_ms=900.0, objective_ms=800.0)
        )
        assert (done["state"], "apps_bytes_max" in done["message"]) == ("failed", True)


@on_loop
async def test_the_traceback_of_a_models_code_reaches_whoever_deployed_it() -> None:
    def raises(asked: Measure) -> Measured:
        error = UnderstudyError(Code.LOAD_FAILED, "KeyError: 'layer.1'")
        error.traceback = 'Traceback (most recent call last):\n  File "model.py", line 9, in load\n'
        raise error

    async with control_plane("n1") as (controller, agents):
        agents["n1"].measures = raises
        done = await controller.deploy(controller.manifest())
        assert done["state"] == "failed"
        assert 'File "model.py", line 9' in done["traceback"]
        events = lambda: controller.get("/v1/events")["events"]  # noqa: E731
        await until(lambda: any(e["kind"] == "deployment.failed" for e in events()), "the event")
        (event,) = [e for e in events() if e["kind"] == "deployment.failed"]
        assert 'File "model.py", line 9' in event["data"]["traceback"]


@on_loop
async def test_what_was_measured_is_held_against_what_is_promised() -> None:
    async with control_plane("n1") as (controller, agents):
        agents["n1"].measures = lambda asked: Measured(Profile(40, 10, 20, 300.0), (X,), (Y,))
        static = {"outputs": [{"name": "z", "datatype": "FP32", "shape": [1, 2], "data": [0, 1]}]}
        for fields, says in (
            ({"deadline_ms": 100.0}, "raise deadline_ms"),
            ({"static": static}, "static.outputs[0]: the app has no output 'z' (it has y FP32[-1,2])"),
        ):
            done = await controller.deploy(controller.manifest(**fields))
            assert done["state"] == "failed"
            assert says in done["message"]
        assert controller.get("/v1/status")["apps"] == []
        assert len(agents["n1"].measured) == 4, "the node may have been disturbed: it is asked again"
        done = await controller.deploy(controller.manifest(objective_ms=5000.0))
        assert done["state"] == "ready"
        assert done["warnings"] == ["objective_ms is 5000, but deadline_ms is 1000, which counts"]


@on_loop
async def test_a_version_that_clients_cant_call_alike_is_deployed_with_a_warning() -> None:
    async with control_plane("n1") as (controller, agents):
        assert (await controller.deploy(controller.manifest()))["warnings"] == []
        other = TensorSpec("x", "FP64", (-1, 4))
        agents["n1"].measures = lambda asked: Measured(Profile(40, 10, 20, 3.0), (other,), (Y,))
        changed = controller.manifest(deadline_ms=999.0)
        changed["variants"] = [{**v, "options": {"new": 1}} for v in changed["variants"]]
        status, begun = controller.ask("POST", "/v1/apps", changed)
        assert status == 202
        status, refused = controller.ask("POST", "/v1/apps", changed)
        assert status == 409
        assert "goes on by itself: see `understudy events --app digits`" in refused["error"]
        done = await controller.finished(begun["deployment"])
        assert (done["state"], done["version"]) == ("ready", 2)
        change = "input x FP32[-1,4] is now x FP64[-1,4]"
        assert done["warnings"] == [f"clients of version 1 may fail with this one: {change}"]


@on_loop
async def test_more_apps_than_are_remembered_are_all_deployed(tmp_path: Path) -> None:
    names = [f"app{number}" for number in range(12)]
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"class Model: ...  # {name}")
        (tmp_path / f"{name}.toml").write_text(MANIFEST.format(name=name))

    def measured(asked: Measure) -> Measured:
        if asked.app.app == "app5":
            raise UnderstudyError(Code.LOAD_FAILED, "this one is no good")
        return measure(asked)

    async with control_plane("n1", "n2", settings="deployments_max = 3") as (controller, agents):
        for agent in agents.values():
            agent.measures = measured
        servers = Servers([f"http://127.0.0.1:{controller.port}"], "controller", "")
        ended = await asyncio.to_thread(deploy, servers, tmp_path, wait_s=60.0)
        assert sorted(deployment.app for deployment in ended) == sorted(names)
        states: dict[str, Any] = {deployment.app: deployment.state for deployment in ended}
        assert states.pop("app5") == "failed"
        assert set(states.values()) == {"ready"}
        assert {app["name"] for app in controller.get("/v1/status")["apps"]} == set(states)
