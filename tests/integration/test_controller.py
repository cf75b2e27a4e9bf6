"""A real controller: deployments over HTTP, kill -9, a full disk, nodes that go and come."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from control_plane import PlayedGateway, X, Y, control_plane, measure, on_loop, until

from understudy.controller.process import STORE_FILE
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import AppStats, GatewayStats, Measure, Measured
from understudy.wire.records import Profile, TensorSpec

STATE = "data/controller/c1"  # below the folder of the cluster
CAP_SYS_ADMIN = 21  # linux/capability.h
Fault = Callable[[Path], contextlib.AbstractContextManager[None]]


@on_loop
async def test_deploying_measures_places_and_publishes() -> None:
    async with control_plane("n1", "n2") as (controller, agents):
        gateway = PlayedGateway(controller.address)
        await gateway.connect()
        done = await controller.deploy(controller.manifest(criticality="critical"))
        assert (done["state"], done["version"], done["done"], done["total"]) == ("ready", 1, 2, 2)
        assert sorted(agents["n1"].measured + agents["n2"].measured) == ["full", "small"]
        await until(lambda: bool(gateway.tables and gateway.tables[-1].placements), "routes")
        table = gateway.tables[-1]
        (app,) = table.apps
        assert [v.name for v in app.variants] == ["full", "small"]  # best first
        assert (app.inputs, app.outputs) == ((X,), (Y,))
        assert app.full_size.profile is not None
        assert app.full_size.profile.replica_mb == 100
        assert {node.name for node in table.nodes} == {"n1", "n2"}
        await until(lambda: "app.ready" in controller.events(), "events are written")
        events = controller.events()
        assert events.index("app.deployed") < events.index("plan.published") < events.index("app.ready")
        again = await controller.deploy(controller.manifest(criticality="critical"))
        assert (again["state"], again["version"]) == ("ready", 1)
        assert "unchanged" in again["message"]
        assert controller.stop() == 0


@on_loop
async def test_status_shows_what_gateways_saw() -> None:
    async with control_plane("n1", "n2") as (controller, _):
        gateway = PlayedGateway(controller.address)
        await gateway.connect()
        await controller.deploy(controller.manifest(criticality="critical"))
        assert gateway.link is not None
        seen = {"digits": AppStats(requests=10, failed=1, p50_ms=1.5, p99_ms=4.0, serving="full", ready=True)}
        gateway.link.send(GatewayStats("g1", 7, seen, http_address="127.0.0.1:1"))
        await until(lambda: controller.status_of("digits")["requests"] == 10, "the report is counted")
        app = controller.status_of("digits")
        assert (app["failed"], app["p50_ms"], app["p99_ms"]) == (1, 1.5, 4.0)
        assert (app["state"], app["serving"], app["full_size"], app["reason"]) == ("ok", "full", "full", None)
        standby = next(node for node in ("n1", "n2") if node not in app["primary_nodes"])
        assert app["protection"] == f"warm {standby}"
        assert {r["node"] for r in app["replicas"]} == {"n1", "n2"}
        (shown,) = controller.get("/v1/status")["gateways"]
        assert (shown["name"], shown["connected"], shown["revision"]) == ("g1", True, 7)


@on_loop
async def test_a_new_version_reuses_what_was_measured() -> None:
    async with control_plane("n1", "n2") as (controller, agents):
        await controller.deploy(controller.manifest())
        for agent in agents.values():
            agent.measured.clear()
        manifest = controller.manifest(deadline_ms=500)
        manifest["variants"][0]["artifact"] = controller.upload(b"another one")
        done = await controller.deploy(manifest)
        assert (done["state"], done["version"]) == ("ready", 2)
        assert agents["n1"].measured + agents["n2"].measured == ["small"]


@on_loop
async def test_state_is_intact_after_kill_9() -> None:
    async with control_plane("n1", "n2") as (controller, agents):
        gateway = PlayedGateway(controller.address)
        await gateway.connect()
        await controller.deploy(controller.manifest())
        plan = controller.get("/v1/plan")
        await until(lambda: bool(gateway.tables and gateway.tables[-1].placements), "routes")
        before, revisions = gateway.tables[-1], {n: a.target.revision for n, a in agents.items()}
        controller.kill()
        await controller.start()
        await gateway.connect()
        await until(lambda: gateway.tables[-1].revision > before.revision, "routes are published again")
        assert gateway.tables[-1].placements == before.placements
        await until(
            lambda: all(agents[n].target.revision > revisions[n] for n in agents), "targets are sent again"
        )
        await asyncio.sleep(
            2.0
        )  # beyond the start's grace: now a node could be declared dead, or a plan made
        assert controller.events().count("node.died") == 0
        assert controller.get("/v1/plan") == plan
        assert controller.status_of("digits")["state"] == "ok"
        second = await controller.deploy(controller.manifest(weight=2.0))
        assert (second["state"], second["version"]) == ("ready", 2)


@on_loop
async def test_a_deployment_lost_by_a_restart_is_reported_as_failed() -> None:
    async with control_plane("n1", "n2") as (controller, agents):
        for agent in agents.values():
            agent.measures = lambda _: None
        status, answer = controller.ask("POST", "/v1/apps", controller.manifest())
        assert status == 202
        await until(lambda: bool(agents["n1"].measured or agents["n2"].measured), "measuring has begun")
        controller.kill()
        await controller.start()
        done = await controller.finished(answer["deployment"])
        assert done["state"] == "failed"
        assert "deploy again" in done["message"]
        assert controller.get("/v1/status")["apps"] == []
        for agent in agents.values():
            agent.measures = measure
        assert (await controller.deploy(controller.manifest()))["state"] == "ready"


def refuses_small(asked: Measure) -> Measured:
    if asked.variant == "small":
        raise UnderstudyError(Code.LOAD_FAILED, "no model in this file")
    return measure(asked)


def small_is_different(asked: Measure) -> Measured:
    outputs = (Y,) if asked.variant == "small" else (TensorSpec("z", "INT64", (-1,)),)
    return Measured(measure(asked).profile, (X,), outputs)


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        (refuses_small, "variant 'small': no model in this file"),
        (small_is_different, "have different outputs"),
    ],
)
@on_loop
async def test_a_variant_that_is_no_good_fails_the_deployment(measures: Any, message: str) -> None:
    async with control_plane("n1", "n2") as (controller, agents):
        for agent in agents.values():
            agent.measures = measures
        done = await controller.deploy(controller.manifest())
        assert done["state"] == "failed"
        assert message in done["message"]
        assert controller.get("/v1/status")["apps"] == []
        await until(lambda: "deployment.failed" in controller.events(), "the event is written")


@on_loop
async def test_an_app_without_room_fails_and_says_why() -> None:
    def huge(asked: Measure) -> Measured:
        return Measured(Profile(40.0, 5000.0, 20.0, 1.0), (X,), (Y,))

    async with control_plane("n1", "n2") as (controller, agents):
        for agent in agents.values():
            agent.measures = huge
        done = await controller.deploy(controller.manifest())
        assert (done["state"], done["version"]) == ("failed", 1)
        assert done["message"].startswith("deployed, but without a place: ")
        app = controller.status_of("digits")
        assert (app["state"], app["serving"], app["protection"]) == ("down", None, "none")
        assert app["reason"] in done["message"]


@on_loop
async def test_a_bad_manifest_is_refused_by_the_name_of_the_field() -> None:
    async with control_plane("n1") as (controller, _):
        good = controller.manifest()
        variant = good["variants"][0]
        bad: list[tuple[dict[str, Any], str]] = [
            ({"name": "a/b"}, "name:"),
            ({"weigth": 2}, "weigth: unknown field; did you mean 'weight'?"),
            ({"deadline_ms": 1e9}, "deadline_ms:"),
            ({"variants": []}, "variants:"),
            ({"variants": [variant, variant]}, "variants[1].name:"),
            ({"variants": [{**variant, "accuracy": 2}]}, "variants[0].accuracy:"),
            ({"static": {"outputs": [{"name": "y"}]}}, "static.outputs[0]:"),
        ]
        for field, value in (("digest", "0" * 64), ("size_bytes", 1)):
            artifact = {**variant["artifact"], field: value}
            bad.append(({"variants": [{**variant, "artifact": artifact}]}, "variants[0].artifact"))
        for fields, message in bad:
            status, answer = controller.ask("POST", "/v1/apps", {**good, **fields})
            assert (status, answer["code"]) == (400, "invalid-argument")
            assert answer["error"].startswith(message)


@on_loop
async def test_bad_requests_are_answered_and_leave_nothing_behind() -> None:
    async with control_plane("n1") as (controller, _):
        for method, path, body, expected in (
            ("POST", "/v1/apps", b"{", (400, "invalid-argument")),
            ("PUT", f"/v1/artifacts/{'0' * 64}", b"something else", (400, "artifact-corrupt")),
            ("PUT", "/v1/artifacts/..secret", b"", (400, "invalid-argument")),
            ("GET", "/v1/deployments/d9-9", None, (404, "not-found")),
            ("DELETE", "/v1/apps/nobody", None, (404, "not-found")),
            ("DELETE", "/v1/quarantine/nobody/full", None, (404, "not-found")),
            ("POST", "/v1/nodes/n9/drain", None, (404, "not-found")),
            ("GET", "/v1/events?limit=0", None, (400, "invalid-argument")),
            ("GET", "/v2", None, (404, "not-found")),
        ):
            status, answer = controller.ask(method, path, body)
            assert (status, answer["code"]) == expected, (path, answer)
        digest = controller.upload(b"something")["digest"]
        assert controller.ask("HEAD", f"/v1/artifacts/{digest}")[0] == 200
        assert controller.ask("HEAD", f"/v1/artifacts/{'0' * 64}")[0] == 404
        assert controller.get("/schema")["openapi"].startswith("3.")
        artifacts = Path(controller.config.artifacts_dir)
        assert [path.name for path in artifacts.rglob("*") if path.is_file()] == [digest]


@on_loop
async def test_a_drained_node_is_emptied_and_a_removed_app_is_gone() -> None:
    async with control_plane("n1", "n2") as (controller, agents):
        await controller.deploy(controller.manifest())
        (primary,) = controller.status_of("digits")["primary_nodes"]
        other = "n2" if primary == "n1" else "n1"
        assert controller.ask("POST", f"/v1/nodes/{primary}/drain")[0] == 200
        await until(lambda: not agents[primary].target.replicas, "the drained node is empty")
        assert controller.status_of("digits")["primary_nodes"] == [other]
        assert controller.ask("POST", f"/v1/nodes/{primary}/undrain")[0] == 200
        assert controller.ask("DELETE", "/v1/apps/digits")[0] == 200
        await until(lambda: not agents[other].target.replicas, "the removed app is gone")
        assert controller.get("/v1/status")["apps"] == []
        done = await controller.deploy(controller.manifest())
        assert (done["state"], done["version"]) == ("ready", 2)  # numbers are never used twice


@on_loop
async def test_a_controller_that_cannot_start_says_why() -> None:
    async with control_plane("n1") as (controller, _):
        second = controller.spawn()
        assert await asyncio.to_thread(second.wait, 20) != 0
        assert "runs already: process" in controller.log


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """No byte more fits on the file system of the store."""
    with (folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    (folder / "ballast").unlink()


@contextlib.contextmanager
def locked_store(folder: Path) -> Iterator[None]:
    """Somebody else holds the file: nothing can be written, and each attempt takes its time."""
    with contextlib.closing(sqlite3.connect(folder / STORE_FILE, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A file system of its own, so that it can be filled."""
    path.mkdir(parents=True)
    if not may_mount():
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def may_mount() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> CAP_SYS_ADMIN & 1)


