"""gRPC behind TLS and keys, on real processes: who is let in, to what, and with which certificate."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from families import write_linear_app
from grpc_calls import METHOD, infer_message
from harness import Harness, running
from secured_gateway import gateway, run, trusting, write_pair
from test_secured_cluster import KEY, OF_GATEWAY, OPERATOR_KEY, SECURED, WRONG_KEY, bearer, write_secrets
from tests.e2e.triton_grpc import aio_client as triton

from understudy.wire.inference import SERVICE, message

LIVE, META, INDEX = (f"/{SERVICE}/{name}" for name in ("ServerLive", "ServerMetadata", "RepositoryIndex"))
PLAIN, LIMITED = "plain", "plenty"  # the key may use both, the token the former only
Call = tuple[tuple[str, str], ...]
Status = grpc.StatusCode


def with_bearer(secret: str) -> Call:
    return (("authorization", f"Bearer {secret}"),)


@asynccontextmanager
async def channel_to(address: str, authority: trustme.CA, *client: bytes) -> AsyncIterator[Any]:
    """Trusts `authority` alone; `client` is a key and its certificate."""
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), *client)
    own = [("grpc.use_local_subchannel_pool", 1)]  # else it may share another channel's connection
    async with grpc.aio.secure_channel(address, credentials, own) as channel:
        yield channel


def grpc_address(harness: Harness) -> str:
    _, _, port = harness.cluster.config.gateway_named("g1").grpc.rpartition(":")
    return f"localhost:{port}"


async def status_of(channel: Any, method: str, body: bytes = b"", metadata: Call = ()) -> Status:
    call = channel.unary_unary(method)(body, metadata=metadata, timeout=5)
    code: Status = await call.code()
    return code


async def callers_are_told_apart(channel: Any, token: str) -> None:
    key, x_key = with_bearer(KEY), (("x-api-key", KEY),)
    operator, wrong = with_bearer(OPERATOR_KEY), with_bearer(WRONG_KEY)
    plain, limited = infer_message(PLAIN), infer_message(LIMITED)
    index = message("RepositoryIndexRequest")().SerializeToString()
    described = message("ModelMetadataRequest")(name=LIMITED).SerializeToString()
    expected: list[tuple[str, bytes, Call, Status]] = [
        (METHOD, plain, key, Status.OK),
        (METHOD, plain, x_key, Status.OK),
        (METHOD, plain, with_bearer(token), Status.OK),
        (METHOD, plain, (), Status.UNAUTHENTICATED),
        (METHOD, plain, wrong, Status.UNAUTHENTICATED),
        (METHOD, plain, with_bearer(token[:-6] + "AAAAAA"), Status.UNAUTHENTICATED),
        (METHOD, plain, key + key, Status.UNAUTHENTICATED),
        (METHOD, plain, key + x_key, Status.UNAUTHENTICATED),
        (METHOD, limited, with_bearer(token), Status.PERMISSION_DENIED),
        (METHOD, infer_message("nobody"), key, Status.PERMISSION_DENIED),  # nor is it told what exists
        (METHOD, infer_message("nobody"), operator, Status.NOT_FOUND),
        (f"/{SERVICE}/ModelMetadata", described, with_bearer(token), Status.PERMISSION_DENIED),
        (f"/{SERVICE}/ModelMetadata", described, key, Status.OK),
        (LIVE, b"", (), Status.OK),
        (META, b"", (), Status.UNAUTHENTICATED),
        (META, b"", key, Status.OK),
        (INDEX, index, key, Status.PERMISSION_DENIED),
        (INDEX, index, operator, Status.OK),
    ]
    for method, body, metadata, status in expected:
        assert await status_of(channel, method, body, metadata) is status, (method, metadata, status)


async def a_strangers_body_is_not_waited_for(channel: Any) -> None:
    call = channel.stream_unary(METHOD)(timeout=5)
    assert await call.code() is Status.UNAUTHENTICATED


async def a_stream_checks_each_request(channel: Any, token: str) -> None:
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(metadata=with_bearer(token), timeout=5)
    errors = []
    for app in (PLAIN, LIMITED, PLAIN):
        await stream.write(infer_message(app))
        answer = message("ModelStreamInferResponse").FromString(await stream.read())
        errors.append(answer.error_message)
    assert errors == ["", f"jwt:robot-9 may not use {LIMITED!r}", ""]
    stream.cancel()
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(timeout=5)
    await stream.write(infer_message(PLAIN))
    answer = message("ModelStreamInferResponse").FromString(await stream.read())
    assert answer.error_message.startswith("send an API key or a token")
    stream.cancel()


async def a_rate_is_the_keys_own(address: str, authority: trustme.CA) -> None:
    """However many connections it makes."""
    for status in (Status.OK, Status.OK, Status.RESOURCE_EXHAUSTED):
        async with channel_to(address, authority) as channel:
            call = channel.unary_unary(METHOD)(infer_message(LIMITED), metadata=with_bearer(KEY), timeout=5)
            assert await call.code() is status
            told = dict(await call.trailing_metadata())
    assert told["understudy-code"] == "rate-limited"
    assert 5_000 < int(told["grpc-retry-pushback-ms"]) <= 10_000
    async with channel_to(address, authority) as channel:
        assert (
            await status_of(channel, METHOD, infer_message(LIMITED), with_bearer(OPERATOR_KEY)) is Status.OK
        )


async def tritons_client_says_who_it_is(address: str, authority_path: Path) -> None:
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor._raw_content = bytes(16)
    async with triton.InferenceServerClient(
        address, ssl=True, root_certificates=str(authority_path)
    ) as client:
        result = await client.infer(PLAIN, [tensor], headers={"authorization": f"Bearer {KEY}"})
        assert result.as_numpy("y").shape == (1, 3)
        with pytest.raises(triton.InferenceServerException, match="API key or a token") as caught:
            await client.infer(PLAIN, [tensor])
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"


async def certificates_change_under_open_channels(harness: Harness, former: trustme.CA) -> None:
    address, latter = grpc_address(harness), trustme.CA()
    async with grpc.aio.insecure_channel(address) as plaintext:
        assert await status_of(plaintext, LIVE) is Status.UNAVAILABLE
    async with channel_to(address, latter) as stranger:
        assert await status_of(stranger, LIVE) is Status.UNAVAILABLE
    async with channel_to(address, former) as old:
        assert await status_of(old, LIVE) is Status.OK
        write_pair(harness.folder, latter)
        harness.cluster.roles["gateway", "g1"].send(signal.SIGHUP)

        async def replaced() -> bool:
            async with channel_to(address, latter) as new:
                return await status_of(new, LIVE) is Status.OK

        await harness.until(replaced, 10, "a new channel gets the new certificate")
        assert await status_of(old, LIVE) is Status.OK, "a channel outlives its certificate's file"
        async with channel_to(address, former) as new:
            assert await status_of(new, LIVE) is Status.UNAVAILABLE


def test_grpc_behind_tls_and_keys(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    write_pair(tmp_path, authority)
    token = write_secrets(tmp_path)
    write_linear_app(tmp_path / "apps" / PLAIN, PLAIN, "standard")
    rate = "client_rate = { requests_per_s = 0.1, burst = 2 }"
    write_linear_app(tmp_path / "apps" / LIMITED, LIMITED, "standard", rate)

    async def main() -> None:
        async with running(
            tmp_path, extra=SECURED, of_gateway=OF_GATEWAY, tls=trusting(authority),
            credentials=bearer(OPERATOR_KEY), grpc=True,
        ) as harness:  # fmt: skip
            address = grpc_address(harness)
            async with channel_to(address, authority) as channel:
                await callers_are_told_apart(channel, token)
                await a_strangers_body_is_not_waited_for(channel)
                await a_stream_checks_each_request(channel, token)
            await a_rate_is_the_keys_own(address, authority)
            await tritons_client_says_who_it_is(address, tmp_path / "ca.pem")
            await certificates_change_under_open_channels(harness, authority)

    asyncio.run(main())


def test_grpc_clients_need_a_certificate_where_that_is_asked(tmp_path: Path) -> None:
    authority, clients, strangers = trustme.CA(), trustme.CA(), trustme.CA()
    write_pair(tmp_path, authority)
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")

    def pair(issuer: trustme.CA) -> tuple[bytes, bytes]:
        leaf = issuer.issue_cert("client")
        return leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes()

    async def main() -> None:
        settings = OF_GATEWAY + 'client_ca = "clients.pem"\n'
        async with gateway(tmp_path, settings, grpc=True) as running:
            for client, status in (
                (pair(clients), Status.OK),
                (pair(strangers), Status.UNAVAILABLE),
                ((), Status.UNAVAILABLE),
            ):
                async with channel_to(f"localhost:{running.grpc_port}", authority, *client) as channel:
                    assert await status_of(channel, LIVE) is status

    run(main())
