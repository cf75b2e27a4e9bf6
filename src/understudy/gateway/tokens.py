"""JSON Web Tokens: is the signature the issuer's, is it still valid, and what does it grant?

PyJWT (the `auth` extra) verifies. What is decided here, before it sees a token: how long one may be, which
algorithms are accepted, and that the algorithm fits the key. Only asymmetric algorithms can be configured,
so neither `none` nor a public key that is taken for a shared secret can pass.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from fnmatch import fnmatchcase
from math import ceil, inf
from time import monotonic
from typing import Any

import msgspec

from understudy.core.gateway.clients import ClientBuckets
from understudy.settings.security import JwtSettings
from understudy.wire.errors import Code, ConfigError, UnderstudyError
from understudy.wire.records import ClientRate

HEADER_BYTES_MAX = 1024  # of a token, encoded
SUBJECT_MAX = 256  # characters
RSA_BITS_MIN = 2048  # NIST SP 800-131A
CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
RSA_ALGORITHMS = frozenset(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))


class Header(msgspec.Struct):
    """The part of a token that says how it is signed."""

    alg: str
    kid: str | None = None
    crit: msgspec.Raw | None = None


class PublicKey(msgspec.Struct, frozen=True):
    key: Any  # of `cryptography`
    algorithms: frozenset[str]


class Verified(msgspec.Struct, frozen=True):
    """What a token says of its holder."""

    subject: str
    apps: tuple[str, ...]
    operator: bool
    expires_at: float  # Unix time, s


class TokenVerifier:
    """Verifies tokens with the newest keys of the issuer that it was given."""

    def __init__(self, settings: JwtSettings, unknown_key: Callable[[], None]) -> None:
        """`unknown_key` is called when a token names a key that isn't known: time to fetch them again.

        Raises `ConfigError` without the `auth` extra.
        """
        try:
            import jwt
        except ImportError as error:
            message = "auth.jwt: needs PyJWT: pip install '/path/to/understudy[auth]'"
            raise ConfigError(message) from error
        self._jwt = jwt
        self.settings = settings
        self._unknown_key = unknown_key
        self._keys: dict[str | None, PublicKey] = {}
        self._keys_at = -inf
        rate = ClientRate(settings.refused_per_s_max, burst=ceil(settings.refused_per_s_max))
        self._refused = ClientBuckets(rate, settings.tokens_max)

    def take_keys(self, document: bytes, at: float) -> bool:
        """Trust the keys of a JWKS document that was fetched `at` (Unix time, s); whether they are others.

        Raises `ConfigError` when it holds none that could verify anything.
        """
        keys = self.read_keys(document)
        changed = _numbers(keys) != _numbers(self._keys)
        self._keys, self._keys_at = keys, at
        return changed

    def read_keys(self, document: bytes) -> dict[str | None, PublicKey]:
        """By key id. Raises `ConfigError`. Keys for other purposes are passed over."""
        try:
            entries = msgspec.json.decode(document, type=dict[str, Any]).get("keys")
        except (msgspec.DecodeError, RecursionError) as error:
            raise ConfigError("auth.jwt.jwks: not a JSON object") from error
        found: dict[str | None, PublicKey] = {}
        for entry in entries if isinstance(entries, list) else []:
            key = self._read_key(entry) if isinstance(entry, dict) else None
            kid = entry.get("kid") if key else None
            if key is not None and (kid is None or isinstance(kid, str)):
                found.setdefault(kid, key)
        if not found:
            wanted = ", ".join(self.settings.algorithms)
            raise ConfigError(f"auth.jwt.jwks: no public key for {wanted} in it")
        return found

    def _read_key(self, entry: dict[str, Any]) -> PublicKey | None:
        if entry.get("kty") not in ("RSA", "EC", "OKP") or "d" in entry or entry.get("use", "sig") != "sig":
            return None
        try:
            key = self._jwt.PyJWK.from_dict(entry).key
        except (self._jwt.PyJWTError, ValueError, TypeError, OverflowError):
            return None
        if entry["kty"] == "RSA":
            fitting = RSA_ALGORITHMS if key.key_size >= RSA_BITS_MIN else frozenset()
        elif entry["kty"] == "EC":
            fitting = frozenset((CURVES.get(key.curve.name, ""),))
        else:
            fitting = frozenset(("EdDSA",))
        named = entry.get("alg")
        allowed = frozenset(name for name in self.settings.algorithms if named in (None, name))
        return PublicKey(key, fitting & allowed) if fitting & allowed else None

    def verify(self, token: bytes, now_s: float, address: str) -> Verified:
        """Raises UNAUTHENTICATED for whatever is wrong with it, UNAVAILABLE without the issuer's keys.

        RATE_LIMITED for an address from which too many tokens came whose check was in vain.
        """
        settings = self.settings
        if len(token) > settings.token_bytes_max:
            raise UnderstudyError(
                Code.UNAUTHENTICATED, "the token is too long", limit_bytes=settings.token_bytes_max
            )
        trusted_until = self._keys_at + settings.jwks_age_s_max
        if now_s >= trusted_until:
            self._unknown_key()
            raise UnderstudyError(Code.UNAVAILABLE, "the issuer's keys could not be fetched yet")
        header = _header(token)
        key = self._key(header)
        if wait_s := self._refused.wait_s(address, monotonic()):
            raise UnderstudyError(Code.RATE_LIMITED, "too many tokens were refused", wait_s=round(wait_s, 3))
        try:
            claims = self._jwt.decode(
                token,
                key.key,
                algorithms=[header.alg],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            expires_at = min(float(claims["exp"]) + settings.leeway_s, trusted_until)
        except (self._jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            self._refused.take(address, monotonic())
            # The library's own words may hold parts of the token.
            raise UnderstudyError(Code.UNAUTHENTICATED, self._fault(error)) from None
        apps, operator = self._granted(claims)
        return Verified(_printable(claims["sub"]), apps, operator, expires_at)

    def _key(self, header: Header) -> PublicKey:
        key = self._keys.get(header.kid)
        if key is None and header.kid is None and len(self._keys) == 1:
            (key,) = self._keys.values()
        if key is None:
            self._unknown_key()
            message = "the token is signed with a key that isn't known here; if it is new, try again shortly"
            raise UnderstudyError(Code.UNAUTHENTICATED, message)
        if header.alg not in key.algorithms or header.crit is not None:
            raise UnderstudyError(Code.UNAUTHENTICATED, "tokens signed in this way are not accepted")
        return key

    def _fault(self, error: Exception) -> str:
        faults: tuple[tuple[type[Exception], str], ...] = (
            (self._jwt.ExpiredSignatureError, "the token has expired"),
            (self._jwt.ImmatureSignatureError, "the token is not valid yet"),
            (self._jwt.InvalidAudienceError, "the token is for another audience"),
            (self._jwt.InvalidIssuerError, "the token is of another issuer"),
            (self._jwt.InvalidSignatureError, "the token's signature is wrong"),
            (self._jwt.MissingRequiredClaimError, "the token lacks one of exp, iss, aud, sub"),
        )
        return next((text for type_, text in faults if isinstance(error, type_)), "the token is malformed")

    def _granted(self, claims: dict[str, Any]) -> tuple[tuple[str, ...], bool]:
        apps: list[str] = []
        operator = False
        for grant in self.settings.grants:
            value = claims.get(grant.claim)
            if grant.claim == "scope" and isinstance(value, str):
                value = value.split(" ")  # RFC 8693, 4.2
            values = value if isinstance(value, list) else [value]
            if any(isinstance(one, str) and fnmatchcase(one, grant.value) for one in values):
                apps += grant.apps
                operator = operator or grant.operator
        return tuple(apps), operator


def _header(token: bytes) -> Header:
    encoded = token.partition(b".")[0]
    try:
        if len(encoded) > HEADER_BYTES_MAX:
            raise ValueError
        text = base64.b64decode(encoded + b"=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(text, type=Header)
    except (ValueError, binascii.Error, RecursionError):
        raise UnderstudyError(Code.UNAUTHENTICATED, "the token is malformed") from None


def _printable(subject: str) -> str:
    """As it may stand in a log or a header."""
    return "".join(c if c.isprintable() else "?" for c in subject[:SUBJECT_MAX])


def _numbers(keys: dict[str | None, PublicKey]) -> dict[str | None, tuple[frozenset[str], Any]]:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return {kid: (key.algorithms, key.key.public_bytes(*form)) for kid, key in keys.items()}
