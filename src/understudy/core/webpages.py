"""Requests that a web page has a browser send, to whatever listens on the browser's machine.

A browser lets any page send a form anywhere, and takes a name that its owner points at 127.0.0.1 for the
page's own server (DNS rebinding). So being on the loopback says nothing about who asks: a request of another
site's page is told by what browsers add to it, and a borrowed name by the Host header.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from understudy.wire.errors import Code, UnderstudyError

ORIGIN, HOST, FETCH_SITE = b"origin", b"host", b"sec-fetch-site"
OWN_SITES = frozenset((b"none", b"same-origin"))  # none: typed in, or from a bookmark
SHOWN_BYTES_MAX = 100


class Names:
    """What a listener may be called: IP addresses, localhost, and the names that were given to it."""

    def __init__(self, listen: Iterable[str], configured: Iterable[str] = ()) -> None:
        """`listen`: "host:port". `configured`: names without a port."""
        self._names = {host_of(each.encode()) for each in listen} | {
            name.lower().removesuffix(".").encode() for name in configured
        }

    def know(self, host: bytes) -> bool:
        """Whether the value of a Host header is one of ours. An address can't be borrowed, as a name can."""
        name = host_of(host)
        if name in self._names or name == b"localhost" or name.endswith(b".localhost"):
            return True
        return _is_address(name)

    def check(self, host: bytes, role: str) -> None:
        """Raises FORBIDDEN, with 421, unless the value of a Host header is one of ours."""
        if not self.know(host):
            what = f"the Host header is no name of this {role}; list it in {role}s.hosts if it is"
            raise UnderstudyError(Code.FORBIDDEN, what, status=HTTPStatus.MISDIRECTED_REQUEST)


@lru_cache(maxsize=64)  # clients ask by few
def _is_address(name: bytes) -> bool:
    try:
        ip_address(name.decode("latin-1"))
    except ValueError:
        return False
    return True


def host_of(authority: bytes) -> bytes:
    """Without the port, brackets and a last dot, in lower case."""
    bracketed = authority.startswith(b"[")
    name = authority[1:].partition(b"]")[0] if bracketed else authority.partition(b":")[0]
    return name.lower().removesuffix(b".")


def is_loopback(listen: str) -> bool:
    """Whether only this machine reaches what listens at "host:port"."""
    host = host_of(listen.encode()).decode()
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def foreign_page(headers: Mapping[bytes, bytes]) -> str:
    """Whose page sent a request with these `headers` (names in lower case); empty if no other site's did."""
    origin = headers.get(ORIGIN)
    if origin is not None:
        return "" if _is_own(origin, headers.get(HOST, b"")) else f"a page of {_shown(origin)}"
    site = headers.get(FETCH_SITE)
    return "" if site is None or site.lower() in OWN_SITES else "a page of another site"


def _is_own(origin: bytes, host: bytes) -> bool:
    try:
        return urlsplit(origin.lower()).netloc == host.lower() != b""
    except ValueError:
        return False


def _shown(value: bytes) -> str:
    return repr(value[:SHOWN_BYTES_MAX].decode("latin-1"))
