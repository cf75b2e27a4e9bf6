"""A gateway without a cluster behind it, in the test's own process, and a client that speaks TLS."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trustme
import uvloop
from harness import Answer, closed, read_answer, request_bytes

from understudy.adapters.ports import free_ports
from understudy.config import load_cluster
from understudy.gateway.process import GatewayProcess, Seat

PATIENCE_S = 15


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """On the loop that a gateway uses."""

    async def in_time() -> None:
        async with asyncio.timeout(4 * PATIENCE_S):
            await coroutine

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(in_time())


def write_pair(folder: Path, authority: trustme.CA, name: str = "localhost") -> trustme.LeafCert:
    """`cert.pem` and `key.pem`, new and signed by `authority`."""
    leaf = authority.issue_cert(name)
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "key.pem").chmod(0o600)
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    return leaf


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


class Talk:
    """One connection to a gateway, kept open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, path: str = "/v2/health/live", headers: str = "", method: str = "GET") -> Answer:
        return await self.send(request_bytes(method, path, headers=headers))

    async def send(self, data: bytes) -> Answer:
        async with asyncio.timeout(PATIENCE_S):
            self.writer.write(data)
            return await read_answer(self.reader)

    @property
    def certificate(self) -> bytes:
        found: bytes = self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return found


class Running:
    def __init__(self, process: GatewayProcess, port: int, grpc_port: int) -> None:
        self.process = process
        self.port = port
        self.grpc_port = grpc_port

    @asynccontextmanager
    async def talk(self, context: ssl.SSLContext | None = None) -> AsyncIterator[Talk]:
        name = "localhost" if context else None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname=name
        )
        try:
            yield Talk(reader, writer)
        finally:
            await closed(writer)

    async def ask(self, path: str, headers: str = "", context: ssl.SSLContext | None = None) -> Answer:
        async with self.talk(context) as talk:
            return await talk.ask(path, headers)

    def told(self, kind: str) -> list[str]:
        return [event.message for event in self.process.events if event.kind == kind]

    async def until(self, holds: Callable[[], Any], what: str) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            found = holds()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"not within {PATIENCE_S} s: {what}; events: {list(self.process.events)}")


@asynccontextmanager
async def gateway(
    folder: Path, of_gateway: str = "", of_cluster: str = "", *, grpc: bool = False
) -> AsyncIterator[Running]:
    """With `of_gateway` in its own table of the cluster file, and `of_cluster` at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    pulse = os.pipe2(os.O_NONBLOCK)
    path = folder / "CLUSTER.toml"
    path.write_text(
        f'[[gateways]]\nname = "g1"\nhttp = "127.0.0.1:{port}"\n{of_gateway}\n'
        f'[[nodes]]\nname = "n1"\nmemory_mb = 9\n\n[gateway]\nsecrets_check_s = 0.05\n\n{of_cluster}\n'
    )
    (grpc_port,) = free_ports(1)
    seat = Seat("g1", [listener], pulse[1], "g1", grpc=f"127.0.0.1:{grpc_port}" if grpc else "")
    process = GatewayProcess(load_cluster(path), seat)
    serving = asyncio.ensure_future(process.run())
    running = Running(process, port, grpc_port)
    try:
        await running.until(lambda: serving.done() or process.accepting, "the gateway listens")
        yield running
    finally:
        process.stop()
        await serving
        for end in pulse:
            os.close(end)
