"""Each fault on real processes, under traffic: what clients see, and how the cluster mends itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from families import ROWS, write_linear_app, write_mischief_app
from harness import Harness, infer_body, running

BODY = infer_body(ROWS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With one critical app (warm standby) and one standard app (cold contingency)."""
    write_linear_app(tmp_path / "apps" / "vital", "vital", "critical")
    write_linear_app(tmp_path / "apps" / "plain", "plain", "standard")
    return tmp_path


async def served_again_after(harness: Harness, app: str, fault: Any) -> None:
    """`fault(replica)` strikes the replica that serves `app`; no request may fail, then it must be mended."""
    async with harness.traffic(app, BODY) as traffic:
        victim = await harness.replica(app, variant="big")
        struck = time.monotonic()
        fault(victim)
        await harness.until(lambda: len(traffic.since(struck)) > 100, 10, "traffic goes on")
        assert not traffic.failed, traffic.failed[0]
        await harness.full_size(app)
    assert not traffic.failed, traffic.failed[0]


@pytest.mark.parametrize("app", ["vital", "plain"])
def test_worker_killed(folder: Path, app: str):
    async def test() -> None:
        async with running(folder) as harness:
            await harness.protected("vital")
            await served_again_after(harness, app, lambda r: os.kill(r["pid"], signal.SIGKILL))

    asyncio.run(test())


@pytest.mark.parametrize("app", ["vital", "plain"])
def test_worker_frozen(folder: Path, app: str):
    async def test() -> None:
        async with running(folder) as harness:
            await harness.protected("vital")
            await served_again_after(harness, app, lambda r: os.kill(r["pid"], signal.SIGSTOP))

    asyncio.run(test())


@pytest.mark.parametrize("app", ["vital", "plain"])
def test_node_killed_and_back(folder: Path, app: str):
    async def test() -> None:
        async with running(folder) as harness:
            await harness.protected("vital")
            victim = await harness.replica(app, variant="big")
            await served_again_after(harness, app, lambda r: harness.cluster.kill_node(r["node"]))
            harness.cluster.start_node(victim["node"])
            await harness.node_states()
            await harness.full_size("vital", "plain")

    asyncio.run(test())


def test_node_frozen_comes_back_without_flapping(folder: Path):
    async def test() -> None:
        async with running(folder) as harness:
            await harness.protected("vital")
            victim = (await harness.replica("vital", variant="big"))["node"]
            async with harness.traffic("vital", BODY) as traffic:
                harness.cluster.freeze_node(victim)
                await harness.node_states(**{victim: "dead"})
                harness.cluster.thaw_node(victim)
                thawed = time.monotonic()
                await harness.node_states()
                await harness.full_size("vital", "plain")
            assert not traffic.failed, traffic.failed[0]
            variants = [a.variant for a in traffic.since(thawed)]
            changes = sum(before != after for before, after in pairwise(variants))
            assert changes <= 8, f"serving variant changed {changes} times after the node came back"
            deaths = [e for e in await harness.events("node.died") if e["node"] == victim]
            assert len(deaths) == 1

    asyncio.run(test())


def test_agent_killed_its_workers_serve_on_and_are_adopted(folder: Path):
    async def test() -> None:
        async with running(folder, lease_ms=10_000) as harness:
            before = await harness.replica("plain", variant="big")
            async with harness.traffic("plain", BODY) as traffic:
                harness.cluster.kill_agent(before["node"])
                seen = len(traffic.answers)
                await harness.until(lambda: len(traffic.answers) > seen + 50, 10, "the worker serves on")
                harness.cluster.start_node(before["node"])
                await harness.node_states()
                await harness.full_size("plain")
            assert not traffic.failed, traffic.failed[0]
            after = await harness.replica("plain", variant="big")
            assert (after["pid"], after["id"]) == (before["pid"], before["id"])

    asyncio.run(test())


