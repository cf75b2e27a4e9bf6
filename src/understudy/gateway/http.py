"""One client connection: HTTP/1.1 in, requests to the dispatcher, answers in order.

Lives here: parsing (by httptools), limits on what a client may send, pipelining, time limits, half-closed
and broken connections. Does not live here: what a path means (`api`) and where a request goes (`core`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import NoReturn, Protocol

import httptools

from understudy.adapters.buffers import BUFFERS, Gathered
from understudy.adapters.crash_policy import CrashPolicy
from understudy.adapters.filling import fill
from understudy.core.gateway.rotation import Request
from understudy.gateway.auth import CREDENTIALS, Authenticator
from understudy.gateway.cors import Cors
from understudy.gateway.door import Door
from understudy.gateway.exchange import Exchange, Head, HeadExchange, target_path
from understudy.gateway.half_closed import HalfClosed
from understudy.gateway.request_id import REQUEST_ID, RequestIds
from understudy.gateway.shares import ByteShares, Connections, Holding
from understudy.settings.gateway import HttpLimits
from understudy.wire.errors import Code, UnderstudyError, quoted
from understudy.wire.frames import LARGE_BYTES, Buffer

CLOSE = b"Connection: close\r\n"
KEEP = b"Connection: keep-alive\r\n"  # only HTTP/1.0 has to be told
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HEAD_END = b"\r\n\r\n"
UNAUTHENTICATED_BYTES_MAX = 65_536  # of a body that is read before its sender has to show who it is
KNOWN_HEADS_MAX = 512  # kept by a gateway; beyond them it starts anew
KNOWN_HEAD_BYTES_MAX = 1024
HOST = b"host"
TRANSFER_ENCODING = b"transfer-encoding"
SINGLE = CREDENTIALS | {
    HOST,
    TRANSFER_ENCODING,
}  # of two, some would look at the first and others at the last
LINGER_S = 1.0  # a client that was cut off may go on sending for this long, so that it reads its answer


class Service(Protocol):
    """What a connection needs of what it serves: `api.Api`."""

    draining: bool
    connections: Connections
    known_heads: dict[bytes, Head]
    bytes_held: int
    shares: ByteShares
    retry_after_s: int
    authenticator: Authenticator | None
    door: Door | None
    cors: Cors | None
    request_ids: RequestIds
    crashes: CrashPolicy

    def body_bytes_max(self, target: bytes) -> int: ...

    def handle(self, exchange: Exchange, head: Head, body: Buffer, now: float) -> None: ...

    def over_share(self, client: str, app: str = "") -> UnderstudyError | None: ...

    def note_refusal(self, error: UnderstudyError, method: bytes, url: bytes, origin: str) -> None: ...

    def cancel(self, request: Request) -> None: ...


class _Refused(Exception):
    """The client's input ends here; the answer is queued already."""


