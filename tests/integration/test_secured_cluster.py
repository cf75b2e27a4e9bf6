"""A whole cluster behind TLS and keys: clients, the command line, and no secret in what is written."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from families import ROWS, write_linear_app, write_mischief_app
from harness import Harness, infer_body, running
from secured_gateway import trusting, write_pair

KEY, OPERATOR_KEY, WRONG_KEY = (f"{number}c0ffee{number}5ec4e7{number}" * 2 for number in (1, 2, 3))
INFER = "/v2/models/plain/infer"
SECURED = """
[auth]
keys = "file:keys.toml"

[auth.jwt]
issuer = "me"
audience = "us"
jwks = "file:jwks.json"

[[auth.jwt.grants]]
value = "robot-*"
apps = ["plain"]
"""
OF_GATEWAY = '[gateways.tls]\ncert = "cert.pem"\nkey = "key.pem"\n'


def bearer(secret: str) -> str:
    return f"Authorization: Bearer {secret}\r\n"


def write_secrets(folder: Path) -> str:
    """Keys, the issuer's key; a token of the issuer."""
    entries = [
        ("client", KEY, 'apps = ["pl*", "moody"]'),
        ("boss", OPERATOR_KEY, 'operator = true\napps = ["*"]'),
    ]
    text = "\n".join(
        f'[[keys]]\nname = "{name}"\nsha256 = "{sha256(key.encode()).hexdigest()}"\n{more}'
        for name, key, more in entries
    )
    (folder / "keys.toml").write_text(text)
    (folder / "keys.toml").chmod(0o600)
    key = ec.generate_private_key(ec.SECP256R1())
    public = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    (folder / "jwks.json").write_text(json.dumps({"keys": [{"kid": "k", **public}]}))
    claims = {"iss": "me", "aud": "us", "sub": "robot-9", "exp": time.time() + 600}
    return jwt.encode(claims, key, "ES256", headers={"kid": "k"})


def command(harness: Harness, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment: Mapping[str, str] = {**os.environ, "UNDERSTUDY_CA": "", "UNDERSTUDY_API_KEY": "", **env}
    return subprocess.run(
        [sys.executable, "-m", "understudy", *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=environment, cwd=harness.folder,
    )  # fmt: skip


async def clients_are_told_apart(harness: Harness, token: str) -> None:
    body = infer_body(ROWS)

    async def status(headers: str, path: str = INFER, data: bytes = body) -> int:
        harness.credentials = ""
        return (await harness.ask("POST", path, data, headers)).status

    assert await status(bearer(KEY)) == 200
    assert await status(f"X-API-Key: {KEY}\r\n") == 200
    assert await status(bearer(token)) == 200
    assert await status(bearer(token), "/v2/models/moody/infer") == 403
    assert await status("") == 401
    assert await status(bearer(WRONG_KEY)) == 401
    assert await status(bearer(token[:-6] + "AAAAAA")) == 401
    assert await status(f"X-API-Key: {KEY}\r\nUnderstudy-Timeout-Ms: x\r\n") == 400
    harness.credentials = bearer(OPERATOR_KEY)


async def poison_is_traced(harness: Harness) -> None:
    poison = infer_body([[666.0, 0, 0, 0]], "FP64")
    answer = await harness.ask("POST", "/v2/models/moody/infer", poison, "X-Request-Id: bad-one\r\n")
    assert (answer.status, answer.headers["x-request-id"]) == (500, "bad-one")

    async def recorded() -> Any:
        return [e for e in await harness.events("request.poisoned") if e["data"] == {"request_id": "bad-one"}]

    await harness.until(recorded, 10, "the event names the request")


def command_line(harness: Harness) -> list[str]:
    """Everything that it wrote."""
    url = f"https://localhost:{harness.ports[0]}"
    (harness.folder / "key").write_text(f"{KEY}\n")
    ask = ("infer", "plain", "--data", json.dumps(ROWS), "--gateway", url, "--json")
    done = command(harness, *ask, "--api-key-file", "key", "--ca", "ca.pem")
    assert done.returncode == 0, done.stderr
    by_environment = command(harness, *ask, UNDERSTUDY_API_KEY=KEY, UNDERSTUDY_CA="ca.pem")
    assert by_environment.returncode == 0, by_environment.stderr
    refused = command(harness, *ask, UNDERSTUDY_API_KEY=WRONG_KEY, UNDERSTUDY_CA="ca.pem")
    assert (refused.returncode, json.loads(refused.stderr)["code"]) == (2, "unauthenticated")
    distrusted = command(harness, *ask, UNDERSTUDY_API_KEY=KEY)
    assert distrusted.returncode == 2
    assert "certificate" in distrusted.stderr
    nobody = ("status", "--url", "http://127.0.0.1:1", "--gateway", url, "--json")
    seen = command(harness, *nobody, UNDERSTUDY_API_KEY=OPERATOR_KEY, UNDERSTUDY_CA="ca.pem")
    assert seen.returncode == 0, seen.stderr
    forbidden = command(harness, *nobody, "--api-key-file", "key", "--ca", "ca.pem")
    assert json.loads(forbidden.stderr)["code"] == "forbidden"
    runs = (done, by_environment, refused, distrusted, seen, forbidden)
    return [text for run in runs for text in (run.stdout, run.stderr)]


def test_a_secured_cluster_serves_and_tells_no_secret(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    leaf = write_pair(tmp_path, authority)
    token = write_secrets(tmp_path)
    write_linear_app(tmp_path / "apps" / "plain", "plain", "standard")
    write_mischief_app(tmp_path / "apps" / "moody", "moody", tmp_path / "orders")

    async def main() -> list[str]:
        secured = {"extra": SECURED, "of_gateway": OF_GATEWAY}
        async with running(
            tmp_path, **secured, tls=trusting(authority), credentials=bearer(OPERATOR_KEY)
        ) as harness:
            await clients_are_told_apart(harness, token)
            await poison_is_traced(harness)
            (tmp_path / "keys.toml").write_text("[[keys]]\nkey = " + KEY)  # a mistake of an operator
            harness.cluster.roles["gateway", "g1"].send(signal.SIGHUP)
            failed = await harness.until(
                lambda: harness.events("keys.reload_failed"), 10, "the broken file is reported"
            )
            written = [json.dumps(failed), json.dumps(await harness.gateway())]
            written += await asyncio.to_thread(command_line, harness)
            for arguments in (("events", "--limit", "500", "--json"), ("status", "--json")):
                written.append(json.dumps(await asyncio.to_thread(harness.cli, *arguments)))
            return written

    written = asyncio.run(main())
    written += [path.read_text(errors="replace") for path in (tmp_path / "data" / "logs").iterdir()]
    kept = [
        path for path in (tmp_path / "data").rglob("*") if path.is_file() and path.stat().st_size < 1_000_000
    ]
    written += [path.read_bytes().decode("latin-1") for path in kept]
    key_lines = leaf.private_key_pem.bytes().decode().splitlines()[1:-1]
    signature = token.rpartition(".")[2]
    for secret in (KEY, OPERATOR_KEY, WRONG_KEY, token, signature, *key_lines):
        assert not [text for text in written if secret in text], "a secret was written"
    assert any("request.poisoned" in text for text in written), "we looked at the right places"
