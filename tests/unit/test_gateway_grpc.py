"""What gRPC clients get for every outcome: a real server and channel, a worker that is played by the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import grpc
import pytest
from gateway_world import World

from understudy.gateway.api import Api
from understudy.gateway.grpc import GrpcServer
from understudy.gateway.grpc_answers import address_of, error_metadata
from understudy.settings.gateway import AdmissionSettings, GatewayTuning, GrpcLimits, HttpLimits
from understudy.wire.errors import Code, ConfigError, UnderstudyError
from understudy.wire.frames import ENCODING_PROTOBUF, Frame, FrameDecoder
from understudy.wire.inference import SERVICE, ModelInferRequest, ModelInferResponse, message
from understudy.wire.messages import Failure, Kind, Result, encode_message

BODY = ModelInferRequest(model_name="digits", id="q").SerializeToString()
STATIC = {
    "outputs": [
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [[0.5, 1.5]]},
        {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["a", "bc"]},
        {"name": "h", "datatype": "BF16", "shape": [1], "data": [1.0]},
    ]
}


class Scene:
    """A gateway with one app and two replicas, its gRPC server, and a channel to it."""

    def __init__(self, world: World, api: Api, channel: Any) -> None:
        self.world = world
        self.api = api
        self._channel = channel

    def call(self, body: bytes = BODY, timeout_s: float | None = 5.0) -> Any:
        return self._channel.unary_unary(f"/{SERVICE}/ModelInfer")(body, timeout=timeout_s)

    def stream(self) -> Any:
        return self._channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(timeout=5.0)

    async def ask(self, method: str, **fields: Any) -> Any:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=message(f"{method}Request").SerializeToString,
            response_deserializer=message(f"{method}Response").FromString,
        )
        return await call(message(f"{method}Request")(**fields), timeout=5.0)

    async def infer_frame(self, replica: str = "r1") -> Frame:
        """The next request that a worker gets."""
        link = self.world.links[replica]
        await until(lambda: bool(link.infers()))
        return link.infers()[-1]

    def reply(
        self, frame: Frame, body: bytes = b"", failure: Code | None = None, replica: str = "r1"
    ) -> None:
        answer = (
            encode_message(Result(1, 0, 1), frame.stream, body)
            if failure is None
            else encode_message(Failure(failure, "no good"), frame.stream)
        )
        [decoded] = FrameDecoder().feed(answer)
        dispatcher = self.world.gateway.dispatcher
        dispatcher.frame_received(self.world.gateway.replicas[replica], decoded, monotonic())


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop turn until `holds()`; the library's own threads need some time too."""
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.to_thread(int)


@asynccontextmanager
async def scene(settings: GatewayTuning = GatewayTuning(), **spec: Any) -> AsyncIterator[Scene]:  # noqa: B008
    world = World(settings=settings, **spec)
    api = Api(world.gateway, settings)
    api.routes_changed()
    server = GrpcServer(api, settings)
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Scene(world, api, channel)
    await server.stop(0)


