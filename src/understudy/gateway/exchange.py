"""One request of a client and its place in the order of answers on the client's connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from understudy.core.gateway.rotation import App, Request, Source
from understudy.gateway import answers
from understudy.gateway.auth import Identity, may_be_answered_by
from understudy.gateway.static_answers import as_http
from understudy.wire.errors import InvalidArgument, UnderstudyError
from understudy.wire.frames import LARGE_BYTES, Buffer
from understudy.wire.messages import Result
from understudy.wire.statics import Static

if TYPE_CHECKING:
    from understudy.gateway.http import HttpConnection


class Head(msgspec.Struct, frozen=True, gc=False):
    """What a parser made of the bytes before a body of `body_bytes`. `headers` is not to be changed."""

    method: bytes
    url: bytes
    headers: dict[bytes, bytes]
    body_bytes: int


def target_path(target: bytes) -> bytes:
    """The path of a request's target as it is looked up here: as proxies write it, without a last slash.

    A target may be a whole URL (RFC 9112, 3.2.2). What follows a "?" stays.
    """
    if not target.startswith(b"/"):
        scheme, found, rest = target.partition(b"://")
        if found and scheme.lower() in (b"http", b"https"):
            target = rest[min(at for at in (rest.find(b"/"), rest.find(b"?"), len(rest)) if at >= 0) :]
            target = target if target.startswith(b"/") else b"/" + target
    path, mark, query = target.partition(b"?")
    return (path.rstrip(b"/") or path[:1]) + mark + query


class Exchange:
    """A place in the order of answers on one connection."""

    __slots__ = (
        "connection",
        "connection_header",
        "data",
        "held_bytes",
        "id",
        "identity",
        "large",
        "request",
    )

    def __init__(
        self, connection: HttpConnection, connection_header: bytes, held_bytes: int, id: bytes
    ) -> None:
        self.connection = connection
        self.connection_header = connection_header
        self.data: bytes | None = None
        self.large: Buffer = b""  # follows `data`, not copied into it
        self.held_bytes = held_bytes
        self.request: Request | None = None
        self.id = id
        self.identity: Identity | None = None  # who asks, where that has to be shown

    def finish(self, head: bytes, body: Buffer) -> None:
        self.request = None  # they hold each other; a cycle per request would keep the collector busy
        if len(body) < LARGE_BYTES:
            self.data = answers.whole(head, self.id, self.connection_header, body)
        else:
            self.data = answers.whole(head, self.id, self.connection_header, b"", len(body))
            self.large = body
        self.connection.exchange_done(self)

    @property
    def answer_bytes(self) -> int:
        """Of an answer that isn't written yet."""
        return len(self.data or b"") + len(self.large)

    def fail(self, error: UnderstudyError, status: int | None = None) -> None:
        head, body = answers.error_answer(error, self.connection.api.retry_after_s, status=status)
        self.finish(head, body)


class HeadExchange(Exchange):
    """Answers as for GET, without the body: what came after the head would be read as the next answer."""

    __slots__ = ()

    def finish(self, head: bytes, body: Buffer) -> None:
        self.request = None
        self.data = answers.whole(head, self.id, self.connection_header, b"", len(body))
        self.connection.exchange_done(self)


class InferRequest(Request):
    """A request whose end is written to an exchange."""

    __slots__ = ("exchange",)

    exchange: Exchange  # set by whoever made it

    @property
    def id(self) -> str:
        return self.exchange.id.decode()

    def may_ask(self, app: App) -> bool:
        return may_be_answered_by(self.exchange.identity, self.app.spec, app.spec)

    # The dispatcher is in the middle of something when it calls these, so they raise nothing.

    def answered(self, source: Source, result: Result, body: Buffer) -> None:
        try:
            head = source.prefix or answers.source_head(source)
            if result.json_bytes >= 0:
                head = answers.binary_head(head, result.json_bytes)
            self.exchange.finish(head, body)
        except Exception as error:
            self._broken(error)

    def failed(self, error: UnderstudyError) -> None:
        try:
            self.exchange.fail(error)
        except Exception as mistake:
            self._broken(mistake)

    def answered_static(self, static: Static) -> None:
        spec = self.app.spec
        try:
            body, json_bytes = as_http(spec, static, self.body, self.json_bytes)
            head = answers.static_head(spec.version)
            self.exchange.finish(head if json_bytes < 0 else answers.binary_head(head, json_bytes), body)
        except InvalidArgument as error:  # it would have been refused by a replica too
            self.failed(error)
        except Exception as error:
            self._broken(error)

    def _broken(self, error: Exception) -> None:
        """Answers are in order: without this one there is none after it on its connection."""
        connection = self.exchange.connection
        connection.api.crashes.contain("request", error)
        connection.abort()
