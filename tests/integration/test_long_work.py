"""Predictions that take seconds, however they keep their worker busy; killed, frozen, and left alone."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from harness import running
from long_work import APPS, ask, client, failed, strike, unjust, write_apps, write_slow_loader

DEADLINE_MS = 20_000


def test_work_that_takes_seconds_is_answered_whatever_happens_to_workers(tmp_path: Path) -> None:
    async def play() -> None:
        write_apps(tmp_path / "apps", DEADLINE_MS)
        async with running(tmp_path) as harness:
            await harness.protected(*APPS)
            calm = await asyncio.gather(*(client(harness, app, (0.1, 2.5), 25) for app in APPS))
            assert not failed(calm)
            assert not await harness.events("worker.given_up"), "nobody touched them"
            rng = random.Random(1)
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(client(harness, app, (1.5, 0.1, 1.5), 25)) for app in APPS]
                for app, kind in zip(APPS, ("kill", "freeze", "halt", "kill"), strict=True):
                    tasks.create_task(strike(harness, app, kind, rng, halt_s=1.0))
            assert not failed(task.result() for task in asked)
            assert not await unjust(harness)

    asyncio.run(play())


def test_loading_takes_as_long_as_its_manifest_allows(tmp_path: Path) -> None:
    async def play() -> None:
        extra = "[agent]\nload_timeout_s = 1.0"
        async with running(tmp_path, nodes={"n1": "a"}, extra=extra) as harness:
            write_slow_loader(tmp_path / "patient", "holds", load_s=1.5, load_timeout_s=20)
            await asyncio.to_thread(harness.cli, "deploy", str(tmp_path / "patient"), "--json")
            assert (await ask(harness, "patient", 0.01, 10)).status == 200
            write_slow_loader(tmp_path / "hasty", "sleeps", load_s=20, load_timeout_s=0.5)
            with pytest.raises(AssertionError, match=r"load_timeout_s = 0\.5"):
                await asyncio.to_thread(harness.cli, "deploy", str(tmp_path / "hasty"))

    asyncio.run(play())
