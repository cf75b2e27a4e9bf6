"""The Open Inference Protocol over gRPC, on the gateway's own loop.

Lives here: the server, what each method does, deadlines and cancellation. ModelInfer takes and gives raw
bytes: of a request only the names are read, and the worker decodes it. Does not live here: where a request
goes (`core`) and what answers look like (`grpc_answers`).

The library is slower than our own HTTP by an order, and makes a task per call; that is its price.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from time import monotonic
from typing import Any, NoReturn, TypeVar

import grpc

from understudy.core.gateway.rotation import App, Request, Source
from understudy.gateway import grpc_answers as answers
from understudy.gateway.api import Api
from understudy.gateway.auth import Identity, headers_of, may_be_answered_by
from understudy.gateway.grpc_health import HEALTH, REFLECTION, HealthService, Reflection, path_of
from understudy.gateway.grpc_methods import PlainMethods
from understudy.gateway.grpc_reading import Reading
from understudy.gateway.tls import Certificate, ServerContext
from understudy.invariants import InvariantBroken
from understudy.settings.gateway import GatewayTuning
from understudy.wire import inference
from understudy.wire.errors import Code, ConfigError, InvalidArgument, UnderstudyError
from understudy.wire.frames import ENCODING_PROTOBUF, Buffer
from understudy.wire.messages import Result
from understudy.wire.protobuf import read_infer_head
from understudy.wire.statics import Static

# A client stops waiting at its deadline; answered a moment before it, it hears why, and the replica that
# didn't answer in time is held to account.
DEADLINE_MARGIN_S = 0.005
DEADLINE_MARGIN_FRACTION = 0.1  # at most
SETTLE_S = 0.5  # for every process of a gateway to take no new connections
ANSWER_BYTES_COUNTED = 16 * 1024  # of one answer; smaller ones aren't worth it
AGE_JITTER = 1.1  # by which the library lets a connection outlive its age

Answer = TypeVar("Answer", bytes, None)


class Caller:
    """Who makes a call; its address is worked out when it is wanted."""

    __slots__ = ("_context",)

    def __init__(self, context: Any) -> None:
        self._context = context

    @property
    def address(self) -> str:
        return answers.address_of(self._context.peer())


class GrpcRequest(Request):
    """A request whose end is awaited by its call."""

    __slots__ = ("address", "ended", "held_bytes", "id_bytes", "identity")

    flags = ENCODING_PROTOBUF
    ended: asyncio.Future[tuple[bytes, answers.Metadata]]  # set by whoever made it
    id_bytes: bytes
    identity: Identity | None
    address: str  # of who asks
    held_bytes: int  # of its body, and then of its answer

    @property
    def id(self) -> str:
        return self.id_bytes.decode(errors="replace")

    def may_ask(self, app: App) -> bool:
        return may_be_answered_by(self.identity, self.app.spec, app.spec)

    def answered(self, source: Source, result: Result, body: Buffer) -> None:
        try:
            parameters, metadata = answers.provenance(
                source.variant, source.version, source.degraded, source.other_app
            )
            self._end(b"".join((body, parameters)), metadata)
        except Exception as error:  # its call raises it; the dispatcher is in the middle of something
            self._broken(error)

    def answered_static(self, static: Static) -> None:
        spec = self.app.spec
        parameters, metadata = answers.provenance("static", spec.version, "static")
        try:
            answer = answers.static_answer(spec, static, self.body, self.id_bytes)
        except InvalidArgument as error:  # it would have been refused by a replica too
            self.failed(error)
        except Exception as error:
            self._broken(error)
        else:
            self._end(answer + parameters, metadata)

    def failed(self, error: UnderstudyError) -> None:
        self._broken(error)

    def _broken(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)

    def _end(self, answer: bytes, metadata: answers.Metadata) -> None:
        if not self.ended.done():  # else its call was cancelled in this turn of the loop
            self.ended.set_result((answer, metadata))


class GrpcServer:
    """Serves one gateway on one address."""

    def __init__(self, api: Api, settings: GatewayTuning) -> None:
        self._api = api
        self._gateway = api.gateway
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._server = grpc.aio.server(
            options=_options(settings, api.connections.limit), maximum_concurrent_rpcs=settings.grpc.calls_max
        )
        self._reading = Reading(settings)
        self._listeners: list[socket.socket] = []
        self._server.add_generic_rpc_handlers(self._services())

    def _services(self) -> Iterator[Any]:
        unary, stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        methods = {
            "ModelInfer": unary(self._model_infer),
            "ModelStreamInfer": stream(self._model_stream_infer),
        }
        for method, (answer, path) in PlainMethods(self._api).table().items():
            methods[method] = unary(self._plain(answer, path, inference.message(f"{method}Request")))
        yield grpc.method_handlers_generic_handler(inference.SERVICE, methods)
        health = HealthService(self._api, self._reading)
        check = self._plain(health.check, path_of, health.asked)
        methods = {"Check": unary(check), "Watch": stream(self._refusing(health.watch))}
        yield grpc.method_handlers_generic_handler(HEALTH, methods)
        methods = {"ServerReflectionInfo": stream(self._refusing(Reflection(self._reading).answer))}
        yield grpc.method_handlers_generic_handler(REFLECTION, methods)

    async def start(self, address: str, tls: ServerContext | None = None) -> int:
        """Listen on "host:port"; returns the port, which is chosen for 0. Raises `ConfigError`."""
        try:
            if tls is None:
                port: int = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, _credentials(tls))
        except RuntimeError as error:
            raise ConfigError(f"gateways: grpc: can't listen on {address}: {error}") from error
        await self._server.start()
        self._listeners = _listening_on(port)
        return port

    async def stop(self, drain_timeout_s: float) -> None:
        """Take no new connections, then no new calls; let the running ones end, cut off what lasts longer.

        A client that is told to leave connects anew at once. Were another process of this gateway just
        closing too, it might be refused there, and its library would then give up for a second.
        """
        for listener in self._listeners:
            with listener:
                listener.shutdown(socket.SHUT_RD)
        age_s = self._settings.grpc.connection_age_s_max
        wait_s = SETTLE_S if age_s is None else SETTLE_S + age_s * AGE_JITTER
        wait_s = min(wait_s, drain_timeout_s / 2)
        await asyncio.sleep(wait_s)
        await self._server.stop(drain_timeout_s - wait_s)

    # inference

    async def _model_infer(self, _requests: Any, context: Any) -> bytes:
        try:
            self._meet(context)
            request = self._submit(await self._reading.message(context), context)
            try:
                answer, metadata = await request.ended
            finally:
                self._finish(request)
            if len(answer) >= ANSWER_BYTES_COUNTED:
                context.add_done_callback(lambda _: self._let_go(request))
                self._hold(request, len(answer))
        except UnderstudyError as error:
            await self._abort(context, error)
        except (Exception, InvariantBroken) as error:
            self._api.crashes.contain("request", error)
            await self._abort(context, UnderstudyError(Code.INTERNAL, "the gateway failed this request"))
        context.set_trailing_metadata(metadata)
        return answer

    async def _model_stream_infer(self, _requests: Any, context: Any) -> None:
        """Answers in the order of the requests, a bounded number of which are in flight together."""
        room = asyncio.Semaphore(self._settings.grpc.stream_pipeline_max)
        begun: asyncio.Queue[GrpcRequest | bytes | None] = asyncio.Queue()  # bounded by `room`
        unfinished: set[GrpcRequest] = set()

        async def answer() -> None:
            while (request := await begun.get()) is not None:
                response = request if isinstance(request, bytes) else await _stream_response(request)
                if isinstance(request, GrpcRequest):
                    self._finish(request)
                    try:
                        self._hold(request, len(response))
                    except UnderstudyError as error:
                        response = answers.stream_error(error, request.id_bytes)
                await context.write(response)
                if isinstance(request, GrpcRequest):
                    unfinished.discard(request)
                    self._let_go(request)
                room.release()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(answer())
                while (message := await context.read()) is not grpc.aio.EOF:
                    await room.acquire()
                    try:
                        request = self._submit(message, context)
                    except UnderstudyError as error:
                        begun.put_nowait(answers.stream_error(error, b""))
                    else:
                        unfinished.add(request)
                        begun.put_nowait(request)
                begun.put_nowait(None)
        finally:
            for request in unfinished:
                self._finish(request)

    def _meet(self, context: Any) -> None:
        """Take no body from a stranger. Raises as `Authenticator.identify`."""
        if self._api.authenticator is not None:
            peer = Caller(context)
            try:
                self._api.authenticator.identify(headers_of(context.invocation_metadata()), peer)
            except UnderstudyError as error:
                self._api.note_refusal(error, b"gRPC ModelInfer", b"", peer.address)
                raise

    def _submit(self, message: bytes, context: Any) -> GrpcRequest:
        """Hand a request to the dispatcher. `_finish` must be called when nobody waits for it any more."""
        head = read_infer_head(message)
        api = self._api
        identity, peer = None, Caller(context)
        if api.authenticator is not None:
            headers = headers_of(context.invocation_metadata())
            try:
                identity = api.authenticator.check(headers, head.model_name, peer)
            except UnderstudyError as error:
                api.note_refusal(error, b"gRPC ModelInfer", head.model_name.encode(), peer.address)
                raise
        app = self._app(head.model_name, head.model_version)
        now = monotonic()
        request = GrpcRequest(app, message, now, now + self._patience_s(app, context.time_remaining()))
        request.ended = self._loop.create_future()
        request.id_bytes = head.id
        request.identity = identity
        request.address = peer.address
        request.client = request.address if identity is None else identity.client
        self._hold(request, len(message))
        try:
            self._gateway.dispatcher.submit(request, now)
        except BaseException:
            self._finish(request)
            raise
        return request

    def _finish(self, request: GrpcRequest) -> None:
        """The call is over, by an answer or because the client is gone."""
        self._let_go(request)
        if request.ended.done() and not request.ended.cancelled():
            request.ended.exception()  # asyncio minds a failure that nobody looks at
        if not request.done:
            self._gateway.dispatcher.cancel(request)

    def _hold(self, request: GrpcRequest, size: int) -> None:
        """Raises SHED if its client may not have so much held."""
        api = self._api
        request.held_bytes = size
        api.bytes_held += size
        api.calls.add(request)
        refusal = api.over_share(request.address, request.app.spec.app)
        if refusal is not None:
            self._let_go(request)
            raise refusal

    def _let_go(self, request: GrpcRequest) -> None:
        self._api.bytes_held -= request.held_bytes
        request.held_bytes = 0
        self._api.calls.discard(request)

    def _patience_s(self, app: App, remaining_s: float | None) -> float:
        """The client's own deadline; without one, the app's."""
        if remaining_s is None:
            return app.spec.deadline_ms / 1000
        margin_s = min(DEADLINE_MARGIN_S, remaining_s * DEADLINE_MARGIN_FRACTION)
        return min(remaining_s - margin_s, self._settings.admission.deadline_ms_max / 1000)

    # everything else

    def _plain(
        self, answer: Callable[[Any], Any], path: Callable[[Any], str], kind: Any
    ) -> Callable[[Any, Any], Awaitable[bytes]]:
        async def serve(context: Any) -> bytes:
            message = await self._reading.small(context, kind)
            try:
                if self._api.authenticator is not None:
                    headers = headers_of(context.invocation_metadata())
                    self._api.authenticator.check_path(headers, path(message), Caller(context))
                answered: bytes = answer(message).SerializeToString()
            except UnderstudyError as error:
                self._api.note_refusal(error, b"gRPC", path(message).encode(), Caller(context).address)
                raise
            return answered

        return self._refusing(serve)

    def _refusing(self, serve: Callable[[Any], Awaitable[Answer]]) -> Callable[[Any, Any], Awaitable[Answer]]:
        async def handle(_requests: Any, context: Any) -> Answer:
            try:
                return await serve(context)
            except UnderstudyError as error:
                await self._abort(context, error)

        return handle

    def _app(self, name: str, version: str) -> App:
        return self._api.app(name, version or None)

    async def _abort(self, context: Any, error: UnderstudyError) -> NoReturn:
        metadata = answers.error_metadata(error, self._settings.admission.retry_after_s)
        await context.abort(answers.status_of(error), str(error), metadata)
        raise AssertionError("abort raises")


async def _stream_response(request: GrpcRequest) -> bytes:
    try:
        answer, _ = await request.ended
    except UnderstudyError as error:
        return answers.stream_error(error, request.id_bytes)
    return answers.stream_answer(answer)


def _credentials(tls: ServerContext) -> Any:
    """New connections get the newest certificate, as over HTTP."""
    given: list[Certificate] = []

    def configuration() -> Any:
        newest = tls.newest
        if given and given[-1] is newest:
            return None
        given[:] = [newest]
        pair = [(newest.key_pem, newest.cert_pem)]
        return grpc.ssl_server_certificate_configuration(pair, root_certificates=newest.client_ca_pem)

    wants_client = tls.newest.client_ca_pem is not None
    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, wants_client)


def _listening_on(port: int) -> list[socket.socket]:
    """The sockets that the library has opened: it closes them only together with every connection."""
    found: dict[int, socket.socket] = {}  # by inode: it has several descriptors of one socket
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
            facts = os.fstat(number)
            if stat.S_ISSOCK(facts.st_mode) and facts.st_ino not in found:
                one = socket.socket(fileno=os.dup(number))
                listens = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if listens and one.family != socket.AF_UNIX and one.getsockname()[1] == port:
                    found[facts.st_ino] = one
                else:
                    one.close()
    return list(found.values())


def _options(settings: GatewayTuning, connections_max: int) -> list[tuple[str, int]]:
    """Channel arguments of the library's core, each with a bound of ours."""
    limits = settings.grpc
    age_s = limits.connection_age_s_max
    return [
        *([] if age_s is None else [("grpc.max_connection_age_ms", int(age_s * 1000))]),
        # The library opens its sockets itself, so processes share a port in this way only. A port that
        # somebody holds without this option is an error.
        ("grpc.so_reuseport", 1),
        ("grpc.max_allowed_incoming_connections", connections_max),
        ("grpc.server_handshake_timeout_ms", int(settings.http.header_timeout_s * 1000)),
        ("grpc.max_receive_message_length", settings.http.body_bytes_max),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes_max),  # else some above it get through
        ("grpc.max_concurrent_streams", limits.streams_max),
        ("grpc.max_connection_idle_ms", int(limits.idle_timeout_s * 1000)),
        ("grpc.keepalive_time_ms", int(limits.ping_interval_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.ping_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.ping_interval_s_min * 1000)),
    ]
