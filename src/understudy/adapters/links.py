"""Frame links: the framed protocol on asyncio transports, Unix or TCP.

Lives here: connecting, listening, coalesced writes, request and reply by stream, bounds on unsent bytes.
Does not live here: what messages mean. Receivers are called synchronously on the loop and must not block.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, TypeVar

from understudy.adapters.buffers import BUFFERS
from understudy.adapters.filling import fill
from understudy.adapters.places import identity_of, is_of_our_user, same_file, vacant
from understudy.wire.errors import Code, ConfigError, ProtocolError, UnderstudyError
from understudy.wire.frames import FRAME_BYTES_MAX_DEFAULT, Buffer, Frame, FrameDecoder
from understudy.wire.messages import Cancel, Failure, Kind, Message, decode_message, encode_message

M = TypeVar("M")
OnFrame = Callable[["FrameLink", Frame], None]
OnLost = Callable[["FrameLink", Exception | None], None]
# Frames that are not held back for company: the peer works on them while the next ones are made.
FLUSH_FRAMES = 8
KEEPALIVE_S = 1  # between two questions to a silent peer's kernel
SILENCE_MS_MAX = 3000  # without an answer from it: the connection is lost
SOCKET_CHECK_S = 0.5  # between two looks at whether a socket file is still there
BACKOFF_S = 0.02  # before the second dial of an address, doubling
BUFFER_BYTES_MAX_DEFAULT = 64 * 1024 * 1024


class FrameLink(asyncio.Protocol):
    """One connection. Writes of one loop turn leave together, in system calls of some frames each.

    `on_frame` gets every frame that is not the reply to a `call`. A peer that breaks the protocol, or
    stops reading until `buffer_bytes_max` are unsent, is disconnected; `on_lost` says why. With more than
    `full_bytes` unsent the link is `full`: who has a choice sends nothing more.
    """

    def __init__(
        self,
        on_frame: OnFrame,
        on_lost: OnLost | None = None,
        *,
        frame_bytes_max: int = FRAME_BYTES_MAX_DEFAULT,
        buffer_bytes_max: int = BUFFER_BYTES_MAX_DEFAULT,
        full_bytes: int = BUFFER_BYTES_MAX_DEFAULT,
        on_made: Callable[[FrameLink], None] | None = None,
    ) -> None:
        self.peer: Any = None  # whatever the owner wants to know the link by
        self.closed = False
        self.congested = False  # the peer reads slower than we write
        self.full = False
        self.last_heard_s = 0.0  # monotonic time of the newest bytes from the peer
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._on_made = on_made
        self._decoder = FrameDecoder(frame_bytes_max, allocate=BUFFERS.take)
        self._buffer_bytes_max = buffer_bytes_max
        self._full_bytes = full_bytes
        self._transport: asyncio.Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._out: list[bytes] = []
        self._calls: dict[int, asyncio.Future[Frame]] = {}
        self._next_stream = 1
        self._error: Exception | None = None
        self._ended: asyncio.Future[None] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._transport.set_write_buffer_limits(0)  # type: ignore[union-attr]  # uvloop: write at once
        self._loop = asyncio.get_running_loop()
        self.last_heard_s = monotonic()
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            _watch_peer(sock)
        elif sock is not None and not is_of_our_user(sock):
            self.abort(UnderstudyError(Code.FORBIDDEN, "the peer runs as another user"))
            return
        if self._on_made is not None:
            self._on_made(self)

    def data_received(self, data: bytes) -> None:
        self.last_heard_s = monotonic()
        try:
            frames = self._decoder.feed(data)
            if frames:
                self._take(frames)
        except ProtocolError as error:
            self.abort(error)
            return
        gap = self._decoder.gap
        if gap is not None and self._transport is not None and not self.closed:
            fill(self._transport, self, gap, self._filled)

    def _filled(self, count: int) -> None:
        self.last_heard_s = monotonic()
        try:
            self._take(self._decoder.filled(count))
        except ProtocolError as error:
            self.abort(error)

    def _take(self, frames: list[Frame]) -> None:
        for frame in frames:
            if self._calls and frame.stream in self._calls:
                future = self._calls.pop(frame.stream)
                if not future.done():
                    future.set_result(frame)
            else:
                self._on_frame(self, frame)

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = self.full = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        error = self._error or exc
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(UnderstudyError(Code.LINK_LOST, f"connection lost: {error or 'closed'}"))
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        if self._on_lost is not None:
            self._on_lost(self, error)

    async def wait_closed(self) -> None:
        """Return when the connection is gone. One waiter at a time."""
        if self._transport is None or self._loop is None or self._transport.is_closing():
            return
        self._ended = self._loop.create_future()
        await self._ended

    # sending

    def write(self, data: bytes, payload: Buffer = b"") -> None:
        """Queue an encoded frame, which leaves at the end of this loop turn or before. Dropped when closed.

        A large `payload` that isn't part of `data` leaves at once, without being copied; it must not change.
        """
        if self.closed or self._transport is None:
            return
        if payload:
            self._out.append(data)
            self._flush()
            self._transport.write(payload)
            self._check_backlog()
            return
        if not self._out:
            self._loop.call_soon(self._flush)  # type: ignore[union-attr]
        self._out.append(data)
        if len(self._out) >= FLUSH_FRAMES:
            self._flush()

    def _flush(self) -> None:
        out = self._out
        if not out:
            return
        self._out = []
        if self.closed or self._transport is None:
            return
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        self._check_backlog()

    def _check_backlog(self) -> None:
        if not self.congested or self._transport is None:
            return
        unsent_bytes = self._transport.get_write_buffer_size()
        self.full = unsent_bytes > self._full_bytes
        if unsent_bytes > self._buffer_bytes_max:
            self.abort(UnderstudyError(Code.LINK_LOST, "the peer stopped reading"))

    def send(self, message: Message, stream: int = 0, payload: bytes = b"") -> None:
        self.write(encode_message(message, stream, payload))

    def fail(self, stream: int, error: UnderstudyError) -> None:
        self.send(Failure(error.code, error.message, error.context, error.traceback), stream)

    async def call(self, message: Message, reply: type[M], timeout_s: float, payload: bytes = b"") -> M:
        """Send `message` and wait for its `reply`.

        Raises what the peer's `Failure` says, LINK_LOST, or TIMEOUT after `timeout_s`.
        """
        if self.closed or self._loop is None:
            raise UnderstudyError(Code.LINK_LOST, "not connected")
        stream = self.next_stream()
        future: asyncio.Future[Frame] = self._loop.create_future()
        self._calls[stream] = future
        self.send(message, stream, payload)
        try:
            async with asyncio.timeout(timeout_s):
                frame = await future
        except TimeoutError:
            self.send(Cancel(), stream)
            what = type(message).__name__
            raise UnderstudyError(Code.TIMEOUT, f"no reply to {what}", timeout_s=timeout_s) from None
        finally:
            self._calls.pop(stream, None)
        answer = decode_message(frame)
        if isinstance(answer, Failure):
            raise answer.error()
        if not isinstance(answer, reply):
            raise ProtocolError(f"expected {reply.__name__}, got {Kind(frame.kind).name}")
        return answer

    def next_stream(self) -> int:
        stream = self._next_stream
        self._next_stream = 1 if stream >= 0x7FFFFFFF else stream + 1
        return stream

    # ending

    def close(self) -> None:
        """Flush what is queued, then close."""
        if self._transport is not None and not self.closed:
            if self._out:
                self._flush()
            self._transport.close()

    def abort(self, error: Exception | None = None) -> None:
        """Close now; unsent bytes are lost."""
        self._error = self._error or error
        self.closed = True
        if self._transport is not None:
            self._transport.abort()


def _watch_peer(sock: socket.socket) -> None:
    """Have the kernel notice a machine that went without a word, also where only the peer ever sends."""
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, KEEPALIVE_S),
        (socket.TCP_KEEPINTVL, KEEPALIVE_S),
        (socket.TCP_USER_TIMEOUT, SILENCE_MS_MAX),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def parse_address(address: str) -> tuple[str, str, int]:
    """("unix", path, 0) or ("tcp", host, port). Raises `ConfigError`."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        if len(os.fsencode(rest)) > 107:
            raise ConfigError(f"{address}: a Unix socket's path may have 107 bytes at most; set run_dir")
        return "unix", rest, 0
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host and port.isdecimal() and int(port) <= 65535:
        return "tcp", host.strip("[]"), int(port)
    raise ConfigError(f"{address!r}: an address is unix:/path or tcp:host:port")


