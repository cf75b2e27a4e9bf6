"""Who is let in to the control API: whoever has the operator's token, and nobody by way of a web page."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from understudy.adapters.audit import AuditLog
from understudy.core.operators import check_token
from understudy.core.webpages import HOST, Names, foreign_page
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.statuses import STATUSES

OPEN_PATHS = frozenset(("/v1/health",))  # for probes: says nothing that isn't seen from outside
CONTENT_TYPES = frozenset((b"application/json", b"application/octet-stream"))  # none that a form can send
READING = frozenset(("GET", "HEAD", "OPTIONS"))
UNREMARKABLE = frozenset(("/v1/plan/what-if", "/v1/problems"))  # a question; what `up` tells by itself


class Doorkeeper:
    """An ASGI app around another one. What it lets do and what it refuses is in `audit`."""

    def __init__(self, app: ASGIApp, token: str, names: Names, audit: AuditLog) -> None:
        self._app = app
        self._token = token.encode()
        self._names = names
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        path, method = scope["path"], str(scope["method"])
        host, port = scope["client"] or ("", 0)
        origin, action = f"{host}:{port}", f"{method} {path}"
        try:
            self.check(path, dict(scope["headers"]))
        except UnderstudyError as error:
            status = error.context.pop("status", None) or STATUSES[error.code].http
            self._audit.refused("", origin, action, status, error.message)
            await _refuse(error, status, send)
            return
        if method in READING or path in UNREMARKABLE:
            await self._app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._audit.acted("operator", origin, action, message["status"])
            await send(message)

        await self._app(scope, receive, told)

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Raises UNAUTHENTICATED, FORBIDDEN or INVALID_ARGUMENT."""
        self._names.check(headers.get(HOST, b""), "controller")
        if page := foreign_page(headers):
            raise UnderstudyError(
                Code.FORBIDDEN, f"{page} asks; the control API isn't for other sites' pages"
            )
        if path in OPEN_PATHS:
            return
        check_token(headers, self._token, "the control API")
        kind = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
        if kind not in CONTENT_TYPES:
            what = "send application/json, or an artifact as application/octet-stream"
            raise UnderstudyError(Code.INVALID_ARGUMENT, what, status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE)


async def _refuse(error: UnderstudyError, status: int, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    if error.code is Code.UNAUTHENTICATED:
        headers.append((b"www-authenticate", b"Bearer"))
    body = msgspec.json.encode({"error": error.message, "code": error.code.value})
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
