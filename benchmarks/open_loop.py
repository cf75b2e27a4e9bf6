"""Open-loop load over HTTP: `URL RATE SECONDS` as arguments, the request in $BODY and $HEADERS.

Request i is due at start + i / rate, rounded up to the millisecond (the resolution of the loop's timers),
and its latency counts from then, also when it leaves late because the generator or all connections are
busy: no coordinated omission.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop

from benchmarks.load import summary

CONNECTIONS = 64
TICK_S = 0.001
DRAIN_S = 5.0  # for what is unanswered at the end; then it has failed


class Connection(asyncio.Protocol):
    """Keep-alive, with at most one request on it."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._due_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, wire: bytes, due_s: float) -> None:
        self._due_s = due_s
        self._transport.write(wire)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._generator.answered(self, self._due_s, self._parser.get_status_code())


class Generator:
    def __init__(self, wire: bytes, rate_per_s: float, duration_s: float) -> None:
        self.latencies_s: list[float] = []
        self.failed = 0
        self.done = asyncio.Event()
        self._wire = wire
        self._rate_per_s = rate_per_s
        self._requests = round(rate_per_s * duration_s)
        self._start_s = 0.0
        self._due = 0  # requests so far
        self._waiting: deque[float] = deque()  # for a connection: when each was due
        self._idle: deque[Connection] = deque()  # longest idle first: a server's processes share the load
        self._loop = asyncio.get_running_loop()

    async def run(self, host: str, port: int) -> None:
        for _ in range(CONNECTIONS):
            _, connection = await self._loop.create_connection(lambda: Connection(self), host, port)
            self._idle.append(connection)
        gc.disable()  # it lives for seconds
        self._start_s = time.monotonic()
        self._tick()
        try:
            async with asyncio.timeout(self._requests / self._rate_per_s + DRAIN_S):
                await self.done.wait()
        except TimeoutError:
            self.failed = self._requests - len(self.latencies_s)

    def _tick(self) -> None:
        passed_s = time.monotonic() - self._start_s
        while self._due < self._requests and self._due / self._rate_per_s <= passed_s:
            self._waiting.append(self._start_s + math.ceil(self._due / self._rate_per_s / TICK_S) * TICK_S)
            self._due += 1
        while self._waiting and self._idle:
            self._idle.popleft().send(self._wire, self._waiting.popleft())
        if self._due < self._requests:
            self._loop.call_later(TICK_S, self._tick)

    def answered(self, connection: Connection, due_s: float, status: int) -> None:
        if status == 200:
            self.latencies_s.append(time.monotonic() - due_s)
        else:
            self.failed += 1
        if self._waiting:
            connection.send(self._wire, self._waiting.popleft())
        else:
            self._idle.append(connection)
        if len(self.latencies_s) + self.failed == self._requests:
            self.done.set()


async def main(url: str, rate_per_s: float, duration_s: float) -> None:
    parts = urlsplit(url)
    body = Path(os.environ["BODY"]).read_bytes()
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}"]
    lines += os.environ["HEADERS"].splitlines()
    wire = "\r\n".join([*lines, "", ""]).encode() + body
    generator = Generator(wire, rate_per_s, duration_s)
    await generator.run(parts.hostname or "", parts.port or 80)
    sys.stdout.write(summary(generator.latencies_s, duration_s, generator.failed))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
