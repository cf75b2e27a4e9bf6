"""Clients that wish a gateway ill, in a process of their own: `hostile_clients.py PORT IDLE`.

Says `idle` when its idle connections stand, attacks when it is told to, says `done` when every attacker was
cut off, and closes everything when its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

PACE_S = 0.05  # between the bytes of a slow client: they are to be slow, not to keep this machine busy
CUT_OFF_TIMEOUT_S = 20.0
LARGE = 8_000_000  # what is announced
HEAD = b"POST /v2/models/plain/infer HTTP/1.1\r\nHost: localhost\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def slow_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await drip(writer, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10_000)


async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Content-Length: 10000\r\n\r\n")
    await drip(writer, b"x" * 9_999)


async def slow_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    await drip(writer, b"1\r\nx\r\n" * 10_000)


async def announced(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % LARGE + b"x" * 10_000)
    await reader.read()


async def huge_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000)
    await reader.read()


async def endless_trailer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 1_000_000)
    await reader.read()


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50 + b"\0rubbish\r\n\r\n" * 1000)
    await reader.read()


async def never_reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Asks for the largest answer there is, thousands of times."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    while not writer.transport.is_closing():
        writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
        await asyncio.sleep(PACE_S)
        await writer.drain()


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    for at in range(len(data)):
        writer.write(data[at : at + 1])
        await asyncio.sleep(PACE_S)
        await writer.drain()


KINDS: dict[Callable[..., Coroutine[Any, Any, None]], int] = {
    slow_head: 100,
    slow_body: 100,
    slow_chunks: 50,
    announced: 100,
    huge_headers: 30,
    endless_trailer: 30,
    garbage: 50,
    never_reads: 40,
}


async def attack(port: int, kind: Callable[..., Coroutine[Any, Any, None]]) -> None:
    """Until the gateway ends the connection, which it has to."""
    async with asyncio.timeout(CUT_OFF_TIMEOUT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        with contextlib.suppress(OSError):
            await kind(reader, writer)
        writer.close()


async def churn(port: int) -> None:
    """Connections that end before, during and after a request."""
    for number in range(600):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((b"", HEAD, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")[number % 3])
        await asyncio.sleep(0.002)
        writer.transport.abort()


async def main(port: int, idle: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = [await asyncio.to_thread(idle_connection, port) for _ in range(idle)]
    say("idle")
    await asyncio.to_thread(sys.stdin.readline)
    async with asyncio.TaskGroup() as attackers:
        for kind, count in KINDS.items():
            for _ in range(count):
                attackers.create_task(attack(port, kind))
        attackers.create_task(churn(port))
    say("done")
    await asyncio.to_thread(sys.stdin.readline)
    for connection in held:
        connection.close()


def idle_connection(port: int) -> socket.socket:
    """One that was of use: one that never was is closed sooner."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    return connection


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