def test_gateway_killed_with_a_second_one(folder: Path):
    async def test() -> None:
        async with running(folder, gateways=2) as harness:
            await harness.until(
                lambda: harness.infer("plain", ROWS, gateway=1), 10, "the second gateway serves"
            )
            async with harness.traffic("plain", BODY) as traffic:
                harness.cluster.kill_gateway("g1")
                seen = len(traffic.answers)
                await harness.until(lambda: len(traffic.answers) > seen + 50, 10, "the other gateway serves")
            assert not traffic.failed, traffic.failed[0]

    asyncio.run(test())


def test_controller_down_then_a_node_lost(folder: Path):
    async def test() -> None:
        async with running(folder) as harness:
            await harness.protected("vital")
            harness.cluster.kill_controller("c1")
            for app in ("vital", "plain"):
                victim = await harness.replica(app)
                async with harness.traffic(app, BODY) as traffic:
                    harness.cluster.kill_node(victim["node"])
                    seen = len(traffic.answers)
                    await harness.until(lambda: len(traffic.answers) > seen + 100, 10, "answers go on")  # noqa: B023
                assert not traffic.failed, (app, traffic.failed[0])
                harness.cluster.start_node(victim["node"])
                await harness.replica(app)
            harness.cluster.start_controller("c1")
            await harness.node_states()
            await harness.full_size("vital", "plain")

    asyncio.run(test())


def test_controller_and_a_node_lost_together(folder: Path):
    async def test() -> None:
        async with running(folder) as harness:
            await harness.protected("vital")
            victim = (await harness.replica("plain"))["node"]
            async with harness.traffic("plain", BODY) as plain, harness.traffic("vital", BODY) as vital:
                harness.cluster.kill_controller("c1")
                harness.cluster.kill_node(victim)
                seen = len(plain.answers)
                await harness.until(lambda: len(plain.answers) > seen + 100, 10, "answers go on")
            assert not plain.failed, plain.failed[0]
            assert not vital.failed, vital.failed[0]

    asyncio.run(test())


def test_two_nodes_of_three_lost(folder: Path):
    async def test() -> None:
        async with running(folder) as harness:
            await harness.protected("vital")
            async with harness.traffic("plain", BODY) as plain, harness.traffic("vital", BODY) as vital:
                survivor = (await harness.replica("vital", role="standby"))["node"]
                for node in {"n1", "n2", "n3"} - {survivor}:
                    harness.cluster.kill_node(node)
                lost = time.monotonic()
                await harness.until(lambda: len(plain.since(lost)) > 200, 10, "answers go on")
            assert not vital.failed, vital.failed[0]
            assert not plain.failed, plain.failed[0]

    asyncio.run(test())


def test_a_gateway_started_afresh_without_controller_serves(folder: Path):
    async def test() -> None:
        async with running(folder) as harness:
            harness.cluster.kill_controller("c1")
            harness.cluster.kill_gateway("g1")
            shutil.rmtree(folder / "data" / "controller")
            harness.cluster.start_gateway("g1")
            await harness.full_size("vital", "plain")
            for app in ("vital", "plain"):
                assert (await harness.infer(app, ROWS)).status == 200

    asyncio.run(test())


def test_readiness_is_truthful(tmp_path: Path):
    orders = tmp_path / "orders"
    write_mischief_app(tmp_path / "apps" / "moody", "moody", orders)

    async def ready(harness: Harness) -> int:
        return (await harness.ask("GET", "/v2/models/moody/ready")).status

    async def test() -> None:
        async with running(tmp_path) as harness:
            assert await ready(harness) == 200
            (orders / "raise").touch()
            failed = await harness.infer("moody", ROWS, "FP64")
            assert failed.status == 500
            assert "told to fail" in failed.json["error"]
            start = time.monotonic()

            async def not_ready() -> bool:
                return await ready(harness) == 503

            await harness.until(not_ready, 5, "readiness is 503")
            assert time.monotonic() - start < 1.0, (
                "a probe interval is 0.5 s, and a busy machine needs a moment"
            )
            (orders / "raise").unlink()

            async def is_ready() -> bool:
                return await ready(harness) == 200

            await harness.until(is_ready, 20, "readiness is 200 again")
            assert (await harness.infer("moody", ROWS, "FP64")).json["outputs"][0]["data"][0] == 0.2

    asyncio.run(test())


