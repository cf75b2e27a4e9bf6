"""Processes that end, are told to end, or wait for somebody who is gone: on one real cluster."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest
from grpc_calls import METHOD
from harness import Harness, closed, infer_body, open_folder, read_answer, request_bytes, running

from understudy.adapters.ports import free_ports
from understudy.local.supervisor import Cluster
from understudy.wire.inference import ModelInferRequest

# Sleeps as long as it is told, and says that it ran.
SLOW = """
import time

class Model:
    inputs = [("x", "FP32", [-1, 1])]
    outputs = [("y", "FP32", [-1, 1])]

    def load(self, path):
        pass

    def predict(self, inputs):
        pause_s = float(inputs["x"].max())
        if pause_s:
            with open({ran!r}, "a") as file:
                file.write("x")
        time.sleep(pause_s)
        return {{"y": inputs["x"] * 2}}
"""
MANIFEST = """
name = "slow"
deadline_ms = 20000
batching = {rows_max = 1}
probe = {inputs = [{name = "x", datatype = "FP32", shape = [1, 1], data = [0.0]}]}

[[variants]]
name = "one"
runtime = "python"
artifact = "model.py"
accuracy = 1.0
"""
TUNING = "[agent]\nprobe_timeout_ms = 8000\n"
PATH = "/v2/models/slow/infer"
GONE = 30
PAUSE_S = 0.3


class Slow:
    """One node with one replica that runs one request at a time."""

    def __init__(self, runner: asyncio.Runner, harness: Harness) -> None:
        self.runner = runner
        self.harness = harness

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    @property
    def ran(self) -> int:
        path = self.harness.folder / "orders" / "ran"
        return path.stat().st_size if path.exists() else 0

    async def idle(self) -> None:
        async def is_idle() -> bool:
            return bool((await self.harness.gateway())["inflight"] == 0)

        await self.harness.until(is_idle, 20, "nobody is waited for")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slow]:
    folder: Path = tmp_path_factory.mktemp("slow")
    app = folder / "apps" / "slow"
    app.mkdir(parents=True)
    ran = open_folder(folder / "orders") / "ran"
    ran.touch()
    ran.chmod(0o666)
    (app / "model.py").write_text(SLOW.format(ran=str(ran)))
    (app / "APP.toml").write_text(MANIFEST)
    with asyncio.Runner() as runner:
        context = running(folder, nodes={"n1": "a"}, extra=TUNING, grpc=True)
        harness = runner.run(context.__aenter__())
        yield Slow(runner, harness)
        runner.run(context.__aexit__(None, None, None))


def asked(pause_s: float, version: str = "1.1") -> bytes:
    wire = request_bytes("POST", PATH, infer_body([[pause_s]]))
    return wire.replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1)


async def leave_http(harness: Harness, version: str) -> None:
    writers = []
    for _ in range(GONE):
        _, writer = await asyncio.open_connection("127.0.0.1", harness.ports[0])
        writer.write(asked(PAUSE_S, version))
        writers.append(writer)
    await asyncio.sleep(PAUSE_S)
    for writer in writers:
        await closed(writer)


async def leave_grpc(harness: Harness, end: str) -> None:
    request = ModelInferRequest(
        model_name="slow",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 1], "contents": {"fp32_contents": [PAUSE_S]}}],
    )
    address = harness.cluster.config.gateways[0].grpc
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD)
        timeout_s = PAUSE_S if end == "deadline" else None
        calls = [call(request.SerializeToString(), timeout=timeout_s) for _ in range(GONE)]
        await asyncio.sleep(PAUSE_S)
        if end == "cancel":
            for each in calls:
                each.cancel()


@pytest.mark.parametrize("how", ["1.1", "1.0", "cancel", "deadline"])
def test_what_clients_that_are_gone_asked_for_is_not_computed(slow: Slow, how: str):
    async def test() -> None:
        before = slow.ran
        leave = leave_http if how.startswith("1") else leave_grpc
        await leave(slow.harness, how)
        assert (await slow.harness.infer("slow", [[0.0]])).status == 200
        await slow.idle()
        assert slow.ran - before < GONE / 3, "they were computed for nobody"

    slow.run(test())


@pytest.mark.parametrize("requests", [1, 3])
def test_a_client_that_sends_no_more_and_waits_gets_its_answers_whole(slow: Slow, requests: int):
    async def test() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", slow.harness.ports[0])
        writer.write(asked(0.7) + asked(0.01) * (requests - 1))
        writer.write_eof()
        async with asyncio.timeout(20):
            received = await reader.read()
        await closed(writer)
        assert received.count(b"HTTP/1.1 ") == received.count(b"HTTP/1.1 200 OK\r\n") == requests
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")

    slow.run(test())


def test_a_gateway_whose_parent_is_killed_answers_what_is_in_flight(slow: Slow):
    async def test() -> None:
        role = slow.harness.cluster.roles["gateway", "g1"]
        (serving,) = psutil.Process(role.pid).children()
        reader, writer = await asyncio.open_connection("127.0.0.1", slow.harness.ports[0])
        before = slow.ran
        writer.write(asked(1.5))
        await slow.harness.until(lambda: slow.ran > before, 10, "it runs")
        role.wanted = False
        role.send(signal.SIGKILL)
        answer = await read_answer(reader)
        assert (answer.status, answer.json["outputs"][0]["data"]) == (200, [3.0])
        await closed(writer)
        await slow.harness.until(lambda: not serving.is_running(), 10, "the serving process has ended")
        role.start()
        await slow.harness.full_size("slow")
        assert "BrokenPipeError" not in role.log_path.read_text()

    slow.run(test())


def test_the_next_gateway_need_not_wait_for_the_former_to_drain(slow: Slow):
    async def test() -> None:
        role = slow.harness.cluster.roles["gateway", "g1"]
        reader, writer = await asyncio.open_connection("127.0.0.1", slow.harness.ports[0])
        before = slow.ran
        writer.write(asked(2.0))
        await slow.harness.until(lambda: slow.ran > before, 10, "it runs")
        role.send(signal.SIGKILL)
        began_s = time.monotonic()
        role.start()
        await slow.harness.until(
            lambda: slow.harness.ask("GET", "/v2/health/live"), 10, "the next one answers"
        )
        assert time.monotonic() - began_s < 10
        assert (await read_answer(reader)).status == 200
        await closed(writer)
        await slow.harness.full_size("slow")

    slow.run(test())


async def processes(cluster: Cluster) -> set[tuple[str, int]]:
    """Roles and workers, each with its process. What waits in pools comes and goes."""
    roles = {(" ".join(name), role.pid) for name, role in cluster.roles.items()}
    apps = (await cluster.status()).apps
    return roles | {(replica.id, replica.pid) for app in apps for replica in app.replicas}


async def end_of(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    return process.returncode, out.decode()


async def understudy(*arguments: str) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "understudy", *arguments)
    return await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )


def test_a_second_up_of_a_running_cluster_is_refused_and_changes_nothing(slow: Slow):
    async def test() -> None:
        before = await processes(slow.harness.cluster)
        second = await understudy("up", str(slow.harness.cluster.config_path))
        status, said = await end_of(second)
        assert status == 2
        assert "cluster 'test' runs already: process" in said
        assert "is up" not in said
        assert await processes(slow.harness.cluster) == before

    slow.run(test())


@pytest.mark.parametrize("command", ["up FILE", "deploy APP --cluster FILE", "events --cluster FILE"])
def test_a_controller_of_another_cluster_is_asked_nothing(slow: Slow, tmp_path: Path, command: str):
    async def test() -> None:
        cluster = slow.harness.cluster
        path, app = tmp_path / "CLUSTER.toml", slow.harness.folder / "apps" / "slow" / "APP.toml"
        other = cluster.config_path.read_text().replace('name = "test"', 'name = "other"', 1)
        path.write_text(f"apps = [{str(app)!r}]\n{other}")
        warnings = (await cluster.status()).warnings
        words = command.replace("FILE", str(path)).replace("APP", str(app)).split()
        async with asyncio.timeout(20):
            status, said = await end_of(await understudy(*words))
        assert status == 1, said
        address = cluster.config.controllers[0].http
        assert f"{address} is cluster 'test', not 'other'" in said
        assert "problem" not in said
        view = await cluster.status()
        assert [(app.name, app.version) for app in view.apps] == [("slow", 1)]
        assert view.warnings == warnings

    slow.run(test())


def test_up_deploys_nothing_into_a_cluster_of_its_own_name(slow: Slow, tmp_path: Path):
    async def test() -> None:
        cluster = slow.harness.cluster
        path, app = tmp_path / "CLUSTER.toml", tmp_path / "more.toml"
        text = (slow.harness.folder / "apps" / "slow" / "APP.toml").read_text()
        app.write_text(text.replace('"slow"', '"more"', 1).replace('"model.py"', '"../model.py"'))
        path.write_text(f"apps = [{str(app)!r}]\n{cluster.config_path.read_text()}")
        warnings = (await cluster.status()).warnings
        second = await understudy("up", str(path))
        assert second.stdout is not None
        async with asyncio.timeout(20):
            while b"controller c1 can't start" not in await second.stdout.readline():
                pass
        await asyncio.sleep(1)  # in which it would be told
        second.send_signal(signal.SIGINT)
        status, said = await end_of(second)
        assert status == 1
        assert "is up" not in said
        view = await cluster.status()
        assert [app.name for app in view.apps] == ["slow"]
        assert view.warnings == warnings

    slow.run(test())


@pytest.mark.parametrize("role", ["controller c1", "agent n1"])
def test_a_second_role_of_a_name_is_refused(slow: Slow, role: str):
    async def test() -> None:
        path = str(slow.harness.cluster.config_path)
        status, said = await end_of(await understudy(*role.split(), "--cluster", path))
        assert status == 2
        assert re.search("(runs already|another agent of this node is running): process [0-9]", said)
        assert "Traceback" not in said

    slow.run(test())


def test_who_drains_the_last_node_is_told_what_stays(slow: Slow):
    async def test() -> None:
        path = str(slow.harness.cluster.config_path)
        try:
            status, said = await end_of(await understudy("drain", "n1", "--cluster", path))
            assert status == 0
            assert "n1 is being drained" in said
            assert "warning: no other node can hold slow:" in said
            assert (await slow.harness.infer("slow", [[0.0]])).status == 200
        finally:
            await end_of(await understudy("undrain", "n1", "--cluster", path))
        await slow.harness.node_states()

    slow.run(test())


def listens(address: str) -> bool:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=1):
        return True


@pytest.mark.parametrize("processes", [(1, 2), (2, 1), (2, 2)])
def test_a_gateway_of_another_cluster_is_kept_off_a_port(
    slow: Slow, tmp_path: Path, processes: tuple[int, int]
):
    async def test() -> None:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        running: list[asyncio.subprocess.Process] = []
        try:
            for name, count in zip(("one", "two"), processes, strict=True):
                path = tmp_path / f"{name}.toml"
                path.write_text(
                    f'name = "{name}"\ndata_dir = "{name}"\n[[nodes]]\nname = "n1"\nmemory_mb = 100\n'
                    f'[[gateways]]\nname = "g1"\nhttp = "{address}"\nprocesses = {count}\n'
                )
                running.append(await understudy("gateway", "g1", "--cluster", str(path)))
                if name == "one":
                    await slow.harness.until(lambda: listens(address), 20, "the first one listens")
            status, said = await end_of(running.pop())
            assert status == 2
            assert f"can't listen on {address}" in said
            assert "Traceback" not in said
        finally:
            for process in running:
                process.terminate()
                await end_of(process)

    slow.run(test())


def test_sighup_ends_nobody_and_logs_go_on_in_a_new_file(slow: Slow):
    async def test() -> None:
        cluster = slow.harness.cluster
        before = await processes(cluster)
        aside = [role.log_path.replace(f"{role.log_path}.aside") for role in cluster.roles.values()]
        for pid in cluster.pids():
            os.kill(pid, signal.SIGHUP)
        await slow.harness.until(
            lambda: all(role.log_path.exists() for role in cluster.roles.values()), 10, "new logs"
        )
        assert len(aside) == 3
        assert (await slow.harness.infer("slow", [[0.0]])).status == 200
        assert await processes(cluster) == before

    slow.run(test())


def test_sockets_that_somebody_removed_are_made_again(slow: Slow):
    async def test() -> None:
        cluster = slow.harness.cluster
        place = Path(cluster.config.run_dir)
        before = {path.name for path in place.iterdir()}
        assert before
        shutil.rmtree(place)
        await slow.harness.until(
            lambda: place.is_dir() and {path.name for path in place.iterdir()} == before,
            10,
            "the same sockets",
        )
        assert place.stat().st_mode & 0o077 == 0
        cluster.kill_gateway("g1")  # the next one knows nobody, and meets them there
        cluster.start_gateway("g1")
        await slow.harness.full_size("slow")
        assert (await slow.harness.infer("slow", [[0.0]])).status == 200

        async def told() -> bool:
            return bool(await slow.harness.events("socket.restored"))

        await slow.harness.until(told, 10, "an event")

    slow.run(test())
