"""One HTTP/1.1 connection to a gateway: one request at a time, kept open between them.

Why not a library: an attempt that lost a race must be cancelled without a trace, and a retry must know
whether bytes of the request had left. Both are one `abort()` and one attribute here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence

import httptools
import msgspec

from understudy.wire.frames import Buffer

ANSWER_BYTES_MAX = 512 * 1024 * 1024
HEADER_BYTES_MAX = 65_536


class Address(msgspec.Struct, frozen=True):
    """Where a gateway listens. `ssl` None: plain HTTP."""

    host: str
    port: int
    path: str  # before `/v2`, for gateways behind a proxy; no slash at its end
    ssl: ssl.SSLContext | None

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Reply(msgspec.Struct):
    """What came back. Names of headers are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes


class ConnectionBroken(Exception):
    """No connection, or it ended before the answer did. The text says which."""


class Connection(asyncio.Protocol):
    """httptools calls the `on_…` methods from within `data_received`."""

    def __init__(self, heard: Callable[[], None]) -> None:
        self.reusable = False  # open, and nothing is under way on it
        self.idle_since = 0.0
        self._heard = heard
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self._start()

    def _start(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._header_bytes = 0
        self._parts: list[bytes] = []
        self._body_bytes = 0

    async def exchange(self, parts: Sequence[Buffer]) -> Reply:
        """Send a request and wait for its answer. Raises `ConnectionBroken`; a cancelled one closes."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionBroken("closed by the gateway")
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self.reusable = False
        self._start()
        self._transport.writelines(parts)
        try:
            return await answer
        finally:
            if answer.done() and not answer.cancelled():
                answer.exception()  # seen, even if the caller was cancelled in the same turn
            self._answer = None
            if not self.reusable:
                self.abort()

    def abort(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._heard()
        if self._answer is None or self._answer.done():
            self.abort()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"not an HTTP answer: {error}")

    def eof_received(self) -> bool:
        """An answer without a length ends with the connection."""
        answer = self._answer
        if answer is not None and not answer.done() and self._ends_with_connection():
            answer.set_result(Reply(self._parser.get_status_code(), self._headers, b"".join(self._parts)))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(f"the connection broke: {exc}" if exc else "the connection was closed before the answer")

    def _ends_with_connection(self) -> bool:
        return bool(self._headers) and not {"content-length", "transfer-encoding"} & self._headers.keys()

    def _fail(self, why: str) -> None:
        self.reusable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionBroken(why))
        if self._transport is not None:
            self._transport.abort()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADER_BYTES_MAX:
            self._fail("the answer's headers are too large")
            return
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)
        self._body_bytes += len(data)
        if self._body_bytes > ANSWER_BYTES_MAX:
            self._fail("the answer is too large")

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue: the answer is yet to come
            self._headers = {}
            return
        answer = self._answer
        if answer is not None and not answer.done():
            unsent = self._transport is None or self._transport.get_write_buffer_size()
            self.reusable = self._parser.should_keep_alive() and not unsent
            answer.set_result(Reply(status, self._headers, b"".join(self._parts)))


async def connect(address: Address, heard: Callable[[], None]) -> Connection:
    """`heard` is called whenever bytes come. Raises `ConnectionBroken`. The caller limits the time."""
    try:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(heard),
            address.host,
            address.port,
            ssl=address.ssl,
            server_hostname=address.host if address.ssl else None,
        )
    except ssl.SSLError as error:
        raise ConnectionBroken(f"TLS: {error.reason or error}") from error
    except OSError as error:
        raise ConnectionBroken(f"can't connect: {error.strerror or error}") from error
    return connection