def test_outputs_that_are_not_finite_are_never_served(tmp_path: Path):
    orders = tmp_path / "orders"
    write_mischief_app(tmp_path / "apps" / "moody", "moody", orders)

    async def test() -> None:
        async with running(tmp_path) as harness:
            answer = await harness.infer("moody", [[404.0, 0, 0, 0]], "FP64")
            assert answer.status == 500
            assert "NaN" in answer.json["error"]
            assert (await harness.infer("moody", ROWS, "FP64")).status == 200

    asyncio.run(test())


def test_a_poison_request_is_refused_and_others_are_unharmed(tmp_path: Path):
    write_mischief_app(tmp_path / "apps" / "moody", "moody", tmp_path / "orders", criticality="critical")

    async def test() -> None:
        async with running(tmp_path) as harness:
            await harness.protected("moody")
            async with harness.traffic("moody", infer_body(ROWS, "FP64")) as traffic:
                answer = await harness.infer("moody", [[666.0, 0, 0, 0]], "FP64")
                assert answer.status == 500
                assert "took down" in answer.json["error"]
                seen = len(traffic.answers)
                await harness.until(lambda: len(traffic.answers) > seen + 100, 10, "others are answered")
            assert not traffic.failed, traffic.failed[0]
            await harness.until(lambda: harness.events("request.poisoned"), 5, "it is on record")

    asyncio.run(test())


def test_a_worker_over_its_memory_limit_dies_alone(tmp_path: Path):
    write_mischief_app(tmp_path / "apps" / "moody", "moody", tmp_path / "orders")
    write_linear_app(tmp_path / "apps" / "vital", "vital", "critical")

    async def test() -> None:
        async with running(tmp_path) as harness:
            async with harness.traffic("vital", BODY) as traffic:
                before = {p["node"] for p in (await harness.app("vital"))["replicas"]}
                answer = await harness.infer("moody", [[512.0, 0, 0, 0]], "FP64")
                assert answer.status in (500, 503)
                await harness.full_size("moody")
                assert (await harness.infer("moody", ROWS, "FP64")).status == 200
            assert not traffic.failed, traffic.failed[0]
            assert {p["node"] for p in (await harness.app("vital"))["replicas"]} == before
            await harness.node_states()

    asyncio.run(test())


def test_a_crash_looping_variant_is_quarantined_everywhere(tmp_path: Path):
    orders = tmp_path / "orders"
    write_mischief_app(tmp_path / "apps" / "moody", "moody", orders)
    write_linear_app(tmp_path / "apps" / "vital", "vital", "critical")
    quick = "[agent]\ncrash_loop_count = 3\nbackoff_ms = 20\n"

    async def test() -> None:
        async with running(tmp_path, extra=quick) as harness:
            (orders / "crash-on-load").touch()
            victim = await harness.replica("moody")
            os.kill(victim["pid"], signal.SIGKILL)
            await harness.until(lambda: harness.events("variant.quarantined"), 20, "it is quarantined")
            (orders / "crash-on-load").unlink()
            vital = await harness.infer("vital", ROWS)
            assert (vital.status, vital.variant) == (200, "big")
            await harness.node_states()

    asyncio.run(test())


def test_a_corrupt_artifact_is_fetched_anew_and_never_served(folder: Path):
    async def test() -> None:
        async with running(folder) as harness:
            truth = (await harness.infer("plain", ROWS)).json["outputs"][0]["data"]
            victim = await harness.replica("plain", variant="big")
            staged = folder / "data" / "agent" / victim["node"] / "artifacts"
            for path in staged.iterdir():
                if path.is_file():
                    content = bytearray(path.read_bytes())
                    content[len(content) // 2] ^= 0xFF
                    path.chmod(0o600)
                    path.write_bytes(content)
            os.kill(victim["pid"], signal.SIGKILL)

            async def replaced() -> bool:
                return (await harness.replica("plain", variant="big"))["pid"] != victim["pid"]

            await harness.until(replaced, 15, "another worker serves it")
            assert (await harness.infer("plain", ROWS)).json["outputs"][0]["data"] == truth
            await harness.until(lambda: harness.events("artifact.corrupted"), 5, "it is on record")

    asyncio.run(test())
