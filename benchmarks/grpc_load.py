"""Closed-loop load over gRPC: `ADDRESS CALLS SECONDS` as arguments, a serialized ModelInferRequest in $BODY.

`CALLS` are under way at once, over a few connections. With 0 calls it writes the answer to one request to
standard output instead.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import uvloop

from benchmarks.load import summary

CONNECTIONS = 4
METHOD = "/inference.GRPCInferenceService/ModelInfer"
DEADLINE_S = 5.0


class Closed:
    """Each of `calls` loops sends until the end; messages stay bytes."""

    def __init__(self, request: bytes) -> None:
        self.latencies_s: list[float] = []
        self.failed = 0
        self._request = request

    async def call(self, channel: Any, end_s: float) -> None:
        infer = channel.unary_unary(METHOD)
        while (sent_s := time.monotonic()) < end_s:
            try:
                await infer(self._request, timeout=DEADLINE_S)
            except grpc.aio.AioRpcError:
                self.failed += 1
            else:
                self.latencies_s.append(time.monotonic() - sent_s)


async def main(address: str, calls: int, duration_s: float) -> None:
    request = Path(os.environ["BODY"]).read_bytes()
    # Channels of one process share a connection to the same address unless told otherwise.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options))
            for _ in range(CONNECTIONS)
        ]
        if calls == 0:
            answer = await channels[0].unary_unary(METHOD)(request, timeout=DEADLINE_S)
            sys.stdout.buffer.write(answer)
            return
        closed = Closed(request)
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(calls):
                group.create_task(closed.call(channels[number % CONNECTIONS], started_s + duration_s))
        sys.stdout.write(summary(closed.latencies_s, time.monotonic() - started_s, closed.failed))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
