"""A gateway among slow, wrong and hostile clients, and short of descriptors. Good clients notice nothing."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import quantiles

import psutil
from families import ROWS
from harness import AnswerReader, Harness, Traffic, closed, infer_body, request_bytes, running

APP = "plain"
BODY = infer_body(ROWS)
LIMITS = """
[gateway.http]
body_bytes_max = 16000000
body_bytes_total_max = 64000000
header_timeout_s = 2
body_timeout_s = 2
write_timeout_s = 2
"""
IDLE = 2000
IDLE_MB_PER_1000_MAX = 20.0
ATTACK_MB_MAX = 100.0  # of 500 attackers; bodies of 800 MB are announced
LEFT_MB_MAX = 30.0  # what an allocator keeps
PERIOD_S = 0.01


def serving(harness: Harness) -> psutil.Process:
    (child,) = psutil.Process(harness.cluster.roles["gateway", "g1"].pid).children()
    return child


def memory_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


def p99_ms(traffic: Traffic, since: float) -> float:
    return quantiles([answer.latency_s * 1000 for answer in traffic.since(since)], n=100)[98]


@asynccontextmanager
async def hostile_clients(port: int, idle: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Real ones have machines of their own, so these must not win the processors from the gateway."""
    script = Path(__file__).with_name("hostile_clients.py")
    process = await asyncio.create_subprocess_exec(
        "nice", sys.executable, str(script), str(port), str(idle),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def heard(process: asyncio.subprocess.Process, word: str) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == f"{word}\n".encode()


async def tell(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    await process.stdin.drain()


async def peak_mb(process: psutil.Process, until: asyncio.Task[None]) -> float:
    peak = memory_mb(process)
    while not until.done():
        peak = max(peak, memory_mb(process))
        await asyncio.wait([until], timeout=0.02)
    await until
    return peak


def test_idle_slow_and_hostile_clients_do_no_harm_to_others(folder: Path):
    async def test() -> None:
        async with running(folder, extra=LIMITS) as harness:
            gateway = serving(harness)
            at_first = (await harness.gateway())["connections"]
            async with harness.traffic(APP, BODY, PERIOD_S) as traffic:
                start = time.monotonic()
                await harness.until(lambda: len(traffic.since(start)) > 200, 20, "undisturbed traffic")
                figures = {"p99_ms": p99_ms(traffic, start)}
                base_mb = memory_mb(gateway)
                async with hostile_clients(harness.ports[0], IDLE) as hostile:
                    await heard(hostile, "idle")

                    async def all_there() -> bool:
                        return bool((await harness.gateway())["connections"] >= IDLE)

                    await harness.until(all_there, 10, "idle connections")
                    idle_mb = memory_mb(gateway) - base_mb
                    struck = time.monotonic()
                    await tell(hostile)
                    attack = asyncio.ensure_future(heard(hostile, "done"))
                    attack_mb = await peak_mb(gateway, attack) - base_mb - idle_mb
                    figures["p99_ms_attacked"] = p99_ms(traffic, struck)
                    await tell(hostile)
                    await hostile.wait()

            async def as_before() -> bool:
                seen = await harness.gateway()
                return bool(seen["connections"] <= at_first and not seen["bytes_held"])

            await harness.until(as_before, 10, "all connections and bodies are gone")
            left_mb = memory_mb(gateway) - base_mb
            figures |= {
                "idle_mb_per_1000": idle_mb / IDLE * 1000,
                "attack_mb": attack_mb,
                "left_mb": left_mb,
                "answers": len(traffic.since(struck)),
            }
            rounded = {name: round(figure, 1) for name, figure in figures.items()}
            sys.stdout.write(f"hostile clients: {json.dumps(rounded)}\n")
            # Answers later than the app's deadline are failures, too.
            assert not traffic.failed, traffic.failed[:3]
            assert idle_mb / IDLE * 1000 < IDLE_MB_PER_1000_MAX, rounded
            assert attack_mb < ATTACK_MB_MAX, rounded
            assert left_mb < LEFT_MB_MAX, rounded

    asyncio.run(test())


def connections(port: int, count: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(count)]


class Regular:
    """A good client with one connection, which it had before the others came."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._answers = AnswerReader(reader)
        self._writer = writer

    async def ask(self, count: int) -> list[int]:
        """The statuses of so many inferences, one after another."""
        statuses = []
        async with asyncio.timeout(20):
            for _ in range(count):
                self._writer.write(request_bytes("POST", f"/v2/models/{APP}/infer", BODY))
                statuses.append((await self._answers.next()).status)
        return statuses


@asynccontextmanager
async def regular(port: int) -> AsyncIterator[Regular]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        client = Regular(reader, writer)
        assert await client.ask(1) == [200]
        yield client
    finally:
        await closed(writer)


def test_accepting_without_a_free_descriptor_costs_only_the_new_client(folder: Path):
    async def test() -> None:
        async with running(folder) as harness, regular(harness.ports[0]) as client:
            gateway = serving(harness)
            limits = gateway.rlimit(resource.RLIMIT_NOFILE)
            low = gateway.num_fds() + 5
            gateway.rlimit(resource.RLIMIT_NOFILE, (low, limits[1]))
            held = await asyncio.to_thread(connections, harness.ports[0], 50)
            await harness.until(lambda: gateway.num_fds() >= low - 1, 5, "no descriptor is left")
            assert await client.ask(100) == [200] * 100
            for connection in held:
                connection.close()
            gateway.rlimit(resource.RLIMIT_NOFILE, limits)
            await harness.until(lambda: harness.infer(APP, ROWS), 5, "new clients are let in")
            assert serving(harness).pid == gateway.pid, "the serving process was replaced"

    asyncio.run(test())


@contextmanager
def gateway_with_few_files(harness: Harness, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`understudy gateway g1` once more, which takes over; its soft limit is lower than its hard one."""
    command = f"ulimit -Hn 120; exec {sys.executable} -m understudy gateway g1"
    command += f" --cluster {harness.cluster.config_path}"
    with (
        log.open("wb") as output,
        subprocess.Popen(["bash", "-c", f"ulimit -Sn 60; {command}"], stderr=output) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)


def test_a_low_limit_on_files_keeps_room_to_replace_a_worker(folder: Path):
    async def test() -> None:
        async with running(folder) as harness:
            former = harness.cluster.roles["gateway", "g1"]
            former.wanted = False
            log = folder / "limited.log"
            with gateway_with_few_files(harness, log) as process:
                await harness.until(lambda: former.exit_status == 0, 20, "the limited gateway serves")
                (child,) = psutil.Process(process.pid).children()
                assert child.rlimit(resource.RLIMIT_NOFILE) == (120, 120)
                await lose_a_worker_among_many_clients(harness)
            assert "gateway.files_limited" in log.read_text()

    asyncio.run(test())


async def lose_a_worker_among_many_clients(harness: Harness) -> None:
    replica = await harness.replica(APP)
    async with regular(harness.ports[0]) as client:
        held = await asyncio.to_thread(connections, harness.ports[0], 300)
        os.kill(replica["pid"], signal.SIGKILL)
        assert await client.ask(100) == [200] * 100
        for connection in held:
            connection.close()
    await harness.until(lambda: harness.infer(APP, ROWS), 5, "new clients are let in")
