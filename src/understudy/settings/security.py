"""Settings of who may use a gateway, and how it shows who it is."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from understudy.settings import Count, Name, NonNegative, Positive, Settings

JwtAlgorithm = Literal[  # asymmetric ones only: a public key can't be mistaken for a shared secret
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
]  # fmt: skip


class TlsSettings(Settings, frozen=True):
    """Clients speak HTTPS. The files are looked at again every few seconds and on SIGHUP."""

    cert: str  # PEM: the certificate, then those that lead to a root
    key: str  # PEM, not encrypted
    client_ca: str = ""  # PEM: only clients with a certificate signed by one of these are let in
    version_min: Literal["1.2", "1.3"] = "1.2"


class KeyEntry(Settings, frozen=True):
    """One API key. The key itself is written nowhere."""

    name: Name  # of whoever holds it; while a key is changed, two entries may have the same
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$(?!\\n)")]  # of the key, in hexadecimal
    apps: tuple[str, ...] = ()  # patterns such as "shop-*": the apps it may use
    operator: bool = False  # may see the whole gateway and load and unload models


class KeyFile(Settings, frozen=True):
    """What `auth.keys` refers to. Looked at again every few seconds and on SIGHUP."""

    keys: Annotated[tuple[KeyEntry, ...], Meta(max_length=10_000)] = ()


class JwtGrant(Settings, frozen=True):
    """What the holder of a token may do, if a claim of the token says so. Several grants add up."""

    value: str  # a pattern; of a claim that is a list, one member has to match
    claim: str = "sub"
    apps: tuple[str, ...] = ()
    operator: bool = False


class JwtSettings(Settings, frozen=True):
    """Tokens of an identity provider. Needs the `auth` extra."""

    issuer: str
    audience: str
    jwks: str  # the provider's public keys: "file:PATH" or "https://..."
    grants: Annotated[tuple[JwtGrant, ...], Meta(min_length=1)]
    algorithms: Annotated[tuple[JwtAlgorithm, ...], Meta(min_length=1)] = ("RS256", "ES256")
    leeway_s: NonNegative = 30.0  # how far clocks may be apart
    token_bytes_max: Count = 8192
    tokens_max: Count = 10_000  # verified ones, and addresses of refused ones, that are remembered
    refused_per_s_max: Positive = 20.0  # of one address; beyond it no signature is checked: 429
    jwks_refresh_s: Positive = 300.0
    jwks_refresh_s_min: Positive = 10.0  # also when a token names a key that isn't known
    jwks_timeout_s: Positive = 5.0  # of one download
    jwks_bytes_max: Count = 256 * 1024
    jwks_age_s_max: Positive = 86_400.0  # older keys are not trusted, while the provider is away


class AuthSettings(Settings, frozen=True):
    """Who may use the gateways. With this table every request but a health check needs a key or a token."""

    keys: str = ""  # "file:PATH" or "env:NAME": API keys, in the form of the table below
    jwt: JwtSettings | None = None
