"""HTTPS with real certificates: who is let in, and how a certificate is replaced while requests go on."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from harness import closed, request_bytes
from secured_gateway import Running, gateway, run, trusting, write_pair

from understudy.config import load_cluster
from understudy.gateway.handshakes import PAUSE_S
from understudy.gateway.secured import Secured
from understudy.wire.errors import ConfigError

TLS = """
[gateways.tls]
cert = "cert.pem"
key = "key.pem"
"""
LIVE = "/v2/health/live"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_new_certificates_lose_no_request(tmp_path: Path, authority: trustme.CA) -> None:
    write_pair(tmp_path, authority)
    context = trusting(authority)
    statuses: list[int] = []
    done = asyncio.Event()

    async def kept(running: Running) -> None:
        async with running.talk(context) as talk:
            while not done.is_set():
                statuses.append((await talk.ask()).status)

    async def fresh(running: Running) -> None:
        while not done.is_set():
            statuses.append((await running.ask(LIVE, context=context)).status)

    async def main() -> None:
        async with gateway(tmp_path, TLS) as running, running.talk(context) as old:
            async with asyncio.TaskGroup() as clients:
                for _ in range(2):
                    clients.create_task(kept(running))
                    clients.create_task(fresh(running))
                seen = {old.certificate}
                for _ in range(3):
                    write_pair(tmp_path, authority)
                    os.kill(os.getpid(), signal.SIGHUP)

                    async def replaced() -> bool:
                        async with running.talk(context) as new:
                            found = new.certificate not in seen
                            seen.add(new.certificate)
                            return found

                    await running.until(replaced, "a new connection gets the new certificate")
                done.set()
            assert len(running.told("certificate.reloaded")) >= 3
            assert (await old.ask()).status == 200, "a connection outlives its certificate's file"
            assert old.certificate in seen

    run(main())
    assert len(statuses) > 50
    assert set(statuses) == {200}


def test_a_broken_certificate_changes_nothing(tmp_path: Path, authority: trustme.CA) -> None:
    write_pair(tmp_path, authority)
    context = trusting(authority)

    async def main() -> None:
        async with gateway(tmp_path, TLS) as running:
            for broken in ("", "-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n", None):
                before = len(running.told("certificate.reload_failed"))
                if broken is None:  # the key of another certificate, as in the middle of a replacement
                    authority.issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "key.pem")
                else:
                    (tmp_path / "cert.pem").write_text(broken)
                await running.until(
                    lambda before=before: len(running.told("certificate.reload_failed")) > before,
                    "it is said that the file is broken",
                )
                assert (await running.ask(LIVE, context=context)).status == 200
            (tmp_path / "key.pem").unlink()
            assert (await running.ask(LIVE, context=context)).status == 200
            write_pair(tmp_path, authority)
            await running.until(lambda: running.told("certificate.reloaded"), "the mended files are used")
            assert (await running.ask(LIVE, context=context)).status == 200

    run(main())


def test_clients_need_a_certificate_where_that_is_asked(tmp_path: Path, authority: trustme.CA) -> None:
    write_pair(tmp_path, authority)
    clients, strangers = trustme.CA(), trustme.CA()
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")

    def context_of(issuer: trustme.CA | None) -> ssl.SSLContext:
        context = trusting(authority)
        if issuer is not None:
            issuer.issue_cert("client").configure_cert(context)
        return context

    async def let_in(running: Running, issuer: trustme.CA | None) -> bool:
        try:
            return (await running.ask(LIVE, context=context_of(issuer))).status == 200
        except (OSError, ssl.SSLError):
            return False

    async def main() -> None:
        async with gateway(tmp_path, TLS + 'client_ca = "clients.pem"\n') as running:
            assert await let_in(running, clients)
            assert not await let_in(running, None)
            assert not await let_in(running, strangers)
            strangers.cert_pem.write_to_path(tmp_path / "clients.pem")
            await running.until(lambda: running.told("certificate.reloaded"), "the new authority is known")
            assert await let_in(running, strangers)
            assert not await let_in(running, clients), "the former authority is trusted no more"

    run(main())


def test_what_is_not_tls_or_too_old_gets_nothing(tmp_path: Path, authority: trustme.CA) -> None:
    write_pair(tmp_path, authority)
    old = trusting(authority)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2

    async def main() -> None:
        async with gateway(tmp_path, TLS + 'version_min = "1.3"\n') as running:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await running.ask(LIVE, context=old)
            with pytest.raises(ConnectionError):
                await running.ask(LIVE)  # plain HTTP
            async with running.talk() as rubbish:
                rubbish.writer.write(os.urandom(2000))
                with suppress(ConnectionError):
                    assert b"HTTP/" not in await rubbish.reader.read()
            assert (await running.ask(LIVE, context=trusting(authority))).status == 200

    run(main())


def test_many_answers_and_a_large_one_come_whole(
    tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    write_pair(tmp_path, authority)

    async def main() -> None:
        async with gateway(tmp_path, TLS) as running, running.talk(trusting(authority)) as talk:
            answers = 50
            talk.writer.write(request_bytes("GET", LIVE) * answers)
            read = b""
            while read.count(b'{"live":true}') < answers:
                read += await talk.reader.read(65536)
            missing = await talk.send(request_bytes("POST", "/v2/models/x/infer", b" " * 3_000_000))
            assert missing.status == 503  # it has no table yet

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(main())
    assert not caplog.records, "the end of a TLS connection is nothing to warn of"


def test_a_start_with_unusable_files_says_which(tmp_path: Path, authority: trustme.CA) -> None:
    leaf = write_pair(tmp_path, authority)
    path = tmp_path / "CLUSTER.toml"
    path.write_text(f'[[nodes]]\nname = "n1"\nmemory_mb = 9\n[[gateways]]\nname = "g1"\n{TLS}')
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    (tmp_path / "key.pem").write_bytes(locked)
    with pytest.raises(ConfigError, match="key"):  # and nobody is asked for a password
        Secured(load_cluster(path), "g1", "g1", lambda _kind, _message: None)
    (tmp_path / "key.pem").unlink()
    with pytest.raises(ConfigError, match="No such file"):
        Secured(load_cluster(path), "g1", "g1", lambda _kind, _message: None)


def test_a_key_that_everybody_can_read_is_reported(tmp_path: Path, authority: trustme.CA) -> None:
    write_pair(tmp_path, authority)
    (tmp_path / "key.pem").chmod(0o644)

    async def main() -> None:
        async with gateway(tmp_path, TLS) as running:
            (message,) = running.told("secret.exposed")
            assert "key.pem" in message

    run(main())


def test_clients_that_begin_and_fall_silent_are_bounded_in_number_and_time(
    tmp_path: Path, authority: trustme.CA
) -> None:
    write_pair(tmp_path, authority)
    limits = "[gateway.http]\nconnections_max = 3\nheader_timeout_s = 1\n"

    async def main() -> None:
        async with gateway(tmp_path, TLS, limits, grpc=True) as running:
            for port in (running.port, running.grpc_port):
                silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
                async with asyncio.timeout(5):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    assert await reader.read() == b"", "one more is let go at once"
                    await closed(writer)
                    assert not any(reader.at_eof() for reader, _ in silent)
                    for reader, writer in silent:
                        assert await reader.read() == b"", "nobody holds a place for long"
                        await closed(writer)
            assert not running.process.api.handshakes
            assert (await running.ask(LIVE, context=trusting(authority))).status == 200

    run(main())


def test_a_gateway_without_a_free_descriptor_lets_clients_in_when_it_has_one(
    tmp_path: Path, authority: trustme.CA
) -> None:
    write_pair(tmp_path, authority)

    async def main() -> None:
        async with gateway(tmp_path, TLS) as running:
            hoard: list[int] = []
            client = socket.socket()
            client.setblocking(False)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            context = trusting(authority)
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
            try:
                for _ in range(2):  # again, for what a thread had open at that moment
                    with suppress(OSError):
                        while True:
                            hoard.append(os.dup(0))
                    await asyncio.sleep(0.2)
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", running.port))
                await asyncio.sleep(3 * PAUSE_S)  # it has tried, and still does
                assert not running.process.api.handshakes
            finally:
                for number in hoard:
                    os.close(number)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            _, writer = await asyncio.open_connection(sock=client, ssl=context, server_hostname="localhost")
            await closed(writer)

    run(main())
