"""Keys and tokens at a running gateway: what changes while connections are open, and what strangers try."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from harness import request_bytes
from secured_gateway import Running, gateway, run

from understudy.config import load_cluster
from understudy.gateway.http import UNAUTHENTICATED_BYTES_MAX
from understudy.gateway.secured import Secured
from understudy.wire.errors import ConfigError

SECRET, LATER = "aa0b5c2f7d1e49b8", "bb0b5c2f7d1e49b8"
META = "/v2"  # needs an identity and no permission
JWT = '[auth.jwt]\nissuer = "a"\naudience = "b"\ngrants = [{ value = "*" }]\n'
FETCH = """
import sys
from understudy.gateway.jwks import fetch
from understudy.settings.security import JwtSettings
sys.stdout.buffer.write(fetch(JwtSettings(issuer="a", audience="b", jwks=sys.argv[1], grants=())))
"""
KEYS_ONLY = '[auth]\nkeys = "file:keys.toml"\n'


def with_key(secret: str) -> str:
    return f"X-API-Key: {secret}\r\n"


def write_keys(folder: Path, *secrets: str) -> None:
    path = folder / "keys.toml"
    path.touch(mode=0o600)
    entries = [
        f'[[keys]]\nname = "k{number}"\nsha256 = "{sha256(secret.encode()).hexdigest()}"\napps = ["a*"]\n'
        for number, secret in enumerate(secrets)
    ]
    path.write_text("\n".join(entries))


def test_a_revoked_key_ends_on_an_open_connection(tmp_path: Path) -> None:
    write_keys(tmp_path, SECRET)

    async def main() -> None:
        async with gateway(tmp_path, of_cluster=KEYS_ONLY) as running, running.talk() as talk:
            for _ in range(3):  # from the second on the head is known byte for byte
                assert (await talk.ask(META, with_key(SECRET))).status == 200
            write_keys(tmp_path, SECRET, LATER)
            await running.until(lambda: running.told("keys.reloaded"), "the keys are read anew")
            assert (await talk.ask(META, with_key(SECRET))).status == 200, "both are good for a while"
            assert (await talk.ask(META, with_key(LATER))).status == 200
            write_keys(tmp_path, LATER)
            await running.until(lambda: len(running.told("keys.reloaded")) > 1, "the keys are read anew")
            refusal = await talk.ask(META, with_key(SECRET))
            assert refusal.status == 401
            assert refusal.headers["www-authenticate"].startswith("Bearer")
            assert refusal.json == {"error": "this key is not known here"}
            assert (await talk.ask(META, with_key(LATER))).status == 200

    run(main())


def test_a_broken_key_file_keeps_the_former_keys(tmp_path: Path) -> None:
    write_keys(tmp_path, SECRET)

    async def main() -> None:
        async with gateway(tmp_path, of_cluster=KEYS_ONLY) as running:
            for number, broken in enumerate((f'[[keys]]\nkey = "{LATER}"', "[[", '[[keys]]\nname = "x"'), 1):
                (tmp_path / "keys.toml").write_text(broken)
                await running.until(
                    lambda n=number: len(running.told("keys.reload_failed")) >= n, "it is reported"
                )
                assert (await running.ask(META, with_key(SECRET))).status == 200
            assert LATER not in str(running.process.events), "a key in the wrong place isn't repeated"

    run(main())


def test_strangers_learn_nothing(tmp_path: Path) -> None:
    write_keys(tmp_path, SECRET)

    async def main() -> None:
        async with gateway(tmp_path, of_cluster=KEYS_ONLY) as running:
            for path in (META, "/understudy/status", "/v2/models/abc", "/v2/models/zzz/ready", "/nowhere"):
                assert (await running.ask(path)).status == 401
                assert (await running.ask(f"{path}?api_key={SECRET}&access_token={SECRET}")).status == 401
            for path in ("/v2/health/live", "/v2/health/ready"):
                assert (await running.ask(path)).status != 401
            good = with_key(SECRET)
            assert (await running.ask("/v2/models/abc", good)).status == 503, "it has no table yet"
            hidden = await running.ask("/v2/models/zzz", good)
            assert (hidden.status, hidden.json) == (403, {"error": "key:k0 may not use 'zzz'"})
            for path in ("/v2/models/%7Azz", "/v2/models/abc%2F..%2Fzzz", "/v2/models/zzz/versions/1/infer"):
                assert (await running.ask(path, good)).status in (403, 404, 503), path
            assert (await running.ask("/understudy/status", good)).status == 403

    run(main())


def test_two_credentials_are_refused(tmp_path: Path) -> None:
    write_keys(tmp_path, SECRET)
    twice = with_key("x") + with_key(SECRET)
    both = f"Authorization: Bearer {SECRET}\r\n" + with_key(SECRET)

    async def main() -> None:
        async with gateway(tmp_path, of_cluster=KEYS_ONLY) as running:
            assert (await running.ask(META, twice)).status == 400
            assert (await running.ask(META, twice.lower().replace("\r\n", "\r\n", 1))).status == 400
            assert (await running.ask(META, both)).status == 401

    run(main())


@pytest.mark.parametrize(
    "framing", [f"Content-Length: {UNAUTHENTICATED_BYTES_MAX + 1}", "Transfer-Encoding: chunked"]
)
def test_strangers_send_no_large_bodies(tmp_path: Path, framing: str) -> None:
    write_keys(tmp_path, SECRET)

    async def main() -> None:
        async with gateway(tmp_path, of_cluster=KEYS_ONLY) as running, running.talk() as talk:
            path = "/v2/models/abc/infer"
            head = f"POST {path} HTTP/1.1\r\nHost: [::]\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"
            assert (await talk.send(head.encode())).status == 401, "before a byte of the body was sent"
            assert running.process.api.bytes_held == 0

    run(main())


def test_request_ids_are_returned_and_safe(tmp_path: Path) -> None:
    async def main() -> None:
        async with gateway(tmp_path) as running, running.talk() as talk:
            mine = await talk.ask(META, "X-Request-Id: order-17/3:a_b@c\r\n")
            assert mine.headers["x-request-id"] == "order-17/3:a_b@c"
            made = {(await talk.ask(META)).headers["x-request-id"] for _ in range(5)}
            assert len(made) == 5
            for odd in ("a b", "x" * 129, '"><script>', "ä", "", "a;b"):
                given = await talk.ask(META, f"X-Request-Id: {odd}\r\n")
                assert given.headers["x-request-id"] not in (odd, "")
                assert len(given.headers["x-request-id"]) < 40
            lost = await talk.send(request_bytes("GET", "/nowhere", headers="X-Request-Id: lost\r\n"))
            assert (lost.status, lost.headers["x-request-id"]) == (404, "lost")
            bad = await talk.send(b"rubbish\r\n\r\n")
            assert (bad.status, bool(bad.headers["x-request-id"])) == (400, True)

    run(main())


# tokens of an issuer that is a server


class Issuer(ThreadingHTTPServer):
    """Serves its public keys, or misbehaves as told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.keys: dict[str, Any] = {"k1": ec.generate_private_key(ec.SECP256R1())}
        self.manner = "good"
        self.fetched = 0

    def settings(self, more: str = "") -> str:
        return (
            '[auth.jwt]\nissuer = "me"\naudience = "us"\nleeway_s = 0\n'
            f'jwks = "http://127.0.0.1:{self.server_port}/jwks"\njwks_refresh_s_min = 0.05\n'
            f"jwks_timeout_s = 0.5\njwks_bytes_max = 5000\n{more}\n"
            '[[auth.jwt.grants]]\nvalue = "*"\napps = ["*"]\n'
        )

    def token(self, kid: str, **claims: Any) -> str:
        whole = {"iss": "me", "aud": "us", "sub": "robot", "exp": time.time() + 60, **claims}
        signed = jwt.encode(whole, self.keys[kid], "ES256", headers={"kid": kid})
        return f"Authorization: Bearer {signed}\r\n"

    def document(self) -> bytes:
        to_jwk = jwt.algorithms.ECAlgorithm.to_jwk
        keys = [{"kid": kid, **to_jwk(key.public_key(), as_dict=True)} for kid, key in self.keys.items()]
        return json.dumps({"keys": keys}).encode()


