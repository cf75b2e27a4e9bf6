"""A gateway made of a script: real sockets, answers as the test wants them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

SPEC = {
    "name": "double",
    "versions": ["1"],
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}


@dataclass
class Got:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Saying:
    """What to answer. `status` 0: close the connection; -1: say nothing."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)

    def wire(self) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        return (
            f"HTTP/1.1 {self.status} X\r\n{lines}Content-Length: {len(self.body)}\r\n\r\n".encode()
            + self.body
        )


CLOSE, SILENCE = Saying(0), Saying(-1)
ANSWERED = {"Understudy-Variant": "big", "Understudy-Version": "1", "X-Request-Id": "r-1"}


def doubled(got: Got) -> Saying:
    """What a model that doubles would say."""
    (tensor,) = json.loads(got.body)["inputs"]
    output = {**tensor, "name": "y", "data": [2 * value for value in tensor["data"]]}
    return Saying(body=json.dumps({"outputs": [output]}).encode(), headers=ANSWERED)


def refused(status: int, code: str, **headers: str) -> Saying:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Saying(status, b'{"error": "as scripted"}', {"Understudy-Code": code, **named})


class Scripted:
    """Answers inference by `infer`, which a test replaces as it goes."""

    def __init__(self) -> None:
        self.infer: Callable[[Got], Saying] = doubled
        self.extensions: list[str] = []
        self.spec = SPEC
        self.got: list[Got] = []  # inference requests
        self.gets: list[str] = []
        self.connections = 0
        self.open: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}
        self.hung_up = asyncio.Event()  # a client ended a connection on which it was owed an answer
        self.asked = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open[asyncio.current_task()] = writer
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                got = await read_request(reader)
                saying = self._answer(got)
                if saying is SILENCE:
                    await reader.read()
                    self.hung_up.set()
                    break
                if saying is CLOSE:
                    break
                writer.write(saying.wire())
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        del self.open[asyncio.current_task()]

    def _answer(self, got: Got) -> Saying:
        method, path, _ = got.line.split()
        if path == "/v2":
            self.gets.append(path)
            return Saying(body=json.dumps({"extensions": self.extensions}).encode())
        if method == "GET":
            self.gets.append(path)
            return Saying(body=json.dumps(self.spec).encode())
        if path == "/v2/repository/index":
            return Saying(body=b'[{"name": "double", "version": "1", "state": "READY", "reason": ""}]')
        self.got.append(got)
        self.asked.set()
        return self.infer(got)


async def read_request(reader: asyncio.StreamReader) -> Got:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
    return Got(head[0], headers, await reader.readexactly(int(headers.get("content-length", 0))))


@asynccontextmanager
async def gateways(count: int) -> AsyncIterator[list[Scripted]]:
    scripted = [Scripted() for _ in range(count)]
    servers = []
    for each in scripted:
        server = await asyncio.start_server(each.serve, "127.0.0.1", 0)
        each.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        servers.append(server)
    try:
        yield scripted
    finally:
        for each, server in zip(scripted, servers, strict=True):
            server.close()
            for writer in each.open.values():
                writer.close()
            if each.open:
                await asyncio.wait(each.open)