class HttpConnection(asyncio.Protocol):
    """One connection. httptools calls the `on_…` methods from within `data_received`."""

    def __init__(self, api: Service, limits: HttpLimits, address: str = "") -> None:
        """`address` is the client's, where it is known already."""
        self.api = api
        self.limits = limits
        self.queue: deque[Exchange] = deque()
        self.closing = False  # no further request is read
        self.phase = "idle"  # idle | header | body
        self.idle_since = monotonic()
        self.due = self.idle_since + limits.header_timeout_s  # when the sweep loses patience
        self.write_due: float | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._paused = False
        self._tls = False
        self._unread = b""  # requests that came with others and wait until those are answered
        self._cut_off = False  # in the middle of what it was sending
        self._half_closed: HalfClosed | None = None
        self.handshake: asyncio.Task[None] | None = None  # before it has a transport
        self._unsent_bytes = 0  # of answers, when that was last looked at
        self._address = address  # else asked for once: it costs a system call
        self._reset()

    def _reset(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._headers_count = 0
        self._header_bytes = 0
        self._tail = b""  # of the former read, if a mark may have begun there
        self._continue_due = False  # the client waits for it, and for answers before it
        self._gathered: Gathered | None = None  # of a body that comes in pieces
        self._body_bytes = 0
        self._unparsed_bytes = 0  # of a body that the parser left to us
        self._bytes_max = 0  # of the body
        self._large: memoryview | None = None  # a body of known size; its memory is taken up as it comes

    @property
    def address(self) -> str:
        """Of the client."""
        if not self._address and self._transport is not None:
            peer = self._transport.get_extra_info("peername")
            self._address = str(peer[0]) if peer else ""
        return self._address

    @property
    def gone(self) -> bool:
        return self._transport is None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._tls = transport.get_extra_info("sslcontext") is not None
        if not self._tls:
            # An answer leaves when it is written, not at the end of the loop's turn with all the others.
            # (uvloop would take an empty TLS buffer for a full one.)
            self._transport.set_write_buffer_limits(0)  # type: ignore[union-attr]
        if not self.api.connections.add(self):
            error = UnderstudyError(Code.SHED, "too many connections")
            self._refuse(error)

    def data_received(self, data: bytes) -> None:
        at, start = 0, -1
        while at < len(data) and not self.closing:
            if self._unparsed_bytes:
                self._take_unparsed(data[at:])
                return
            if self.phase == "idle":
                at = start = self._take_known(data, at)
                if self._paused:
                    self._unread = data[at:]
                    return
                if at == len(data):
                    return
                self._begin()
            end = self._piece_end(data, at)
            self._parse(data[at:end])
            at = end
            if self.phase == "idle" and start >= 0:
                self._remember(data, start, end)
        if self._large is not None:
            self._read_large()

    def _piece_end(self, data: bytes, at: int) -> int:
        """How far the parser may read: never past a request, so that the next one can wait."""
        if self.phase == "body" and b"content-length" in self._headers:
            return min(at + int(self._headers[b"content-length"]) - self._body_bytes, len(data))
        tail, self._tail = self._tail, b""
        found = (tail + data[at : at + 3]).find(HEAD_END)  # heads and chunked bodies end with it, and reads
        if found >= 0:  # may cut it anywhere
            return at + found + len(HEAD_END) - len(tail)
        found = data.find(HEAD_END, at)
        if found >= 0:
            return found + len(HEAD_END)
        self._tail = (tail + data[max(at, len(data) - 3) :])[-3:]
        return len(data)

    def _parse(self, piece: bytes) -> None:
        before = self._body_bytes
        if self.phase != "body":
            self._header_bytes += len(piece)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            return
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Refused):
                raise
            return
        except httptools.HttpParserError as error:
            self._refuse(UnderstudyError(Code.INVALID_ARGUMENT, f"malformed HTTP: {error}"))
            return
        if self.phase == "body" and self._large is None:
            # Trailers and extensions of chunks are headers too, as to how much of them is borne.
            self._header_bytes = self._header_bytes + len(piece) if self._body_bytes == before else 0
        if self.phase != "idle" and self._header_bytes > self.limits.header_bytes_max:
            self._refuse_header_bytes()

    def eof_received(self) -> bool:
        """The client sends no more; what it asked for before is still answered, if it is there to read."""
        if self.phase != "idle" and not self.closing:
            self._refuse(UnderstudyError(Code.INVALID_ARGUMENT, "the connection ended within a request"))
        self.closing = True
        self._cut_off = False  # nothing follows
        self._close_if_done()
        if self.queue and self._transport is not None and not self._tls:
            self._half_closed = HalfClosed(self._transport)
        # TLS has no half-closed connections: what is not answered by now can't be.
        return not self._tls

    def pause_writing(self) -> None:
        self.write_due = monotonic() + self.limits.write_timeout_s
        self._pause()

    def resume_writing(self) -> None:
        self.write_due = None
        self.api.bytes_held -= self._unsent_bytes
        self._unsent_bytes = 0
        if len(self.queue) < self.limits.pipeline_max:
            self._resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self.api.bytes_held -= self._unsent_bytes + (self._body_bytes if self.phase == "body" else 0)
        self._unsent_bytes = 0
        self.phase = "idle"
        self._transport = None
        for exchange in self.queue:
            self.api.bytes_held -= exchange.held_bytes
            exchange.held_bytes = 0
            if exchange.request is not None:
                self.api.cancel(exchange.request)
                exchange.request = None  # they hold each other, and the body
        self.queue.clear()
        self._half_closed = None
        self._reset()  # a body that is half there is not to wait for the garbage collector,
        self._unread = b""
        del self._parser  # and the parser and this hold each other
        self.api.connections.discard(self)

    # heads that came before

    def _take_known(self, data: bytes, at: int) -> int:
        """Take whole requests whose heads are known byte for byte; where the parser has to begin.

        Clients repeat themselves: most requests differ from the last one in their body only.
        """
        api = self.api
        while at < len(data) and not self.closing and not self._paused and not api.draining:
            body_at = data.find(HEAD_END, at, at + KNOWN_HEAD_BYTES_MAX) + len(HEAD_END)
            head = api.known_heads.get(data[at:body_at])
            if head is None:
                break
            end = body_at + head.body_bytes
            if end > len(data) or api.bytes_held + head.body_bytes > api.shares.crowded:
                break
            api.bytes_held += head.body_bytes
            self._complete(b"", head, data[body_at:end])
            at = end
        return at

    def _remember(self, data: bytes, start: int, end: int) -> None:
        """Keep the head of the request that was just read, if nothing in it depends on the moment."""
        body_at = data.find(HEAD_END, start, start + KNOWN_HEAD_BYTES_MAX) + len(HEAD_END)
        body_bytes = int(self._headers.get(b"content-length", -1))
        if self.closing or body_at + body_bytes != end or self._parser.get_http_version() != "1.1":
            return
        passing = b"expect" in self._headers or REQUEST_ID in self._headers  # the latter never comes again
        if not passing:
            if len(self.api.known_heads) >= KNOWN_HEADS_MAX:
                self.api.known_heads.clear()
            self.api.known_heads[data[start:body_at]] = self._head(body_bytes)

    # httptools

    def _begin(self) -> None:
        self.phase = "header"
        self._reset()
        self.due = monotonic() + self.limits.header_timeout_s

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > self.limits.header_bytes_max:
            self._refuse_header_bytes()
            raise _Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.phase == "header":  # trailers are none of ours (RFC 9110, 6.5.1)
            name = name.lower()
            if name in SINGLE and name in self._headers:
                self._refuse(UnderstudyError(Code.INVALID_ARGUMENT, f"two headers {name.decode()}"))
                raise _Refused
            self._headers[name] = value.rstrip(b" \t")  # RFC 9110, 5.5; the parser leaves it
        self._headers_count += 1
        if self._headers_count > self.limits.headers_max:
            error = UnderstudyError(Code.TOO_LARGE, "too many headers", limit=self.limits.headers_max)
            self._refuse(error, status=431)
            raise _Refused

    def on_headers_complete(self) -> None:
        if self._header_bytes > self.limits.header_bytes_max:
            self._refuse_header_bytes()
            raise _Refused
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(UnderstudyError(Code.INVALID_ARGUMENT, f"HTTP/{version} is not spoken here"), 505)
            raise _Refused
        if HOST not in self._headers and version == "1.1":  # RFC 9112, 3.2
            self._refuse(UnderstudyError(Code.INVALID_ARGUMENT, "the Host header is missing"))
            raise _Refused
        if self.api.door is not None:
            self._check_at(self.api.door)
        self.phase = "body"
        self.due = monotonic() + self.limits.body_timeout_s
        self._header_bytes = 0
        length = int(self._headers.get(b"content-length", 0))
        if self.api.authenticator is not None:
            self._authenticate_early(self.api.authenticator, length)
        offers_upgrade = self._parser.should_upgrade()
        if TRANSFER_ENCODING in self._headers and (b"content-length" in self._headers or offers_upgrade):
            # Two lengths are how requests are smuggled past proxies (RFC 9112, 6.3). A chunked body after an
            # offer to upgrade is not parsed.
            what = "an offer to upgrade" if offers_upgrade else "Content-Length"
            self._refuse(UnderstudyError(Code.INVALID_ARGUMENT, f"Transfer-Encoding beside {what}"))
            raise _Refused
        encoding = self._headers.get(TRANSFER_ENCODING, b"chunked")
        if encoding.lower() != b"chunked":  # RFC 9112, 6.1
            what = f"Transfer-Encoding {quoted(encoding)} is not known here; chunked is"
            self._refuse(UnderstudyError(Code.INVALID_ARGUMENT, what), 501)
            raise _Refused
        self._bytes_max = self.api.body_bytes_max(self._url)
        if length > self._bytes_max:
            self._refuse_body()
        if length >= LARGE_BYTES and not offers_upgrade:
            try:
                self._large = BUFFERS.take(length)
            except MemoryError as error:
                self._refuse_memory(error)
        expect = self._headers.get(b"expect")
        if expect is not None and expect.lower() == b"100-continue":
            self._continue_due = version == "1.1"
            self._continue()

    def _continue(self) -> None:
        """Tell the client to send the body, after the answers to what it asked before."""
        if self._continue_due and not self.queue and self._transport is not None:
            self._continue_due = False
            self._transport.write(CONTINUE)

    def _check_at(self, door: Door) -> None:
        try:
            door.check(self._headers)
        except UnderstudyError as error:
            self._note_refusal(error)
            self._refuse(error, error.context.pop("status", None))
            raise _Refused from None

    def _authenticate_early(self, authenticator: Authenticator, length: int) -> None:
        """Take no large body from a stranger: it would hold memory that good clients need."""
        if length > UNAUTHENTICATED_BYTES_MAX or TRANSFER_ENCODING in self._headers:
            try:
                authenticator.identify(self._headers, self)
            except UnderstudyError as error:
                self._note_refusal(error)
                self._refuse(error)
                raise _Refused from None

    def _note_refusal(self, error: UnderstudyError) -> None:
        self.api.note_refusal(error, self._parser.get_method(), self._url, self.address)

    def on_body(self, data: bytes) -> None:
        if self._large is not None:
            self._large[self._body_bytes : self._body_bytes + len(data)] = data
        else:
            self._gathered = self._gathered or Gathered()
            try:
                self._gathered.add(data)
            except MemoryError as error:
                self._refuse_memory(error)
        self._received(len(data))

    def _received(self, count: int) -> None:
        """Of a body."""
        self._continue_due = False
        self._body_bytes += count
        self.api.bytes_held += count
        if self._body_bytes > self._bytes_max:
            self._refuse_body()
        if self.api.bytes_held > self.api.shares.crowded:
            error = self.api.over_share(self.address)
            if error is not None:
                self._refuse(error)
                raise _Refused

    def _read_large(self) -> None:
        """Have the rest of a large body read into its place, past the parser and without a copy."""
        if self._transport is None or self._paused or self.closing or self._large is None:
            return
        fill(self._transport, self, self._large[self._body_bytes :], self._filled)

    def _filled(self, count: int) -> None:
        if self.closing:
            return  # refused meanwhile: the rest is read into nothing
        with contextlib.suppress(_Refused):
            self._received(count)
            if self._large is not None and self._body_bytes == len(self._large):
                self.on_message_complete()
                self._parser = httptools.HttpRequestParser(self)  # the former one waits for the body

    def on_message_complete(self) -> None:
        parser = self._parser
        # An offer to upgrade is declined by ignoring it (RFC 9110, 7.8), but nothing can follow it here. The
        # parser takes the request's own body for the new protocol's bytes.
        if parser.should_upgrade() and not self._body_bytes and b"content-length" in self._headers:
            self._unparsed_bytes = int(self._headers[b"content-length"])
            if self._unparsed_bytes:
                return
        if parser.should_keep_alive() and not parser.should_upgrade() and not self.api.draining:
            header = KEEP if parser.get_http_version() == "1.0" else b""
        else:
            header = CLOSE
            self.closing = True
        body: Buffer
        if self._large is not None:
            body, self._large = self._large, None
        else:
            body = self._gathered.whole() if self._gathered is not None else b""
        self.phase = "idle"
        self._gathered = None
        self._continue_due = False
        self._complete(header, self._head(len(body)), body)
        if self.closing:
            raise _Refused  # whatever follows on this connection is not for us

    def _head(self, body_bytes: int) -> Head:
        return Head(self._parser.get_method(), target_path(self._url), self._headers, body_bytes)

    def _complete(self, header: bytes, head: Head, body: Buffer) -> None:
        """A request is whole; its answer will have the Connection `header`."""
        if self.api.cors is not None:
            header += self.api.cors.lines(head.method, head.headers)
        kind = Exchange if head.method != b"HEAD" else HeadExchange
        exchange = kind(self, header, head.body_bytes, self.api.request_ids.of(head.headers))
        self.queue.append(exchange)
        now = self.idle_since = monotonic()
        self.due = now + self.limits.idle_timeout_s
        self.api.handle(exchange, head, body, now)
        if len(self.queue) >= self.limits.pipeline_max:
            self._pause()

    def _take_unparsed(self, data: bytes) -> None:
        body = data[: self._unparsed_bytes]
        self._unparsed_bytes -= len(body)
        with contextlib.suppress(_Refused):
            if body:
                self.on_body(body)
                if not self._unparsed_bytes:
                    self.on_message_complete()

    # answering

    def exchange_done(self, exchange: Exchange) -> None:
        """Write the answers that are next in order."""
        self.api.bytes_held -= exchange.held_bytes
        exchange.held_bytes = 0
        queue, transport = self.queue, self._transport
        if transport is None:
            return
        if queue and queue[0].data is None:  # it waits for those before it
            exchange.held_bytes = exchange.answer_bytes
            self._hold(exchange.held_bytes)
            return
        while queue and queue[0].data is not None:
            next_one = queue.popleft()
            self.api.bytes_held -= next_one.held_bytes
            data: bytes = next_one.data  # type: ignore[assignment]
            transport.write(data if self._half_closed is None else self._half_closed.rest(data))
            if next_one.large:
                transport.write(next_one.large)
        if self.write_due is not None:  # the client reads slowly
            unsent = transport.get_write_buffer_size()
            more, self._unsent_bytes = unsent - self._unsent_bytes, unsent
            self._hold(more)
        if self.closing:
            self._close_if_done()
        elif self._paused and self.write_due is None and len(queue) < self.limits.pipeline_max:
            self._resume()
        elif self._continue_due:
            self._continue()

    def _hold(self, more: int) -> None:
        """Answers that its client doesn't read yet. One that may not have them held is let go."""
        self.api.bytes_held += more
        if more > 0 and self.api.bytes_held > self.api.shares.crowded and self.api.over_share(self.address):
            self.abort()

    def holdings(self) -> Iterator[Holding]:
        """What is held for it now."""
        body = self._body_bytes if self.phase == "body" else 0
        yield Holding(self.address, "", self._unsent_bytes + body)
        for exchange in self.queue:
            request = exchange.request
            yield Holding(self.address, "" if request is None else request.app.spec.app, exchange.held_bytes)

    @property
    def idle(self) -> bool:
        """Nothing was asked that isn't answered, or is being asked."""
        return self.phase == "idle" and not self.queue

    def give_way(self) -> bool:
        """End for another's sake, unless somebody works for it."""
        if self.queue:
            return False
        if self._transport is not None:
            self._transport.abort()
        elif self.handshake is not None:
            self.handshake.cancel()
        return True

    def _close_if_done(self) -> None:
        transport = self._transport
        if self.queue or transport is None:
            return
        if self._cut_off and transport.can_write_eof():
            # The kernel answers bytes that were never read with a reset, which takes our answer with it.
            self._cut_off = False
            self.due = monotonic() + LINGER_S
            transport.write_eof()
            self._resume()
        else:
            transport.close()

    def _refuse(self, error: UnderstudyError, status: int | None = None) -> None:
        """Answer an error and read nothing more."""
        self.closing = True
        self._cut_off = self.phase != "idle"
        self._continue_due = False
        if self.phase == "body":
            self.api.bytes_held -= self._body_bytes
        self.phase = "idle"
        self._gathered = None
        self._large = None
        self.due = monotonic() + self.limits.header_timeout_s
        header = CLOSE + (self.api.cors.lines(b"", self._headers) if self.api.cors is not None else b"")
        exchange = Exchange(self, header, 0, self.api.request_ids.of(self._headers))
        self.queue.append(exchange)
        exchange.fail(error, status)

    def _refuse_header_bytes(self) -> None:
        limit = self.limits.header_bytes_max
        self._refuse(UnderstudyError(Code.TOO_LARGE, "headers too large", limit_bytes=limit), status=431)

    def _refuse_memory(self, error: MemoryError) -> NoReturn:
        self._refuse(UnderstudyError(Code.SHED, "no memory for the body", reason=str(error)))
        raise _Refused from error

    def _refuse_body(self) -> None:
        self._refuse(UnderstudyError(Code.TOO_LARGE, "body too large", limit_bytes=self._bytes_max))
        raise _Refused

    def _pause(self) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            if self._unread:  # not from within an answer: the dispatcher may be in the middle of something
                asyncio.get_running_loop().call_soon(self._read_on)
            else:
                self._transport.resume_reading()

    def _read_on(self) -> None:
        transport = self._transport
        if self._paused or transport is None or transport.is_closing():
            return
        data, self._unread = self._unread, b""
        try:
            self.data_received(data)
        except Exception as error:  # as the loop does with what it reads by itself
            self.api.crashes.contain("connection", error)
            self.abort()
            return
        if not self._paused and not transport.is_closing():
            transport.resume_reading()

    # time

    def sweep(self, now: float) -> None:
        """Called about twice a second: end what takes longer than the limits allow."""
        if self._half_closed is not None:
            self._half_closed.check()
        if self.write_due is not None and now > self.write_due:
            self.abort()
        elif now < self.due:
            return
        elif self.phase == "idle":
            if self.queue:
                self.due = now + self.limits.idle_timeout_s  # it waits for us, however long that takes
            elif self._transport is not None:
                self._transport.close()
        elif not self.closing:
            what = "headers" if self.phase == "header" else "body"
            self._refuse(UnderstudyError(Code.TIMEOUT, f"the request's {what} took too long"))

    def drain(self, idle_since: float) -> None:
        """Close when everything is answered and the client has sent nothing since `idle_since`."""
        shakes_hands = self._transport is None
        if self.phase == "idle" and self.idle_since <= idle_since and not self._unread and not shakes_hands:
            self.closing = True
            self._close_if_done()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
