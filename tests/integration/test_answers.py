"""On real processes: replicas that answer probes but fail users, and each link of the fallback chain."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from families import ROWS, write_mischief_app, write_picky_app
from harness import Answer, Harness, infer_body, running

BODY = infer_body(ROWS, "FP64")
OTHER_ROWS = [[0.5, 0.5, 0.5, 0.5]]
STATIC = """
[[static.outputs]]
name = "y"
datatype = "FP64"
shape = [1, 4]
data = [7.0, 7.0, 7.0, 7.0]
"""


async def ask(harness: Harness, app: str, rows: list[list[float]] = ROWS) -> Answer:
    return await harness.infer(app, rows, "FP64")


@pytest.mark.parametrize("how", ["raise", "nan", "sleep"])
def test_a_replica_that_passes_its_probe_and_fails_users_leaves_the_rotation(tmp_path: Path, how: str):
    orders = tmp_path / "orders"
    tags = {"full": "full", "lite": "lite"}
    critical = 'criticality = "critical"\ndeadline_ms = 4000'
    write_picky_app(tmp_path / "apps" / "picky", "picky", orders, tags, critical)

    async def test() -> None:
        async with running(tmp_path) as harness:
            await harness.protected("picky")
            async with harness.traffic("picky", BODY) as traffic:
                await harness.until(lambda: len(traffic.answers) > 300, 15, "it is known how fast it is")
                victim = await harness.replica("picky", role="primary")
                order = orders / f"{victim['id']}-{how}"
                order.touch()

                async def breaker_is(state: str) -> bool:
                    replicas = (await harness.app("picky"))["replicas"]
                    found = next(r for r in replicas if r["id"] == victim["id"])
                    return bool(found["state"] == "ready" and found["breaker"] == state)

                await harness.until(
                    lambda: breaker_is("open"), 15, "its agent takes it for ready, the gateway knows better"
                )
                assert (await ask(harness, "picky")).status == 200
                order.unlink()
                await harness.until(lambda: breaker_is("closed"), 40, "it is re-admitted")
            assert not traffic.failed, traffic.failed[0]
            if how == "sleep":
                assert await harness.events("replica.ejected")

    asyncio.run(test())


def test_without_another_replica_readiness_says_that_users_are_failed(tmp_path: Path):
    orders = tmp_path / "orders"
    write_picky_app(tmp_path / "apps" / "picky", "picky", orders, {"full": "full"})

    async def test() -> None:
        async with running(tmp_path, nodes={"n1": "a"}) as harness:
            (orders / "full-raise").touch()
            for number in range(3):
                assert (await ask(harness, "picky", other_rows(number))).status == 500

            async def not_ready() -> bool:
                return (await harness.ask("GET", "/v2/models/picky/ready")).status == 503

            await harness.until(not_ready, 5, "readiness is 503 although the probe passes")

    asyncio.run(test())


def other_rows(number: int) -> list[list[float]]:
    """Different requests: the same one over and over would be its own fault."""
    return [[number + 1.0, 0.5, 0.5, 0.5]]


def write_chain(folder: Path, chain: str) -> Path:
    """App `a` with a chain and a static answer, and `b`, which may stand in; where their orders are put."""
    orders = folder / "orders"
    write_picky_app(folder / "apps" / "a", "a", orders, {"one": "a"}, chain + STATIC)
    write_picky_app(folder / "apps" / "b", "b", orders, {"two": "b"})
    return orders


def test_the_chain_link_by_link(tmp_path: Path):
    orders = write_chain(tmp_path, 'fallback = ["app:b", "last-good", "static"]\ndeadline_ms = 2000')

    async def test() -> None:
        async with running(tmp_path) as harness:
            good = await ask(harness, "a")
            assert (good.status, good.variant, good.degraded) == (200, "one", "")

            (orders / "a-raise").touch()
            answer = await ask(harness, "a")
            assert (answer.status, answer.degraded, answer.variant) == (200, "other-app", "two")
            assert answer.headers["understudy-app"] == "b"
            assert answer.json["model_name"] == "b"
            assert answer.json["outputs"][0]["data"] == good.json["outputs"][0]["data"]

            (orders / "b-raise").touch()
            answer = await ask(harness, "a")
            assert (answer.status, answer.degraded, answer.variant) == (200, "last-good", "one")
            assert answer.body == good.body
            assert answer.headers["understudy-version"] == "1"
            answer = await ask(harness, "a", OTHER_ROWS)
            assert (answer.status, answer.degraded, answer.variant) == (200, "static", "static")
            assert answer.json["outputs"][0]["data"] == [7.0] * 4

    asyncio.run(test())


def test_each_link_has_its_turn_within_the_deadline(tmp_path: Path):
    orders = write_chain(tmp_path, 'fallback = ["app:b", "static"]\ndeadline_ms = 1000')

    async def test() -> None:
        async with running(tmp_path) as harness:
            assert (await ask(harness, "a")).degraded == ""
            (orders / "a-hang").touch()
            answer = await ask(harness, "a")
            assert (answer.status, answer.degraded) == (200, "other-app")
            assert answer.latency_s < 1.0
            (orders / "b-hang").touch()
            answer = await ask(harness, "a")
            assert (answer.status, answer.degraded) == (200, "static")
            assert answer.latency_s < 1.0

    asyncio.run(test())


def test_the_previous_version_is_loaded_again_when_the_new_one_fails_users(tmp_path: Path):
    orders = tmp_path / "orders"
    folder = tmp_path / "apps" / "picky"
    write_picky_app(folder, "picky", orders, {"full": "v1", "lite": "v1"}, "deadline_ms = 4000")

    async def test() -> None:
        async with running(tmp_path) as harness:
            assert (await ask(harness, "picky")).headers["understudy-version"] == "1"
            write_picky_app(folder, "picky", orders, {"full": "v2", "lite": "v2"}, "deadline_ms = 4000")
            await asyncio.to_thread(harness.cli, "deploy", str(folder), "--json")

            async def alone() -> bool:
                return {r["version"] for r in (await harness.app("picky"))["replicas"]} == {2}

            await harness.until(alone, 20, "only version 2 is running")
            (orders / "v2-raise").touch()

            async def called_back() -> bool:
                answers = [await ask(harness, "picky", other_rows(number)) for number in range(10)]
                return {(a.status, a.degraded) for a in answers} == {(200, "previous-version")}

            await harness.until(called_back, 30, "version 1 answers")
            for _ in range(50):  # longer than the controller needs to find that version 2 is settled
                answer = await ask(harness, "picky")
                assert (answer.status, answer.headers.get("understudy-version")) == (200, "1"), answer
                await asyncio.sleep(0.05)
            assert await harness.events("version.recalled")

    asyncio.run(test())


def test_at_the_end_of_the_chain_is_an_honest_503(folder: Path):
    async def test() -> None:
        async with running(folder, nodes={"n1": "a"}) as harness:
            harness.cluster.kill_node("n1")

            async def refused() -> bool:
                answer = await harness.infer("plain", ROWS)
                return (answer.status, answer.headers.get("retry-after")) == (503, "1")

            await harness.until(refused, 10, "503 with Retry-After")

    asyncio.run(test())


def test_a_stand_in_must_be_deployed_and_not_go_in_a_circle(tmp_path: Path):
    orders = tmp_path / "orders"
    apps = tmp_path / "apps"
    write_picky_app(apps / "one", "one", orders, {"v": "one"}, 'fallback = ["app:two"]')
    write_picky_app(apps / "two", "two", orders, {"v": "two"})
    late = tmp_path / "late"

    def refused(harness: Harness, name: str, extra: str) -> str:
        write_picky_app(late, name, orders, {"v": "late"}, extra)
        command = [sys.executable, "-m", "understudy", "deploy", str(late), "--json"]
        command += ["--cluster", str(harness.cluster.config_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        return done.stdout + done.stderr

    async def test() -> None:
        async with running(tmp_path) as harness:
            for extra, name, wrong in (
                ('fallback = ["app:nobody"]', "three", "isn't deployed"),
                ('fallback = ["app:three"]', "three", "a circle: three -> three"),
                ('fallback = ["app:one"]', "two", "a circle: two -> one -> two"),
                ('fallback = ["app:two", "smaller-variant"]', "three", "must come earlier"),
            ):
                assert wrong in await asyncio.to_thread(refused, harness, name, extra)

    asyncio.run(test())


def test_poison_is_refused_at_once_the_second_time(tmp_path: Path):
    write_mischief_app(tmp_path / "apps" / "moody", "moody", tmp_path / "orders", criticality="critical")

    async def test() -> None:
        async with running(tmp_path) as harness:
            await harness.protected("moody")
            poison = [[666.0, 0, 0, 0]]
            assert "took down" in (await ask(harness, "moody", poison)).json["error"]
            await harness.full_size("moody")
            await harness.protected("moody")
            before = {r["pid"] for r in (await harness.app("moody"))["replicas"]}
            answer = await ask(harness, "moody", poison)
            assert (answer.status, answer.headers["understudy-code"]) == (500, "poison")
            assert (await ask(harness, "moody")).status == 200
            assert {r["pid"] for r in (await harness.app("moody"))["replicas"]} == before

    asyncio.run(test())
