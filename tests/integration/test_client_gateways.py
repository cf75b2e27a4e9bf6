"""Two gateways, one of them killed and frozen under load: callers of our clients must not notice."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
from families import ROWS
from harness import PERIOD_S, Harness, bearable_period_s, running

from understudy.client import Answer, AsyncClient, Client, ClientError

X = {"x": np.array(ROWS, np.float32)}
TIMEOUT_S = 8.0
LATE_S = 1.5  # an answer after this means that somebody waited for a frozen gateway, which thaws after 3 s


def urls(harness: Harness) -> list[str]:
    return [f"http://127.0.0.1:{port}" for port in harness.ports]


class Load:
    """Open loop: a call every 5 ms through one client, or as often as this machine bears just now."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._stop = asyncio.Event()
        self.answers: list[Answer] = []
        self.failed: list[ClientError] = []

    async def run(self) -> None:
        period_s = max(PERIOD_S, await bearable_period_s(self._one))
        start, count = time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while not self._stop.is_set():
                while time.monotonic() >= start + count * period_s:
                    tasks.create_task(self._one())
                    count += 1
                await asyncio.sleep(period_s / 2)

    async def _one(self) -> None:
        try:
            self.answers.append(await self._client.infer("plain", X))
        except ClientError as error:
            self.failed.append(error)

    def stop(self) -> None:
        self._stop.set()

    def latest_s(self) -> float:
        return max(answer.latency_s for answer in self.answers)


async def serving(harness: Harness) -> None:
    for gateway in (0, 1):
        await harness.until(lambda g=gateway: harness.infer("plain", ROWS, gateway=g), 10, "both serve")


async def more(harness: Harness, load: Load, count: int, gateway: str | None = None) -> None:
    """Wait for so many more answers, all or those of `gateway`."""
    before = len(load.answers)

    def come() -> bool:
        return sum(gateway in (None, a.gateway) for a in load.answers[before:]) >= count

    await harness.until(come, 20, f"{count} answers of {gateway or 'any gateway'}")


def signal_gateway(harness: Harness, name: str, number: signal.Signals) -> None:
    """To all its processes."""
    os.killpg(harness.cluster.roles["gateway", name].pid, number)


def test_a_gateway_killed_then_the_other_one_frozen(folder: Path):
    async def test() -> None:
        async with running(folder, gateways=2) as harness:
            await serving(harness)
            first, second = urls(harness)
            async with (
                AsyncClient([first, second], timeout_s=TIMEOUT_S) as client,
                asyncio.TaskGroup() as tasks,
            ):
                load = Load(client)
                tasks.create_task(load.run())
                try:
                    await more(harness, load, 30, first)
                    await more(harness, load, 30, second)
                    signal_gateway(harness, "g1", signal.SIGKILL)
                    await more(harness, load, 300)
                    assert not load.failed, load.failed[0]
                    harness.cluster.start_gateway("g1")
                    await more(harness, load, 50, first)  # found by a probe, not by being told

                    signal_gateway(harness, "g2", signal.SIGSTOP)
                    await more(harness, load, 600)
                    signal_gateway(harness, "g2", signal.SIGCONT)
                    await more(harness, load, 50, second)
                finally:
                    load.stop()
            assert not load.failed, load.failed[0]
            assert load.latest_s() < LATE_S

    asyncio.run(test())


def test_threads_share_a_client_while_a_gateway_dies(folder: Path):
    async def test() -> None:
        async with running(folder, gateways=2) as harness:
            await serving(harness)
            with Client(urls(harness), timeout_s=TIMEOUT_S) as client:
                stop, wrong = threading.Event(), []
                counts = [0] * 8

                def call(index: int) -> None:
                    x = np.full((1, 4), index, np.float32)
                    expected = client.infer("plain", {"x": x}).outputs["y"]
                    while not stop.is_set():
                        try:
                            answer = client.infer("plain", {"x": x})
                        except ClientError as error:
                            wrong.append(str(error))
                            return
                        if answer.variant == "big" and not np.allclose(answer.outputs["y"], expected):
                            wrong.append(f"thread {index} got another's answer")
                        counts[index] += 1

                threads = [threading.Thread(target=call, args=(index,)) for index in range(len(counts))]
                for thread in threads:
                    thread.start()
                try:
                    await harness.until(lambda: min(counts) >= 20, 20, "calls of every thread")
                    signal_gateway(harness, "g1", signal.SIGKILL)
                    seen = list(counts)
                    await harness.until(
                        lambda: wrong or all(c >= s + 50 for c, s in zip(counts, seen, strict=True)),
                        20,
                        "more",
                    )
                finally:
                    stop.set()
                    for thread in threads:
                        await asyncio.to_thread(thread.join)
                assert not wrong, wrong[0]

    asyncio.run(test())