class _Handler(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        self.server.fetched += 1
        manner = self.server.manner
        if manner == "moved" and self.path == "/jwks":
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.end_headers()
            return
        self.send_response(503 if manner == "down" else 200)
        self.end_headers()
        try:
            if manner == "huge":
                self.wfile.write(b" " * 1_000_000)
            while manner == "slow" and self.server.manner == "slow":
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
            self.wfile.write(b"rubbish" if manner == "rubbish" else self.server.document())
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def issuing() -> Iterator[Issuer]:
    with Issuer() as issuer:
        thread = Thread(target=issuer.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield issuer
        finally:
            issuer.manner = "good"
            issuer.shutdown()
            thread.join()


async def _status(running: Running, token: str) -> int:
    return (await running.ask(META, token)).status


def test_a_new_key_of_the_issuer_is_fetched_off_the_request_path(tmp_path: Path) -> None:
    async def main() -> None:
        with issuing() as issuer:
            async with gateway(tmp_path, of_cluster=issuer.settings()) as running:

                async def let_in(kid: str) -> bool:
                    return await _status(running, issuer.token(kid)) == 200

                await running.until(lambda: let_in("k1"), "the first token is taken")
                fetched = issuer.fetched
                issuer.keys["k2"] = ec.generate_private_key(ec.SECP256R1())
                assert await _status(running, issuer.token("k2")) == 401, "nobody waits for the issuer"
                await running.until(lambda: let_in("k2"), "the new key was fetched")
                assert issuer.fetched == fetched + 1
                old = issuer.token("k1")
                assert await _status(running, old) == 200
                del issuer.keys["k1"]
                running.process.secured.reload()

                async def refused() -> bool:
                    return await _status(running, old) == 401

                await running.until(refused, "a token ends with the key that signed it")

    run(main())


def test_keys_of_this_machine_are_asked_of_no_proxy() -> None:
    """Over the loopback nothing but the address says whose they are."""
    with issuing() as issuer, issuing() as proxy:
        jwks = f"http://127.0.0.1:{issuer.server_port}/jwks"
        others = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        done = subprocess.run(
            [sys.executable, "-P", "-c", FETCH, jwks],
            env={**others, "http_proxy": f"http://127.0.0.1:{proxy.server_port}"},
            capture_output=True,
            check=True,
        )
        assert (done.stdout, proxy.fetched) == (issuer.document(), 0)


def test_tokens_with_unknown_keys_do_not_flood_the_issuer(tmp_path: Path) -> None:
    async def main() -> None:
        with issuing() as issuer:
            issuer.keys["stolen"] = ec.generate_private_key(ec.SECP256R1())
            token = issuer.token("stolen")
            del issuer.keys["stolen"]
            settings = issuer.settings().replace("jwks_refresh_s_min = 0.05", "jwks_refresh_s_min = 30")
            async with gateway(tmp_path, of_cluster=settings) as running, running.talk() as talk:
                await running.until(lambda: issuer.fetched, "the keys are fetched")
                for _ in range(200):
                    assert (await talk.ask(META, token)).status in (401, 503)
                assert issuer.fetched == 1

    run(main())


@pytest.mark.parametrize("manner", ["down", "slow", "huge", "rubbish", "moved"])
def test_an_issuer_that_misbehaves_harms_nobody(tmp_path: Path, manner: str) -> None:
    write_keys(tmp_path, SECRET)

    async def main() -> None:
        with issuing() as issuer:
            issuer.manner = manner
            settings = KEYS_ONLY + issuer.settings()
            async with gateway(tmp_path, of_cluster=settings) as running:
                await running.until(lambda: running.told("issuer_keys.reload_failed"), "it is reported")
                assert await _status(running, issuer.token("k1")) == 503, "we don't know, so we don't say no"
                assert await _status(running, with_key(SECRET)) == 200
                issuer.manner = "good"
                await running.until(lambda: running.told("issuer_keys.reloaded"), "it is back")
                assert await _status(running, issuer.token("k1")) == 200
                issuer.manner = manner
                fetched = issuer.fetched
                running.process.secured.reload()
                await running.until(lambda: issuer.fetched > fetched, "it is asked again")
                assert await _status(running, issuer.token("k1", jti="new")) == 200, "former keys stay"

    run(main())


def test_a_restart_without_the_issuer_takes_tokens(tmp_path: Path) -> None:
    async def main() -> None:
        with issuing() as issuer:
            kept = tmp_path / "understudy-data" / "gateway" / "g1" / "jwks.json"
            async with gateway(tmp_path, of_cluster=issuer.settings()) as running:
                await running.until(kept.exists, "the keys are kept")
            issuer.manner = "down"
            async with gateway(tmp_path, of_cluster=issuer.settings()) as running:
                assert await _status(running, issuer.token("k1")) == 200
            async with gateway(tmp_path, of_cluster=issuer.settings("jwks_age_s_max = 0.001")) as running:
                assert await _status(running, issuer.token("k1")) == 503, "they are too old to be trusted"

    run(main())


def test_who_sends_forged_tokens_is_soon_told_to_wait(tmp_path: Path) -> None:
    async def main() -> None:
        with issuing() as issuer:
            settings = issuer.settings("refused_per_s_max = 2")
            async with gateway(tmp_path, of_cluster=settings) as running, running.talk() as talk:
                good, fresh = issuer.token("k1"), issuer.token("k1", jti="new")
                await running.until(lambda: _is(running, good, 200), "the keys are fetched")
                head, _, _ = good.strip().rpartition(".")
                forged = [f"{head}.{'A' * 85}{letter}\r\n" for letter in "ABCDEFGHIJ"]
                answers = [await talk.ask(META, each) for each in forged]
                assert [answer.status for answer in answers[:2]] == [401, 401]
                assert (answers[-1].status, answers[-1].headers["retry-after"]) == (429, "1")
                assert await _status(running, good) == 200, "a token that is known needs no check"
                await running.until(lambda: _is(running, fresh, 200), "others are let in after a while")

    run(main())


async def _is(running: Running, token: str, status: int) -> bool:
    return await _status(running, token) == status


def test_a_token_that_expires_ends_on_an_open_connection(tmp_path: Path) -> None:
    async def main() -> None:
        with issuing() as issuer:
            async with gateway(tmp_path, of_cluster=issuer.settings()) as running, running.talk() as talk:
                await running.until(lambda: issuer.fetched, "the keys are fetched")
                token = issuer.token("k1", exp=time.time() + 1.5)

                async def status_is(wanted: int) -> bool:
                    return (await talk.ask(META, token)).status == wanted

                await running.until(lambda: status_is(200), "it is taken")
                await running.until(lambda: status_is(401), "it has expired")

    run(main())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[auth]\n", "nobody could be let in"),
        ('[auth]\nkeys = "4f1d7c9ab0e24c3e"\n', "file:PATH or env:NAME"),
        ('[auth]\nkeys = "file:absent.toml"\n', "can't be read"),
        ('[auth]\nkeys = "env:UNDERSTUDY_TEST_ABSENT"\n', "the environment has no"),
        (f'{JWT}jwks = "http://example.org/k"\n', "https"),
        (f'{JWT}jwks = "https://u:p@example.org/"\n', "password"),
        (f'{JWT}jwks = "file:none"\n', "can't be read"),
    ],
)
def test_a_start_with_unusable_settings_says_why(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "CLUSTER.toml"
    path.write_text(f'[[nodes]]\nname = "n1"\nmemory_mb = 9\n{text}')

    async def start() -> None:
        Secured(load_cluster(path), "g1", "g1", lambda _kind, _message: None)

    with pytest.raises(ConfigError, match=why) as caught:
        asyncio.run(start())
    assert "4f1d7c9ab0e24c3e" not in str(caught.value)


def test_keys_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = sha256(SECRET.encode()).hexdigest()
    monkeypatch.setenv("TEST_KEYS", f'[[keys]]\nname = "env"\nsha256 = "{digest}"\n')

    async def main() -> None:
        async with gateway(tmp_path, of_cluster='[auth]\nkeys = "env:TEST_KEYS"\n') as running:
            assert await _status(running, with_key(SECRET)) == 200
            assert await _status(running, with_key(LATER)) == 401

    run(main())
