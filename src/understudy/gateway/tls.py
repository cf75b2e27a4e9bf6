"""HTTPS: the certificate in use, and how another one takes its place without a lost connection."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import msgspec

from understudy.settings.security import TlsSettings
from understudy.wire.errors import ConfigError

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Certificate(msgspec.Struct, frozen=True):
    """What was read from the files, and fits together."""

    context: ssl.SSLContext
    cert_pem: bytes
    key_pem: bytes
    client_ca_pem: bytes | None


def load(tls: TlsSettings) -> Certificate:
    """Raises `ConfigError` naming the setting, if a file is unreadable or key and certificate don't fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[tls.version_min]
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    what = ""
    try:
        what = f"cert: {tls.cert}"
        cert = Path(tls.cert).read_bytes()
        what = f"key: {tls.key}"
        key = Path(tls.key).read_bytes()
        what = f"cert, key: {tls.cert}, {tls.key}"
        # An encrypted key must not make the process ask a terminal for its password.
        context.load_cert_chain(tls.cert, tls.key, password=lambda: b"")
        client_ca = None
        if tls.client_ca:
            what = f"client_ca: {tls.client_ca}"
            client_ca = Path(tls.client_ca).read_bytes()
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "not valid"
        raise ConfigError(f"gateways.tls.{what}: {reason}") from error
    return Certificate(context, cert, key, client_ca)


class ServerContext(ssl.SSLContext):
    """What a server listens with: each new connection gets the newest certificate, old ones keep theirs.

    A context that is in use can't be changed safely: were the new key wrong, it would have half of it.
    """

    newest: Certificate

    def __new__(cls, first: Certificate) -> ServerContext:
        context = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        context.newest = first
        return context

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.newest.context.wrap_bio(*args, **kwargs)
