"""Whether somebody is the operator: who has the token that the cluster made for its user."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from understudy.wire.errors import Code, UnderstudyError

AUTHORIZATION = b"authorization"
BEARER = b"bearer "


def check_token(headers: Mapping[bytes, bytes], token: bytes, what: str) -> None:
    """Raises UNAUTHENTICATED unless `headers` have `token`. `what`: that wants it."""
    credentials = headers.get(AUTHORIZATION, b"")
    given = credentials[len(BEARER) :].strip() if credentials[: len(BEARER)].lower() == BEARER else b""
    if not given:
        raise UnderstudyError(
            Code.UNAUTHENTICATED,
            f"{what} wants the operator's token, as `Authorization: Bearer ...`; `understudy token` shows it",
        )
    if not hmac.compare_digest(given, token):
        raise UnderstudyError(Code.UNAUTHENTICATED, "this is not the operator's token of this cluster")