# Filling a disk takes the right to make a small one.
FAULTS = [locked_store, full_disk] if may_mount() else [locked_store]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@on_loop
async def test_a_store_that_fails_is_survived_and_caught_up_with(fault: Fault) -> None:
    with contextlib.ExitStack() as around:
        place = Path(around.enter_context(tempfile.TemporaryDirectory(prefix="us-")))
        around.enter_context(small_disk(place / STATE))
        async with control_plane("n1", "n2", folder=place) as (controller, agents):
            await controller.deploy(controller.manifest())
            (primary,) = controller.status_of("digits")["primary_nodes"]
            before = controller.get("/v1/plan")["revision"]
            with fault(place / STATE):
                controller.ask("POST", f"/v1/nodes/{primary}/drain")
                await until(lambda: not agents[primary].target.replicas, "published from memory")
                assert controller.get("/v1/plan")["revision"] > before
                await until(lambda: not controller.get("/v1/status")["store"]["ok"], "it says so")
                warnings = controller.get("/v1/status")["warnings"]
                assert any("the store is away" in warning for warning in warnings)
                unwritten = [event["kind"] for event in controller.get("/v1/events")["unwritten"]]
                assert "node.drained" in unwritten
                refused, answer = controller.ask("POST", "/v1/apps", controller.manifest(weight=3.0))
                assert (refused, answer["code"]) == (503, "store-unavailable")
            caught_up = {"ok": True, "error": "", "pending": 0}
            await until(lambda: controller.get("/v1/status")["store"] == caught_up, "it is caught up with")
            plan = controller.get("/v1/plan")
            controller.kill()
            await controller.start()
            assert controller.get("/v1/plan") == plan
            assert "node.drained" in controller.events()
            assert (await controller.deploy(controller.manifest(weight=3.0)))["state"] == "ready"
