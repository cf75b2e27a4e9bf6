"""What a path means: the Open Inference Protocol over HTTP, and the gateway's own status.

Inference is looked up in one dictionary by the raw URL; everything else is a table of patterns.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from functools import partial
from time import monotonic
from typing import Protocol
from urllib.parse import unquote

from understudy.adapters.audit import AuditLog
from understudy.adapters.crash_policy import CrashPolicy
from understudy.core.gateway.machine import Gateway
from understudy.core.gateway.rotation import App, Request
from understudy.gateway import answers
from understudy.gateway.auth import Authenticator
from understudy.gateway.compression import Decompressor, Wish
from understudy.gateway.cors import Cors
from understudy.gateway.door import Door
from understudy.gateway.exchange import Exchange, Head, InferRequest, target_path
from understudy.gateway.pages import MODEL, NO_TABLE, Pages
from understudy.gateway.request_id import RequestIds
from understudy.gateway.shares import ByteShares, Connections, Holding
from understudy.settings.gateway import OTHER_BODY_BYTES_MAX, GatewayTuning
from understudy.wire.errors import Code, UnderstudyError, quoted
from understudy.wire.frames import Buffer
from understudy.wire.statuses import STATUSES

ABOUT_WHO = frozenset(
    {Code.UNAUTHENTICATED, Code.FORBIDDEN}
)  # refused for who asks, or for where that comes from
CONTENT_ENCODING = b"content-encoding"
JSON_LENGTH = answers.JSON_LENGTH.lower()
LENGTH_DIGITS_MAX = 10
NUMBER = re.compile(rb"[0-9]{1,15}(\.[0-9]{1,15})?")  # what `float` takes is more: 1_000, nan


class HeldCall(Protocol):
    """A request over gRPC, for which `held_bytes` are held."""

    app: App
    address: str
    held_bytes: int


class Api:
    """Serves every connection of one gateway process."""

    def __init__(self, gateway: Gateway, settings: GatewayTuning) -> None:
        self.gateway = gateway
        self.settings = settings
        self.retry_after_s = settings.admission.retry_after_s
        self.crashes = CrashPolicy()
        self.draining = False
        self.authenticator: Authenticator | None = None  # None: everybody may do everything
        self.cors = Cors(settings.cors) if settings.cors.origins else None
        self.door: Door | None = None
        self.audit: AuditLog | None = None
        self.request_ids = RequestIds()
        self.connections = Connections(settings.http.connections_max)
        self.handshakes: set[asyncio.Task[None]] = set()  # of TLS
        self.bytes_held = 0  # of bodies and of answers that aren't read
        self.calls: set[HeldCall] = set()  # over gRPC
        limits = settings.http
        self.shares = ByteShares(limits.body_bytes_total_max, limits.body_bytes_max, self._holdings)
        self.known_heads: dict[bytes, Head] = {}
        self._infer: dict[bytes, App] = {}
        begun_max = max(limits.body_bytes_total_max // limits.body_bytes_max, 1)
        self._decompressor = Decompressor(limits.body_bytes_max, begun_max)
        self._pages = Pages(self)
        self._infer_pattern = re.compile(MODEL + "/infer")

    # what clients hold

    def cancel(self, request: Request) -> None:
        self.gateway.dispatcher.cancel(request)

    def over_share(self, client: str, app: str = "") -> UnderstudyError | None:
        """What to tell a client that holds more than it may, since its last bytes were counted."""
        return self.shares.refusal(self.bytes_held, client, app)

    def _holdings(self) -> Iterator[Holding]:
        for connection in self.connections:
            yield from connection.holdings()
        for call in self.calls:
            yield Holding(call.address, call.app.spec.app, call.held_bytes)

    # requests

    def routes_changed(self) -> None:
        """The set of apps or their versions changed."""
        self._infer = {}
        for name, app in self.gateway.apps.items():
            path = f"/v2/models/{name}"
            self._infer[f"{path}/infer".encode()] = app
            self._infer[f"{path}/versions/{app.spec.version}/infer".encode()] = app

    def body_bytes_max(self, target: bytes) -> int:
        """Of a request to `target`. What isn't inference is read here, while everybody else waits."""
        if target in self._infer:
            return self.settings.http.body_bytes_max
        path = unquote(target_path(target).partition(b"?")[0].decode("latin-1"))
        limit = self.settings.http.body_bytes_max
        return limit if self._infer_pattern.fullmatch(path) else min(limit, OTHER_BODY_BYTES_MAX)

    def handle(self, exchange: Exchange, head: Head, body: Buffer, now: float) -> None:
        app = self._infer.get(head.url)
        try:
            if app is not None and head.method == b"POST":
                if self.authenticator is not None:
                    exchange.identity = self.authenticator.check(head.headers, app.name, exchange.connection)
                self._submit(exchange, app, head.headers, body, now)
            else:
                self._handle_rest(exchange, head, body, now)
        except UnderstudyError as error:
            self.note_refusal(error, head.method, head.url, exchange.connection.address)
            exchange.fail(error, error.context.pop("status", None))

    def note_refusal(self, error: UnderstudyError, method: bytes, url: bytes, origin: str) -> None:
        """If it was refused for who asks, or from where: a record of it, by its path alone: somebody may have
        thought that a key belongs into the query.
        """
        if self.audit is None or error.code not in ABOUT_WHO:
            return
        status = error.context.get("status", STATUSES[error.code].http)
        path = target_path(url).partition(b"?")[0]
        action = f"{method.decode('latin-1')} {path.decode('latin-1')}"
        self.audit.refused("", origin, action, status, error.message)

    def _submit(
        self, exchange: Exchange, app: App, headers: dict[bytes, bytes], body: Buffer, now: float
    ) -> None:
        timeout = headers.get(b"understudy-timeout-ms")
        timeout_ms = app.spec.deadline_ms if timeout is None else self._timeout_ms(timeout)
        deadline = now + timeout_ms / 1000
        length = headers.get(JSON_LENGTH)
        json_bytes = -1 if length is None else self._json_bytes(length)
        encoding = headers.get(CONTENT_ENCODING, b"identity")
        request = InferRequest(app, body, now, deadline, json_bytes)
        request.exchange = exchange
        identity = exchange.identity
        request.client = exchange.connection.address if identity is None else identity.client
        if self.bytes_held > self.shares.crowded:
            error = self.over_share(exchange.connection.address, app.spec.app)
            if error is not None:
                raise error
        if encoding.lower() == b"identity":
            exchange.request = request
            self.gateway.dispatcher.submit(request, now)
            return
        error = self.gateway.dispatcher.gate.over_rate(request, now)
        if error is not None:
            raise error
        wish = Wish((app.name, request.client), deadline, lambda: exchange.connection.gone)
        self._decompressor.start(encoding, body, wish, partial(self._submit_plain, request))

    def _submit_plain(self, request: InferRequest, plain: Buffer | UnderstudyError) -> None:
        """Go on with a request whose body was compressed."""
        exchange = request.exchange
        if exchange not in exchange.connection.queue:
            return  # the client is gone
        try:
            self._go_on(exchange, request, plain)
        except Exception as error:
            self.crashes.contain("request", error)
            exchange.connection.abort()

    def _go_on(self, exchange: Exchange, request: InferRequest, plain: Buffer | UnderstudyError) -> None:
        if isinstance(plain, UnderstudyError):
            exchange.fail(plain, plain.context.pop("status", None))
            return
        more = len(plain) - len(request.body)
        self.bytes_held += more
        exchange.held_bytes += more
        error = self.over_share(exchange.connection.address, request.app.spec.app)
        if error is not None:
            exchange.fail(error)
        else:
            request.body = plain
            exchange.request = request
            self.gateway.dispatcher.admit(request, monotonic())

    def _json_bytes(self, value: bytes) -> int:
        if not value.isdigit() or len(value) > LENGTH_DIGITS_MAX:
            name = answers.JSON_LENGTH.decode()
            raise UnderstudyError(Code.INVALID_ARGUMENT, f"header {name}: {quoted(value)} is not a length")
        return int(value)

    def _timeout_ms(self, value: bytes) -> float:
        timeout_ms = float(value) if NUMBER.fullmatch(value) else -1.0
        limit = self.settings.admission.deadline_ms_max
        if not 0 < timeout_ms <= limit:
            message = f"header Understudy-Timeout-Ms: {quoted(value)} is not a number of ms in (0, {limit:g}]"
            raise UnderstudyError(Code.INVALID_ARGUMENT, message)
        return timeout_ms

    def _handle_rest(self, exchange: Exchange, head: Head, body: Buffer, now: float) -> None:
        method = head.method.decode("latin-1")
        path = unquote(head.url.partition(b"?")[0].decode("latin-1"))
        if method == "OPTIONS":  # before anybody is asked who they are: a browser's preflight doesn't say
            exchange.finish(answers.options_head(self._methods(path)), b"")
            return
        if self.door is not None:
            self.door.check_path(path, head.headers)
        if self.authenticator is not None:
            exchange.identity = self.authenticator.check_path(head.headers, path, exchange.connection)
        infer = self._infer_pattern.fullmatch(path)
        if infer:
            self._allow(method, "POST")
            self._submit(exchange, self.app(**infer.groupdict()), head.headers, body, now)
            return
        if method == "HEAD":  # its exchange leaves the body out
            method = "GET"
        for allowed, routes, given in (
            ("GET", self._pages.get, ()),
            ("POST", self._pages.post, (bytes(body),)),
        ):
            for pattern, answer in routes:
                match = pattern.fullmatch(path)
                if match:
                    self._allow(method, allowed)
                    status, content = answer(*given, **match.groupdict())
                    exchange.finish(answers.head(status), answers.json_body(content))
                    return
        raise UnderstudyError(Code.NOT_FOUND, f"no such path: {path[:200]}; all are listed at /openapi.json")

    def _methods(self, path: str) -> str:
        """What is allowed at `path`. Raises NOT_FOUND."""
        if path == "*":
            return "GET, HEAD, OPTIONS, POST"
        if self._infer_pattern.fullmatch(path) or any(p.fullmatch(path) for p, _ in self._pages.post):
            return "OPTIONS, POST"
        if any(pattern.fullmatch(path) for pattern, _ in self._pages.get):
            return "GET, HEAD, OPTIONS"
        raise UnderstudyError(Code.NOT_FOUND, f"no such path: {path[:200]}; all are listed at /openapi.json")

    def _allow(self, method: str, allowed: str) -> None:
        if method != allowed:
            message = f"use {allowed} here, not {method}"
            raise UnderstudyError(Code.INVALID_ARGUMENT, message, status=405, allow=allowed)

    def app(self, app: str, version: str | None) -> App:
        """Raises NOT_FOUND, or UNAVAILABLE before anything is known of models."""
        found = self.gateway.apps.get(app)
        if found is None:
            if self.gateway.table.revision < 0:
                raise UnderstudyError(Code.UNAVAILABLE, NO_TABLE)
            message = f"unknown model {app!r}"
            if self.authenticator is None:  # otherwise what is served here isn't for everybody to know
                message += "; served here: " + (", ".join(sorted(self.gateway.apps)[:20]) or "none")
            raise UnderstudyError(Code.NOT_FOUND, message)
        if version is not None and version != str(found.spec.version):
            served = found.spec.version
            raise UnderstudyError(
                Code.NOT_FOUND, f"model {app!r} has no version {version!r}; it serves {served}"
            )
        return found

    @property
    def ready(self) -> bool:
        """Ready to be sent traffic: it has routes and can answer for at least one app."""
        apps = self.gateway.apps.values()
        ready = self.gateway.table.revision >= 0 and not self.draining
        return ready and (not apps or any(app.fit for app in apps))

    def sorted_apps(self) -> list[App]:
        return [app for _, app in sorted(self.gateway.apps.items())]
