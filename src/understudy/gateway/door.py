"""Who is let in to a gateway: everybody but pages of other sites, and to some paths operators only."""

from __future__ import annotations

from collections.abc import Mapping

from understudy.core.operators import check_token
from understudy.core.webpages import HOST, ORIGIN, Names, foreign_page, is_loopback
from understudy.gateway.cors import Cors
from understudy.settings.gateway import GatewayConfig
from understudy.wire.errors import Code, UnderstudyError

OPERATORS_PATH = "/understudy/"


class Door:
    """Looks at each head that is parsed; a head that is known byte for byte has passed before.

    `token`: the operator's; empty where keys say who is one. Over TLS a browser has compared the name that it
    asks for with the certificate, and where other machines reach the gateway its names are theirs to choose.
    """

    def __init__(self, me: GatewayConfig, cors: Cors | None, token: str = "") -> None:
        self.refused = 0
        self._cors = cors
        self._token = token.encode()
        named = is_loopback(me.http) and me.tls is None
        self._names = Names([me.http], me.hosts) if named else None

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises FORBIDDEN."""
        try:
            self._check(headers)
        except UnderstudyError:
            self.refused += 1
            raise

    def _check(self, headers: Mapping[bytes, bytes]) -> None:
        if self._names is not None and HOST in headers:
            self._names.check(headers[HOST], "gateway")
        allowed = self._cors is not None and self._cors.allows(headers.get(ORIGIN, b""))
        if not allowed and (page := foreign_page(headers)):
            what = f"{page} asks; list its origin in gateway.cors.origins to let it in"
            raise UnderstudyError(Code.FORBIDDEN, what)

    def check_path(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Of a decoded path whether it is for operators only. Raises UNAUTHENTICATED."""
        if not self._token or not path.startswith(OPERATORS_PATH):
            return
        try:
            check_token(headers, self._token, "what is for operators")
        except UnderstudyError:
            self.refused += 1
            raise
