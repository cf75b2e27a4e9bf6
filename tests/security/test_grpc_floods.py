"""What a gRPC client can send, open and hold, against a gateway that runs."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from secured_gateway import Running, gateway, run

from understudy.gateway.grpc_health import HEALTH
from understudy.wire.inference import SERVICE

Status = grpc.StatusCode
CHECK, WATCH = f"/{HEALTH}/Check", f"/{HEALTH}/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
INFER = f"/{SERVICE}/ModelInfer"
LIST = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
LIMITS = """
[gateway.http]
connections_max = 5
header_timeout_s = 1
body_timeout_s = 1
[gateway.grpc]
calls_max = 40
streams_max = 30
watches_max = 10

"""
UNARY = [CHECK, *(f"/{SERVICE}/{name}" for name in (
    "ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
))]  # fmt: skip


def attacking(folder: Path, attack: Callable[[Running, Any], Any]) -> None:
    async def test() -> None:
        async with gateway(folder, of_cluster=LIMITS, grpc=True) as running, channel(running) as open_channel:
            await attack(running, open_channel)
            assert await serves(open_channel)

    run(test())


@asynccontextmanager
async def channel(running: Running) -> AsyncIterator[Any]:
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.grpc_port}", own) as opened:
        yield opened


async def serves(open_channel: Any) -> bool:
    """Answers a health check; that it isn't ready is an answer."""
    answer = await open_channel.unary_unary(CHECK)(b"", timeout=5)
    return bool(health_pb2.HealthCheckResponse.FromString(answer).status)


async def refusal(call: Any, status: Status, code: str) -> None:
    async with asyncio.timeout(5):
        assert await call.code() is status, await call.details()
        assert dict(await call.trailing_metadata())["understudy-code"] == code


@pytest.mark.parametrize("method", [*UNARY, WATCH, REFLECTION], ids=lambda method: method.rpartition("/")[2])
def test_only_inference_has_large_messages(tmp_path: Path, method: str) -> None:
    """Here of a field that nobody knows, and that protobuf would keep."""
    large = b"\xfa\x7f\xc0\x84\x3d" + bytes(1_000_000)

    async def attack(_: Running, open_channel: Any) -> None:
        call = open_channel.stream_stream(method)(timeout=5)
        await call.write(large)
        await refusal(call, Status.RESOURCE_EXHAUSTED, "too-large")
        inference = open_channel.unary_unary(INFER)(large, timeout=5)
        await refusal(inference, Status.UNAVAILABLE, "unavailable")

    attacking(tmp_path, attack)


@pytest.mark.parametrize("method", [CHECK, f"/{SERVICE}/ServerLive"])
def test_what_is_no_message_is_told_so(tmp_path: Path, method: str) -> None:
    async def attack(_: Running, open_channel: Any) -> None:
        call = open_channel.unary_unary(method)(b"\x0a\xff", timeout=5)
        await refusal(call, Status.INVALID_ARGUMENT, "invalid-argument")

    attacking(tmp_path, attack)


@pytest.mark.parametrize("method", [INFER, CHECK, WATCH, REFLECTION])
def test_calls_that_send_nothing_do_not_keep_others_out(tmp_path: Path, method: str) -> None:
    async def attack(running: Running, open_channel: Any) -> None:
        async with channel(running) as second, channel(running) as third:
            silent = [
                channel.stream_stream(method)(timeout=30) for channel in (second, third) for _ in range(25)
            ]
            async with asyncio.timeout(10):
                codes = [await call.code() for call in silent]
        assert set(codes) <= {Status.DEADLINE_EXCEEDED, Status.RESOURCE_EXHAUSTED}

    attacking(tmp_path, attack)


@pytest.mark.parametrize(("method", "message"), [(WATCH, b""), (REFLECTION, LIST)])
def test_watches_and_reflection_are_bounded_together(tmp_path: Path, method: str, message: bytes) -> None:
    async def attack(running: Running, open_channel: Any) -> None:
        async with channel(running) as second:
            calls = [second.stream_stream(method)(timeout=30) for _ in range(25)]
            told = 0
            for call in calls:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await call.write(message)
                    told += await call.read() is not grpc.aio.EOF
            refused = [call for call in calls if call.done()]
            assert (told, len(refused)) == (10, 15)
            for call in refused:
                await refusal(call, Status.RESOURCE_EXHAUSTED, "shed")
            assert await serves(open_channel)

        async def answered() -> bool:
            call = open_channel.stream_stream(method)(timeout=5)
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(message)
                return bool(await call.read())
            return False

        await running.until(answered, "those that ended leave room")

    attacking(tmp_path, attack)


