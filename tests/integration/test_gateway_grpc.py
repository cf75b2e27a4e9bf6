"""gRPC over the life of a gateway: processes that share the port, handing over, draining, refusals."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_calls import METHOD, infer_message
from harness import Harness, running
from test_gateway_processes import successor

from understudy.wire.inference import ModelInferResponse

APP = "plain"


def retrying(*codes: str) -> list[tuple[str, Any]]:
    """Options of a channel that tries again after these."""
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "0.05s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": codes,
    }
    method = {"name": [{}], "retryPolicy": policy}
    return [("grpc.service_config", json.dumps({"methodConfig": [method]}))]


# The library's server drops a call that reaches a connection in the moment it is being closed: CANCELLED.
RETRYING = retrying("UNAVAILABLE", "CANCELLED")
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]  # else channels share one
AGE = "[gateway.grpc]\nconnection_age_s_max = 0.5\n"
BODY = infer_message(APP)


def address(harness: Harness) -> str:
    return harness.cluster.config.gateway_named("g1").grpc


@asynccontextmanager
async def calls(harness: Harness, options: list[tuple[str, Any]]) -> AsyncIterator[list[float]]:
    """Calls on some channels while the block runs; when each was answered. None may fail."""
    answered: list[float] = []
    stop = asyncio.Event()

    async def caller() -> None:
        async with grpc.aio.insecure_channel(address(harness), options) as channel:
            infer = channel.unary_unary(METHOD)
            while not stop.is_set():
                answer = ModelInferResponse.FromString(await infer(BODY, timeout=5))
                assert answer.outputs[0].name == "y"
                answered.append(time.monotonic())

    async with asyncio.TaskGroup() as callers:
        for _ in range(8):
            callers.create_task(caller())
        try:
            await harness.until(lambda: len(answered) > 50, 10, "calls are answered")
            yield answered
        finally:
            stop.set()


@pytest.mark.parametrize(
    ("processes", "options", "extra"),
    [
        pytest.param(1, RETRYING, "", id="1-retrying"),
        pytest.param(2, RETRYING, "", id="2-retrying"),
        pytest.param(2, retrying("UNAVAILABLE"), AGE, id="2-connections-age"),
    ],
)
def test_no_call_fails_while_a_gateway_hands_over(
    folder: Path, processes: int, options: list[tuple[str, Any]], extra: str
):
    async def test() -> None:
        async with running(folder, processes=processes, grpc=True, extra=extra) as harness:
            former = harness.cluster.roles["gateway", "g1"]
            former.wanted = False
            with ExitStack() as afterwards:  # the successor may end when nobody calls any more
                async with calls(harness, OWN_CONNECTION + options) as answered:
                    process = afterwards.enter_context(successor(harness))
                    await harness.until(lambda: former.exit_status == 0, 20, "the former gateway has ended")
                    count = len(answered)
                    await harness.until(lambda: len(answered) > count + 100, 10, "calls go on")
                    assert process.poll() is None

    asyncio.run(test())


@pytest.mark.parametrize("by_gateway", [True, False])
def test_a_port_that_is_taken_is_said(folder: Path, by_gateway: bool):
    """Also by another gateway, whose processes share it among them."""

    async def test() -> None:
        async with running(folder, grpc=True, processes=2) as harness:
            path = folder / "second.toml"
            text = harness.cluster.config_path.read_text().replace('data_dir = "data"', 'data_dir = "data2"')
            taken = address(harness) if by_gateway else harness.cluster.config.controllers[0].http
            path.write_text(text.replace(address(harness), taken).replace(f"{harness.ports[0]}", "0"))
            command = [sys.executable, "-m", "understudy", "gateway", "g1", "--cluster", str(path)]
            done = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, timeout=30
            )
            assert done.returncode != 0
            assert f"gateways: grpc: can't listen on {taken}" in done.stderr

    asyncio.run(test())
