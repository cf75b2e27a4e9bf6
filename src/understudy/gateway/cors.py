"""Pages of other origins: what a browser is told before it lets them read an answer (Fetch standard, 3.2)."""

from __future__ import annotations

from understudy.gateway.answers import JSON_LENGTH
from understudy.settings.gateway import CorsSettings

METHODS = "GET, HEAD, POST"
REQUEST_HEADERS = (
    "Authorization", "Content-Encoding", "Content-Type", JSON_LENGTH.decode(), "Understudy-Timeout-Ms",
    "X-Api-Key", "X-Request-Id",
)  # fmt: skip
ANSWER_HEADERS = (
    JSON_LENGTH.decode(), "Retry-After", "Understudy-App", "Understudy-Code", "Understudy-Degraded",
    "Understudy-Variant", "Understudy-Version", "X-Request-Id",
)  # fmt: skip


class Cors:
    """Header lines that let pages of the configured origins in."""

    def __init__(self, settings: CorsSettings) -> None:
        self._any = "*" in settings.origins
        self._origins = {origin.rstrip("/").lower().encode() for origin in settings.origins}
        self._exposed = f"Access-Control-Expose-Headers: {', '.join(ANSWER_HEADERS)}\r\n".encode()
        self._preflight = (
            f"Access-Control-Allow-Methods: {METHODS}\r\n"
            f"Access-Control-Allow-Headers: {', '.join((*REQUEST_HEADERS, *settings.headers))}\r\n"
            f"Access-Control-Max-Age: {settings.max_age_s}\r\n"
        ).encode()

    def allows(self, origin: bytes) -> bool:
        return self._any or origin.lower() in self._origins

    def lines(self, method: bytes, headers: dict[bytes, bytes]) -> bytes:
        """For the answer to a request with these `headers`; nothing for one that no page made."""
        origin = headers.get(b"origin")
        vary = b"" if self._any else b"Vary: Origin\r\n"
        if origin is None or not self.allows(origin):
            return vary
        allowed = b"Access-Control-Allow-Origin: %b\r\n" % (b"*" if self._any else origin)
        is_preflight = method == b"OPTIONS" and b"access-control-request-method" in headers
        return allowed + vary + (self._preflight if is_preflight else self._exposed)