def test_metadata_above_the_limit_is_always_refused(tmp_path: Path) -> None:
    async def attack(_: Running, open_channel: Any) -> None:
        for _ in range(30):
            call = open_channel.unary_unary(CHECK)(b"", metadata=(("x", "y" * 17_000),), timeout=5)
            assert await call.code() is Status.RESOURCE_EXHAUSTED

    attacking(tmp_path, attack)


SILENCE_S = 3
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_HEADERS = 4
ENHANCE_YOUR_CALM = 11
REFUSED = (7, ENHANCE_YOUR_CALM)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def call_headers(path: str) -> bytes:
    """POST over http, as literals that no table keeps."""
    fields = {"content-type": "application/grpc", "te": "trailers", ":authority": "localhost"}
    named = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return b"\x83\x86\x04" + bytes([len(path)]) + path.encode() + named


class Wire:
    """HTTP/2 by hand: a client that keeps to nothing."""

    def __init__(self, port: int, sent: bytes = PREFACE + frame(SETTINGS)) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.sendall(sent)

    def send(self, data: bytes) -> None:
        with suppress(OSError):  # cut off meanwhile
            self._socket.sendall(data)

    def frames(self) -> list[tuple[int, int, bytes]]:
        """Kinds, streams and payloads until it is cut off, or nothing comes for a while."""
        self._socket.settimeout(SILENCE_S)
        received = b""
        self.cut_off = False
        try:
            while chunk := self._socket.recv(65536):
                received += chunk
            self.cut_off = True
        except TimeoutError:
            pass
        except OSError:
            self.cut_off = True
        found = []
        while len(received) >= 9:
            size = int.from_bytes(received[:3])
            found.append((received[3], int.from_bytes(received[5:9]), received[9 : 9 + size]))
            received = received[9 + size :]
        return found

    def close(self) -> None:
        self._socket.close()


def by_hand(folder: Path, attack: Callable[[int], None]) -> None:
    async def attacked(running: Running, _: Any) -> None:
        await asyncio.to_thread(attack, running.grpc_port)

    attacking(folder, attacked)


def test_one_connection_has_so_many_calls_at_once(tmp_path: Path) -> None:
    def attack(port: int) -> None:
        wire = Wire(port)
        watch = call_headers(WATCH)
        wire.send(b"".join(frame(HEADERS, END_HEADERS, 2 * n + 1, watch) for n in range(100)))
        frames = wire.frames()
        refused = {stream for kind, stream, payload in frames if kind == RST_STREAM and payload[3] in REFUSED}
        assert wire.cut_off or len(refused) >= 70, frames
        wire.close()

    by_hand(tmp_path, attack)


def test_calls_that_are_reset_at_once_do_no_harm(tmp_path: Path) -> None:
    def attack(port: int) -> None:
        wire = Wire(port)
        watch = call_headers(WATCH)
        for n in range(20_000):
            stream = 2 * n + 1
            wire.send(
                frame(HEADERS, END_HEADERS, stream, watch) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
            )
        wire.frames()
        wire.close()

    by_hand(tmp_path, attack)


def test_whoever_pings_too_often_is_cut_off(tmp_path: Path) -> None:
    def attack(port: int) -> None:
        wire = Wire(port)
        wire.send(frame(PING, 0, 0, bytes(8)) * 5)
        frames = wire.frames()
        wire.close()
        assert wire.cut_off
        assert any(kind == GOAWAY and payload[7] == ENHANCE_YOUR_CALM for kind, _, payload in frames), frames

    by_hand(tmp_path, attack)


def test_connections_that_say_nothing_are_cut_off(tmp_path: Path) -> None:
    def attack(port: int) -> None:
        wires = [Wire(port, b"") for _ in range(3)]
        for wire in wires:
            wire.frames()
            wire.close()
        assert all(wire.cut_off for wire in wires)

    by_hand(tmp_path, attack)


def test_connections_are_bounded(tmp_path: Path) -> None:
    def attack(port: int) -> None:
        wires = [Wire(port) for _ in range(20)]
        with ThreadPoolExecutor(len(wires)) as threads:
            list(threads.map(Wire.frames, wires))
        for wire in wires:
            wire.close()
        assert 0 < sum(not wire.cut_off for wire in wires) <= 5

    by_hand(tmp_path, attack)
