"""What a gateway writes to its clients: status lines, headers, error bodies."""

from __future__ import annotations

from http import HTTPStatus
from math import ceil
from typing import Any

import msgspec

from understudy.core.gateway.rotation import Source
from understudy.gateway.compression import ACCEPTED
from understudy.wire.errors import UnderstudyError
from understudy.wire.frames import Buffer
from understudy.wire.statuses import STATUSES

JSON_TYPE = b"Content-Type: application/json\r\n"
# The length of the JSON before the tensors, of a request and of an answer (binary tensor extension).
JSON_LENGTH = b"Inference-Header-Content-Length"
BINARY_HEADERS = b"Content-Type: application/octet-stream\r\n" + JSON_LENGTH + b": %d\r\n"

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_encode = msgspec.json.Encoder().encode


def status_of(error: UnderstudyError) -> int:
    return STATUSES[error.code].http


def head(status: int, *headers: tuple[str, str]) -> bytes:
    """Status line and headers, up to where Connection and Content-Length follow."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n").encode("latin-1", "replace")


def options_head(methods: str) -> bytes:
    return head(200, ("Allow", methods)).replace(JSON_TYPE, b"")


def whole(
    prefix: bytes, request_id: bytes, connection: bytes, body: Buffer, following_bytes: int = 0
) -> bytes:
    """An answer; with `following_bytes`, that many bytes of its body are still to be sent after this."""
    length = len(body) + following_bytes
    return (
        b"%bX-Request-Id: %b\r\nContent-Length: %d\r\n%b\r\n" % (prefix, request_id, length, connection)
        + body
    )


def source_head(source: Source) -> bytes:
    """Start of an answer by `source`. Kept on a replica until its degradation changes."""
    headers = [("Understudy-Variant", source.variant), ("Understudy-Version", str(source.version))]
    if source.degraded:
        headers.append(("Understudy-Degraded", source.degraded))
    if source.other_app:
        headers.append(("Understudy-App", source.other_app))
    source.prefix = head(200, *headers)
    return source.prefix


def binary_head(prefix: bytes, json_bytes: int) -> bytes:
    """`prefix` for a body of which only the first `json_bytes` are JSON."""
    return prefix.replace(JSON_TYPE, BINARY_HEADERS % json_bytes, 1)


def static_head(version: int) -> bytes:
    return head(
        200,
        ("Understudy-Variant", "static"),
        ("Understudy-Version", str(version)),
        ("Understudy-Degraded", "static"),
    )


def error_answer(
    error: UnderstudyError, retry_after_s: int, *, status: int | None = None
) -> tuple[bytes, bytes]:
    """Head and body for a failure: always `{"error": ...}`."""
    code = status or status_of(error)
    headers = [("Understudy-Code", str(error.code))]
    if code == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append(("Retry-After", str(retry_after_s)))
    elif code == HTTPStatus.UNAUTHORIZED:
        headers.append(("WWW-Authenticate", 'Bearer realm="understudy"'))
    elif code == HTTPStatus.TOO_MANY_REQUESTS:
        headers.append(("Retry-After", str(ceil(error.context.get("wait_s", retry_after_s)))))
    elif code == HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
        headers.append(("Accept-Encoding", ACCEPTED))
    if code == HTTPStatus.METHOD_NOT_ALLOWED and "allow" in error.context:
        headers.append(("Allow", str(error.context["allow"])))
        return head(code, *headers), json_body({"error": error.message})
    return head(code, *headers), json_body({"error": str(error)})


def json_body(content: Any) -> bytes:
    return _encode(content)
