"""Certificates and keys of a gateway while it runs: looked at again, replaced, never half replaced.

Lives here: when files are read and the issuer's keys fetched, and what is said about it. A new file that is
wrong changes nothing: what was good before stays in force, and an event says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from understudy.config import parse_toml, read_secret
from understudy.gateway import jwks, tls
from understudy.gateway.auth import Authenticator, Identity, identities
from understudy.gateway.tokens import TokenVerifier
from understudy.settings.cluster import ClusterConfig
from understudy.settings.security import AuthSettings, JwtSettings, KeyFile
from understudy.wire.errors import ConfigError

Note = Callable[[str, str], None]  # kind of event, message
Fingerprint = tuple[tuple[int, ...], ...]


class Watched(msgspec.Struct):
    """Files that belong together. `load` reads and checks them; `take` puts the outcome into force."""

    what: str
    paths: tuple[str, ...]
    load: Callable[[], Any]
    take: Callable[[Any], None]
    reloaded: str  # kinds of events
    failed: str
    seen: Fingerprint = ()


class Secured:
    """TLS and authentication of one gateway. Both are None where they are switched off."""

    def __init__(self, config: ClusterConfig, gateway: str, name: str, note: Note) -> None:
        """Reads everything that it can. `name` is that of the process, of which a gateway may have many.

        Raises `ConfigError` for what is missing or wrong.
        """
        self.context: tls.ServerContext | None = None
        self.authenticator: Authenticator | None = None
        self._note = note
        self._check_s = config.gateway.secrets_check_s
        self._kept_keys = config.role_dir("gateway", name) / "jwks.json"
        self._files: list[Watched] = []
        self._asked = asyncio.Event()
        self._keys_wanted = asyncio.Event()
        self._tokens: TokenVerifier | None = None
        self._issuer: JwtSettings | None = None  # whose keys are fetched from an address
        settings = config.gateway_named(gateway).tls
        if settings is not None:
            self.context = tls.ServerContext(tls.load(settings))
            paths = tuple(path for path in (settings.cert, settings.key, settings.client_ca) if path)
            self._watch(
                Watched(
                    "certificate", paths, lambda: tls.load(settings), self._take_certificate,
                    "certificate.reloaded", "certificate.reload_failed",
                )
            )  # fmt: skip
            self._warn_if_exposed(settings.key)
        if config.auth is not None:
            self._start_auth(config.auth)

    @property
    def in_use(self) -> bool:
        return self.context is not None or self.authenticator is not None

    def _start_auth(self, auth: AuthSettings) -> None:
        if not auth.keys and auth.jwt is None:
            raise ConfigError("auth: give `keys`, `jwt` or both; without them nobody could be let in")
        keys = _load_keys(auth.keys) if auth.keys else {}
        if auth.jwt is not None:
            self._tokens = TokenVerifier(auth.jwt, self._keys_wanted.set)
        self.authenticator = Authenticator(keys, self._tokens, time.time)
        if auth.keys.startswith("file:"):
            path = auth.keys.removeprefix("file:")
            self._watch(
                Watched(
                    "API keys", (path,), lambda: _load_keys(auth.keys), self._take_keys,
                    "keys.reloaded", "keys.reload_failed",
                )
            )  # fmt: skip
            self._warn_if_exposed(path)
        if auth.jwt is not None and self._tokens is not None:
            self._start_tokens(auth.jwt, self._tokens)

    def _start_tokens(self, jwt: JwtSettings, tokens: TokenVerifier) -> None:
        if not jwt.jwks.startswith(("file:", "env:")):
            jwks.check_address(jwt.jwks)
            self._issuer = jwt
            with contextlib.suppress(OSError, ConfigError):  # kept for the time when the issuer is away
                tokens.take_keys(self._kept_keys.read_bytes(), self._kept_keys.stat().st_mtime)
            return

        def load() -> bytes:
            document = read_secret(jwt.jwks, jwt.jwks_bytes_max)
            tokens.read_keys(document)
            return document

        self._take_issuer_keys(load())
        if jwt.jwks.startswith("file:"):
            paths = (jwt.jwks.removeprefix("file:"),)
            kinds = ("issuer_keys.reloaded", "issuer_keys.reload_failed")
            self._watch(Watched("keys of the token issuer", paths, load, self._take_issuer_keys, *kinds))

    def _watch(self, watched: Watched) -> None:
        watched.seen = _fingerprint(watched.paths)
        self._files.append(watched)

    def _warn_if_exposed(self, path: str) -> None:
        with contextlib.suppress(OSError):
            if os.stat(path).st_mode & stat.S_IROTH:
                self._note("secret.exposed", f"every user of this machine can read {path}; chmod o-r it")

    # what came anew

    def _take_certificate(self, certificate: tls.Certificate) -> None:
        if self.context is not None:
            self.context.newest = certificate

    def _take_keys(self, keys: dict[bytes, Identity]) -> None:
        if self.authenticator is not None:
            self.authenticator.keys = keys

    def _take_issuer_keys(self, document: bytes) -> None:
        if self._tokens is None or self.authenticator is None:
            return
        # A file on our own disk doesn't grow stale: it is what the operator says now.
        at = time.time() if self._issuer is not None else float("inf")
        if self._tokens.take_keys(document, at):
            self.authenticator.forget_tokens()

    # while the gateway runs

    def reload(self) -> None:
        """Look at every file now, changed or not (SIGHUP)."""
        self._asked.set()
        self._keys_wanted.set()

    async def run(self) -> None:
        """Keep everything up to date until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_files())
            if self._issuer is not None:
                tasks.create_task(self._follow_issuer(self._issuer))

    async def _follow_files(self) -> None:
        while True:
            asked = await _happens_within(self._asked, self._check_s)
            for watched in self._files:
                seen = await asyncio.to_thread(_fingerprint, watched.paths)
                if asked or seen != watched.seen:
                    watched.seen = seen  # taken before the files are read: a later change is seen again
                    await self._reload(watched)

    async def _reload(self, watched: Watched) -> None:
        try:
            watched.take(await asyncio.to_thread(watched.load))
        except ConfigError as error:
            self._note(watched.failed, f"keeping the former {watched.what}: {error}")
        else:
            self._note(watched.reloaded, f"new {watched.what} from {', '.join(watched.paths)}")

    async def _follow_issuer(self, issuer: JwtSettings) -> None:
        """Fetch at once, then now and then; sooner if a token names an unknown key, but not more often
        than `jwks_refresh_s_min`: such tokens cost nothing to make.
        """
        failing = False
        while True:
            try:
                document = await asyncio.to_thread(jwks.fetch, issuer)
                self._take_issuer_keys(document)
            except ConfigError as error:
                if not failing:
                    self._note("issuer_keys.reload_failed", f"keeping the former ones: {error}")
                failing = True
            else:
                if failing:
                    self._note("issuer_keys.reloaded", "the token issuer's keys can be had again")
                failing = False
                await asyncio.to_thread(self._keep, document)
            await asyncio.sleep(issuer.jwks_refresh_s_min)
            rest_s = 0.0 if failing else issuer.jwks_refresh_s - issuer.jwks_refresh_s_min
            await _happens_within(self._keys_wanted, max(rest_s, 0.0))

    def _keep(self, document: bytes) -> None:
        with contextlib.suppress(OSError):  # only a restart while the issuer is away would miss it
            self._kept_keys.parent.mkdir(parents=True, exist_ok=True)
            new = self._kept_keys.with_suffix(".new")
            new.write_bytes(document)
            new.replace(self._kept_keys)


def _load_keys(reference: str) -> dict[bytes, Identity]:
    return identities(parse_toml(read_secret(reference), reference, KeyFile))


def _fingerprint(paths: tuple[str, ...]) -> Fingerprint:
    """Another one when a file was written, replaced, or a link on the way leads elsewhere."""
    found: list[tuple[int, ...]] = []
    for path in paths:
        try:
            facts = Path(path).stat()
            found.append((facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns))
        except OSError as error:
            found.append((error.errno or 0,))
    return tuple(found)


async def _happens_within(event: asyncio.Event, limit_s: float) -> bool:
    """Whether `event` was set before `limit_s` passed. It is cleared."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await event.wait()
    happened = event.is_set()
    event.clear()
    return happened