def play(part: Callable[[Scene], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def whole() -> None:
        async with scene(**settings) as the_scene:
            await part(the_scene)
            assert the_scene.api.bytes_held == 0
            assert the_scene.world.gateway.dispatcher.inflight == 0

    asyncio.run(whole())


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def metadata(source: Any) -> dict[str, str]:
    return dict(source)


def test_bytes_pass_through_and_the_answer_says_who_gave_it():
    async def part(on: Scene) -> None:
        call = on.call()
        frame = await on.infer_frame()
        assert (frame.payload, frame.flags) == (BODY, ENCODING_PROTOBUF)
        response = ModelInferResponse(model_name="digits", raw_output_contents=[b"raw"])
        on.reply(frame, response.SerializeToString())
        answer = ModelInferResponse.FromString(await call)
        assert list(answer.raw_output_contents) == [b"raw"]
        assert {name: p.string_param for name, p in answer.parameters.items()} == {
            "understudy-variant": "big",
            "understudy-version": "1",
        }
        assert metadata(await call.trailing_metadata())["understudy-variant"] == "big"

    play(part)


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (Code.INVALID_ARGUMENT, grpc.StatusCode.INVALID_ARGUMENT),
        (Code.TIMEOUT, grpc.StatusCode.DEADLINE_EXCEEDED),
        (Code.CONFIG, grpc.StatusCode.FAILED_PRECONDITION),
        (Code.INTERNAL, grpc.StatusCode.INTERNAL),
    ],
)
def test_a_workers_failure_has_its_status(failure: Code, status: grpc.StatusCode):
    async def part(on: Scene) -> None:
        call = on.call()
        on.reply(await on.infer_frame(), failure=failure)
        error = await failure_of(call)
        assert (error.code(), error.details()) == (status, "no good")
        assert metadata(error.trailing_metadata())["understudy-code"] == failure

    play(part)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (ModelInferRequest(model_name="nobody").SerializeToString(), grpc.StatusCode.NOT_FOUND),
        (
            ModelInferRequest(model_name="digits", model_version="2").SerializeToString(),
            grpc.StatusCode.NOT_FOUND,
        ),
        (b"", grpc.StatusCode.NOT_FOUND),
        (BODY + b"\x3a\xd0\x0f" + bytes(2000), grpc.StatusCode.RESOURCE_EXHAUSTED),  # larger than allowed
    ],
)
def test_what_can_not_be_routed_is_refused(body: bytes, status: grpc.StatusCode):
    async def part(on: Scene) -> None:
        assert (await failure_of(on.call(body))).code() is status
        assert not on.world.links["r1"].infers()

    play(part, settings=GatewayTuning(http=HttpLimits(body_bytes_max=1000)))


def test_a_shed_call_tells_the_client_library_when_to_come_back():
    async def part(on: Scene) -> None:
        first = on.call()
        frame = await on.infer_frame()
        second = on.call()
        error = await failure_of(second)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert metadata(error.trailing_metadata()) == {
            "understudy-code": "shed",
            "grpc-retry-pushback-ms": "3000",
        }
        on.reply(frame)
        await first

    bodies = HttpLimits(body_bytes_total_max=len(BODY))
    play(part, settings=GatewayTuning(http=bodies, admission=AdmissionSettings(retry_after_s=3)))


def test_a_client_that_hangs_up_takes_its_request_back():
    async def part(on: Scene) -> None:
        call = on.call()
        frame = await on.infer_frame()
        call.cancel()
        link = on.world.links["r1"]
        await until(lambda: any(f.kind == Kind.CANCEL and f.stream == frame.stream for f in link.sent))

    play(part)


def test_the_clients_deadline_is_the_requests():
    async def part(on: Scene) -> None:
        call = on.call(timeout_s=0.2)
        await on.infer_frame()
        [request] = [f.request for f in on.world.gateway.replicas["r1"].outstanding.values()]
        assert 0 < request.deadline - request.arrived < 0.2
        error = await failure_of(call)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: request.done)

    play(part)


def test_without_a_deadline_the_apps_own_counts():
    async def part(on: Scene) -> None:
        call = on.call(timeout_s=None)
        frame = await on.infer_frame()
        [flight] = on.world.gateway.replicas["r1"].outstanding.values()
        assert flight.request.deadline - flight.request.arrived == pytest.approx(0.7)
        on.reply(frame)
        await call

    play(part, deadline_ms=700.0)


def test_a_static_answer_is_protobuf_too():
    async def part(on: Scene) -> None:
        for replica in ("r1", "r2"):
            on.world.lose_worker(replica)
        call = on.call()
        await until(lambda: bool(on.world.app.queues.waiting))
        on.world.gateway.dispatcher.waiting_room.give_up_waiting(on.world.app)
        on.world.gateway.dispatcher.fallback.tick(on.world.now)
        answer = ModelInferResponse.FromString(await call)
        assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
            ("y", "FP32", [1, 2]),
            ("t", "BYTES", [2]),
            ("h", "BF16", [1]),
        ]
        assert list(answer.raw_output_contents) == [
            b"\0\0\0\x3f\0\0\xc0\x3f",
            b"\x01\0\0\0a\x02\0\0\0bc",
            b"\x80\x3f",
        ]
        assert (answer.model_name, answer.model_version, answer.id) == ("digits", "1", "q")
        assert answer.parameters["understudy-degraded"].string_param == "static"

    play(part, static=STATIC)


