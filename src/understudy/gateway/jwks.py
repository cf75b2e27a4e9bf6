"""Fetches the public keys of a token issuer: bounded in size and time, from nowhere but the address given."""

from __future__ import annotations

import http.client
import urllib.request
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from understudy.settings.security import JwtSettings
from understudy.wire.errors import ConfigError

BLOCK_BYTES = 64 * 1024
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keys from elsewhere than configured would be keys of whoever could place the redirection."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)
# A proxy of the environment has a certificate to show before it could put in keys of its own; not so here.
_opener_here = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))


def check_address(url: str) -> None:
    """Raises `ConfigError` unless keys from `url` can be trusted: HTTPS, or this machine."""
    parts = urlsplit(url)
    trusted = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    if not trusted or not parts.hostname:
        raise ConfigError("auth.jwt.jwks: give file:PATH or an https address")
    if parts.username or parts.password:
        raise ConfigError("auth.jwt.jwks: an address with a password is not supported")


def fetch(settings: JwtSettings) -> bytes:
    """The document at `settings.jwks`. Blocks for `jwks_timeout_s` at most, give or take one read.

    Raises `ConfigError`, whatever goes wrong.
    """
    limit_s, limit_bytes = settings.jwks_timeout_s, settings.jwks_bytes_max
    deadline_s = monotonic() + limit_s
    content = b""
    opener = _opener_here if urlsplit(settings.jwks).scheme == "http" else _opener
    try:
        with opener.open(settings.jwks, timeout=limit_s) as response:
            # A server that sends a byte now and then would never exceed the socket's own time limit.
            while block := response.read1(BLOCK_BYTES):
                content += block
                if len(content) > limit_bytes:
                    raise ConfigError("auth.jwt.jwks: too large", limit_bytes=limit_bytes)
                if monotonic() > deadline_s:
                    raise ConfigError("auth.jwt.jwks: took too long", limit_s=limit_s)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConfigError(f"auth.jwt.jwks: can't be fetched: {error}") from error
    return content