async def dial(address: str, make: Callable[[], FrameLink], timeout_s: float = 2.0) -> FrameLink:
    """Connect. Raises UNAVAILABLE when nobody listens there."""
    kind, host, port = parse_address(address)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            if kind == "unix":
                _, link = await loop.create_unix_connection(make, host)
            else:
                _, link = await loop.create_connection(make, host, port)
    except (OSError, TimeoutError) as error:
        raise UnderstudyError(Code.UNAVAILABLE, f"{address}: {str(error) or 'timed out'}") from error
    return link


class Listener:
    """Accepts links at an address. Its Unix socket is made again when somebody removed it."""

    def __init__(self, address: str, make: Callable[[], FrameLink]) -> None:
        self.address = address
        self._make = make
        self._kind, self._host, self._port = parse_address(address)
        self._server: asyncio.Server | None = None
        self._identity = (0, 0)

    @property
    def sockets(self) -> tuple[Any, ...]:
        return tuple(self._server.sockets) if self._server is not None else ()

    async def open(self) -> None:
        """Raises `ConfigError`, also if a live process listens there; a socket file of a dead one goes."""
        loop = asyncio.get_running_loop()
        try:
            if self._kind == "tcp":
                self._server = await loop.create_server(self._make, self._host, self._port)
                return
            vacant(self._host)
            self._server = await loop.create_unix_server(self._make, self._host)
            self._identity = identity_of(self._host)
        except OSError as error:
            raise ConfigError(f"{self.address}: can't listen: {error}") from error

    async def keep(self, told: Callable[[str], None]) -> None:
        """Have a socket that is gone made again, and `told` of it. Links live on. Ends when cancelled."""
        while self._kind == "unix":
            await asyncio.sleep(SOCKET_CHECK_S)
            if same_file(self._host, self._identity):
                continue
            former = self._server
            try:
                await self.open()
            except ConfigError as error:
                if self._identity != (0, 0):
                    told(f"{self._host} is gone and can't be made again: {error.message}")
                self._identity = (0, 0)
                continue
            told(f"{self._host} was removed by somebody; it is there again")
            if former is not None:
                former.close()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


async def listen(address: str, make: Callable[[], FrameLink]) -> Listener:
    """As `Listener.open`."""
    listener = Listener(address, make)
    await listener.open()
    return listener


async def keep_connected(
    address: str,
    make: Callable[[], FrameLink],
    serve: Callable[[FrameLink], Awaitable[None]],
    *,
    backoff_s_max: float = 0.5,
) -> None:
    """Dial, run `serve` until the link is lost, dial again with jittered back-off. Ends when cancelled.

    `serve` should return when its link is lost.
    """
    delay_s = BACKOFF_S
    while True:
        try:
            link = await dial(address, make)
        except UnderstudyError as error:
            if error.code is not Code.UNAVAILABLE:
                raise
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, backoff_s_max)
            continue
        delay_s = BACKOFF_S
        try:
            await serve(link)
        finally:
            link.close()
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