def test_a_stream_is_bounded_answers_in_order_and_ends_with_its_client():
    async def part(on: Scene) -> None:
        stream = on.stream()
        link = on.world.links["r1"]
        for _ in range(5):
            await stream.write(BODY)
        await until(lambda: len(link.infers()) == 4)
        for frame in reversed(link.infers()):
            on.reply(frame, ModelInferResponse(id=str(frame.stream)).SerializeToString())
        seen = [message("ModelStreamInferResponse").FromString(await stream.read()) for _ in range(4)]
        assert [s.infer_response.id for s in seen] == [str(f.stream) for f in link.infers()[:4]]
        await until(lambda: len(link.infers()) == 5)
        stream.cancel()
        await until(lambda: on.world.gateway.dispatcher.inflight == 0)

    play(part, settings=GatewayTuning(grpc=GrpcLimits(stream_pipeline_max=4)))


def test_a_bad_request_does_not_end_its_stream():
    async def part(on: Scene) -> None:
        stream = on.stream()
        await stream.write(b"\xff\xff")
        await stream.write(BODY)
        refused = message("ModelStreamInferResponse").FromString(await stream.read())
        assert "not a protobuf message" in refused.error_message
        on.reply(await on.infer_frame(), failure=Code.INVALID_ARGUMENT)
        failed = message("ModelStreamInferResponse").FromString(await stream.read())
        assert (failed.error_message, failed.infer_response.id) == ("no good", "q")
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK

    play(part)


def test_more_calls_than_allowed_are_refused():
    async def part(on: Scene) -> None:
        call = on.call()
        frame = await on.infer_frame()
        assert (await failure_of(on.call())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        on.reply(frame)
        await call

    play(part, settings=GatewayTuning(grpc=GrpcLimits(calls_max=1)))


def test_readiness_and_refusals_of_the_repository():
    async def part(on: Scene) -> None:
        assert (await on.ask("ServerLive")).live
        assert (await on.ask("ServerReady")).ready
        assert (await on.ask("ModelReady", name="digits")).ready
        for unknown in ({"name": "nobody"}, {"name": "digits", "version": "2"}):
            assert not (await on.ask("ModelReady", **unknown)).ready
            assert (await failure_of(on.ask("ModelMetadata", **unknown))).code() is grpc.StatusCode.NOT_FOUND
        await on.ask("RepositoryModelLoad", model_name="digits")
        refused = await failure_of(on.ask("RepositoryModelUnload", model_name="digits"))
        assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
        on.api.draining = True
        assert not (await on.ask("ServerReady")).ready

    play(part)


def test_a_port_that_is_taken_is_a_configuration_error():
    async def start(port: int) -> None:
        server = GrpcServer(Api(World().gateway, GatewayTuning()), GatewayTuning())
        with pytest.raises(ConfigError, match="can't listen"):
            await server.start(f"127.0.0.1:{port}")
        await server.stop(0)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        asyncio.run(start(taken.getsockname()[1]))


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:50000", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:50000", "2001:db8::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", "fe80::1%eth0"),
    ],
)
def test_a_client_is_its_address_whatever_its_port(peer: str, address: str):
    assert address_of(peer) == address


def test_a_client_beyond_its_rate_is_told_when_to_come_back():
    error = UnderstudyError(Code.RATE_LIMITED, "too often", wait_s=7.25)
    assert metadata(error_metadata(error, 1))["grpc-retry-pushback-ms"] == "7250"


def test_a_request_that_our_own_mistake_breaks_ends_alone_and_leaves_no_count_behind() -> None:
    async def part(on: Scene) -> None:
        dispatcher = on.world.gateway.dispatcher
        submit = dispatcher.submit

        def broken(request: Any, now: float) -> None:
            submit(request, now)
            raise ValueError("a mistake")

        dispatcher.submit = broken  # type: ignore[method-assign]
        error = await failure_of(on.call())
        assert error.code() is grpc.StatusCode.INTERNAL
        dispatcher.submit = submit  # type: ignore[method-assign]
        assert on.api.crashes.contained == {"request": 1}
        call = asyncio.ensure_future(on.call())
        await until(lambda: len(on.world.links["r1"].infers()) == 2)
        on.reply(await on.infer_frame())
        assert await call

    play(part)
