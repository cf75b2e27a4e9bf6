"""Who asks, and what they may ask for. The same for HTTP and gRPC.

Lives here: finding the identity behind a key or token, and the one table of what each path needs. Does not
live here: signatures of tokens (`tokens`), files and their changes (`secured`).

A key is looked up by its SHA-256 in a dictionary. That comparison needn't take constant time: what its
duration could tell is a prefix of the digest of a guess, and a guess whose digest is near that of a key is no
nearer to the key. It does rest on keys that can't be guessed, which is why they are made at random.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from math import inf
from typing import Protocol

import msgspec

from understudy.core.operators import AUTHORIZATION, BEARER
from understudy.gateway.tokens import TokenVerifier
from understudy.settings.security import KeyFile
from understudy.wire.errors import Code, ConfigError, UnderstudyError
from understudy.wire.records import AppVersion

API_KEY = b"x-api-key"
CREDENTIALS = frozenset((AUTHORIZATION, API_KEY))

OPEN_PATHS = frozenset(("/v2/health/live", "/v2/health/ready"))
KNOWN_TO_ALL_PATHS = frozenset(("/v2", "/v2/"))  # needs an identity, but no permission
EVERY_APP_PATHS = frozenset(("/v2/models/stats",))  # an app's path in form, but about all of them
APP_PATH = re.compile(r"/v2/models/(?P<app>[^/]+)(?:/.*)?", re.DOTALL)


class Peer(Protocol):
    """Whose connection it is."""

    @property
    def address(self) -> str: ...


class Identity(msgspec.Struct, frozen=True):
    """Whose key or token it is. `client` names them to people and to rate limits."""

    client: str  # "key:NAME" or "jwt:SUBJECT"
    apps: re.Pattern[str]
    operator: bool = False
    expires_at: float = inf  # Unix time, s


def pattern_of(globs: Iterable[str]) -> re.Pattern[str]:
    """What matches the name of any app that one of `globs` names."""
    alternatives = [fnmatch.translate(glob) for glob in globs]
    return re.compile("|".join(alternatives) or r"(?!)")


def identities(keys: KeyFile) -> dict[bytes, Identity]:
    """By digest of the key. Raises `ConfigError` when one key is in the file twice."""
    found: dict[bytes, Identity] = {}
    for entry in keys.keys:
        digest = bytes.fromhex(entry.sha256)
        if digest in found:
            raise ConfigError(f"keys: {entry.name!r} and {found[digest].client!r} have the same key")
        found[digest] = Identity(f"key:{entry.name}", pattern_of(entry.apps), entry.operator)
    return found


def may_be_answered_by(identity: Identity | None, asked: AppVersion, other: AppVersion) -> bool:
    """Whether who asked `asked` may have an answer of `other`: they may ask it too, or it agreed to stand in.

    `identity`: None where everybody may ask everything.
    """
    if identity is None or identity.apps.match(other.app):
        return True
    return any(fnmatch.fnmatchcase(asked.app, pattern) for pattern in other.stand_in_for)


class Authenticator:
    """Says who asks, or refuses. Costs two dictionary look-ups and a digest for whoever was seen before.

    What is remembered of a token ends with the token, and with the keys that signed it.
    """

    def __init__(
        self, keys: dict[bytes, Identity], tokens: TokenVerifier | None, clock: Callable[[], float]
    ) -> None:
        """`clock` gives Unix time in seconds."""
        self.keys = keys
        self.refused = 0
        self._tokens = tokens
        self._clock = clock
        self._verified: dict[bytes, Identity] = {}

    def forget_tokens(self) -> None:
        """The issuer's keys changed: every token has to prove itself again."""
        self._verified.clear()

    def check(self, headers: Mapping[bytes, bytes], app: str, peer: Peer) -> Identity:
        """Who asks for `app`. Raises UNAUTHENTICATED, FORBIDDEN, or what `TokenVerifier.verify` does.

        The names of `headers` are in lower case, each of them once.
        """
        identity = self.identify(headers, peer)
        if not identity.apps.match(app):
            self.refused += 1
            raise UnderstudyError(Code.FORBIDDEN, f"{identity.client} may not use {app[:100]!r}")
        return identity

    def check_path(self, headers: Mapping[bytes, bytes], path: str, peer: Peer) -> Identity | None:
        """Who asks for a decoded path of the HTTP API; None where nobody has to say. Raises as `check`.

        What isn't listed is for operators.
        """
        if path in OPEN_PATHS:
            return None
        about_app = APP_PATH.fullmatch(path)
        if about_app and path not in EVERY_APP_PATHS:
            return self.check(headers, about_app["app"], peer)
        if path in KNOWN_TO_ALL_PATHS:
            return self.identify(headers, peer)
        return self.check_operator(headers, peer)

    def check_operator(self, headers: Mapping[bytes, bytes], peer: Peer) -> Identity:
        """Who asks for something that concerns the whole gateway. Raises as `check`."""
        identity = self.identify(headers, peer)
        if not identity.operator:
            self.refused += 1
            raise UnderstudyError(Code.FORBIDDEN, f"{identity.client} is not an operator")
        return identity

    def identify(self, headers: Mapping[bytes, bytes], peer: Peer) -> Identity:
        """Who asks, whatever for. Raises UNAUTHENTICATED, or what `TokenVerifier.verify` does."""
        try:
            return self._identify(headers, peer)
        except UnderstudyError:
            self.refused += 1
            raise

    def _identify(self, headers: Mapping[bytes, bytes], peer: Peer) -> Identity:
        secret = headers.get(API_KEY)
        bearer = headers.get(AUTHORIZATION)
        if bearer is not None:
            if secret is not None:
                raise _unauthenticated("give an API key or a bearer token, not both")
            if bearer[: len(BEARER)].lower() != BEARER:
                raise _unauthenticated("header Authorization: the only scheme is Bearer")
            secret = bearer[len(BEARER) :].strip()
        if not secret:
            raise _unauthenticated("send an API key or a token, as `Authorization: Bearer ...`")
        digest = sha256(secret).digest()
        identity = self.keys.get(digest)
        if identity is not None:
            return identity
        if bearer is None or self._tokens is None or secret.count(b".") != 2:
            raise _unauthenticated("this key is not known here")
        return self._identify_token(secret, digest, self._tokens, peer)

    def _identify_token(self, token: bytes, digest: bytes, tokens: TokenVerifier, peer: Peer) -> Identity:
        now_s = self._clock()
        identity = self._verified.get(digest)
        if identity is not None:
            if now_s < identity.expires_at:
                return identity
            del self._verified[digest]
        verified = tokens.verify(token, now_s, peer.address)
        identity = Identity(
            f"jwt:{verified.subject}", pattern_of(verified.apps), verified.operator, verified.expires_at
        )
        if len(self._verified) >= tokens.settings.tokens_max:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = identity
        return identity


def headers_of(metadata: Iterable[tuple[str, str | bytes]]) -> dict[bytes, bytes]:
    """The credentials in the metadata of a gRPC call. Raises UNAUTHENTICATED when one is given twice."""
    found: dict[bytes, bytes] = {}
    for name, value in metadata:
        key = name.encode().lower()
        if key in CREDENTIALS:
            if key in found:
                raise _unauthenticated(f"{name} is given twice")
            found[key] = value if isinstance(value, bytes) else value.encode()
    return found


def _unauthenticated(message: str) -> UnderstudyError:
    return UnderstudyError(Code.UNAUTHENTICATED, message)
