"""`AsyncClient`: arrays in, arrays out, from any gateway that answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self, TypeVar
from urllib.parse import quote

import msgspec

from understudy.client.arrays import named_inputs, to_tensor
from understudy.client.bodies import Body, Tensors, binary_body, decode, json_body, json_bytes_of
from understudy.client.calls import METADATA, Ask, Call, Won
from understudy.client.errors import BadAnswer, ClientError, Closed, InvalidInput, Timeout, Unavailable
from understudy.client.gateways import Gateways, parse_addresses
from understudy.wire.errors import Code
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array

T = TypeVar("T")

TIMEOUT_S = 10.0
INFLIGHT_MAX = 256  # calls at once; more wait, within their deadlines
MODELS_MAX = 1000  # whose metadata is kept
STALE_S = 1.0  # metadata older than this is fetched again before an input is refused for it


class ModelMetadata(msgspec.Struct, frozen=True):
    """What a model takes and gives. In shapes, -1 stands for any length."""

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class ModelState(msgspec.Struct, frozen=True):
    """A model in the gateway's list. `state` is `READY` or `UNAVAILABLE`, for the `reason` given."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Answer:
    """Outputs by name, and who gave them.

    Elements of BYTES are `str`, or `bytes` where they are no UTF-8; BF16 are float32. `degraded` is None, or
    why this isn't the model's full-size variant: `failover`, `placement`, `previous-version`, `static`, …
    `latency_s` is that of the whole call, retries included.
    """

    outputs: dict[str, Array]
    variant: str | None
    version: int | None
    degraded: str | None
    gateway: str
    request_id: str | None
    latency_s: float


@dataclass
class _Known:
    metadata: ModelMetadata
    fetched_at: float
    specs: dict[str, TensorSpec] = field(init=False)

    def __post_init__(self) -> None:
        self.specs = {spec.name: spec for spec in self.metadata.inputs}


class AsyncClient:
    """Calls models through one or several gateways.

    `gateways`: URLs such as `http://a:8080`; each can serve every call, and whichever answers is used.
    `api_key`: a key or a token, sent as `Authorization: Bearer`. `ca`: a PEM file of certificates to trust
    instead of the system's. `timeout_s`: deadline of each call that names none. `hedge`: send a late
    request a second time, to another gateway (5 % of the calls at most). `check`: fetch a model's metadata
    once, convert inputs to its datatypes and refuse what doesn't fit before it is sent.

    Belongs to the event loop in which it is first used; any number of tasks may share it. Everything it
    raises is a `ClientError`, but for `CancelledError`.
    """

    def __init__(
        self,
        gateways: str | Sequence[str],
        *,
        api_key: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        timeout_s: float = TIMEOUT_S,
        hedge: bool = True,
        check: bool = True,
    ) -> None:
        self._addresses = parse_addresses(gateways, os.fspath(ca) if ca is not None else None)
        self._headers = (
            f"Authorization: Bearer {_header('api_key', api_key, secret=True)}\r\n" if api_key else ""
        )
        self._timeout_s = _positive(timeout_s)
        self._hedge = hedge
        self._check = check
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gateways: Gateways
        self._slots: asyncio.Semaphore
        self._models: dict[str, _Known] = {}

    def __repr__(self) -> str:
        urls = ", ".join(url for url, _ in self._addresses)
        return f"{type(self).__name__}({urls})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Calls under way go on; later ones raise `Closed`."""
        self._closed = True
        if self._loop is asyncio.get_running_loop():
            self._gateways.close()
            await asyncio.sleep(0)  # one turn for the transports to end

    async def infer(
        self,
        app: str,
        inputs: Any,
        *,
        outputs: Sequence[str] | None = None,
        version: int | str | None = None,
        datatypes: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        idempotent: bool = True,
        request_id: str | None = None,
    ) -> Answer:
        """Ask `app` once.

        `inputs`: arrays (or what NumPy reads as such) by name; for a model with one input the array itself;
        for a model whose inputs are columns, a data frame. `outputs`: only these; None: all. `datatypes`: of
        inputs by name, for models whose metadata isn't checked. `idempotent` False: never sent twice.
        `request_id`: a name of yours for the logs.

        Raises `InvalidInput`, `NotFound`, `Denied`, `Timeout`, `Overloaded`, `Unavailable`, `ModelFailed`,
        `BadAnswer` or `Closed`.
        """
        gateways = self._open()
        began = gateways.clock()
        deadline = began + (self._timeout_s if timeout_s is None else _positive(timeout_s))
        path = _path(app, version)
        headers = self._headers
        if request_id is not None:
            headers += f"X-Request-Id: {_header('request_id', request_id)}\r\n"
        given = _Given(inputs, outputs, datatypes or {}, request_id)
        tensors = await self._tensors(path, given, deadline)

        @cache  # a retry sends the same bytes
        def body(binary: bool) -> Body:
            return binary_body(tensors) if binary else json_body(tensors)

        won = await self._call(
            Ask("POST", f"{path}/infer", headers, app, body, idempotent=idempotent), deadline
        )
        answer = _answer(won, request_id, gateways.clock() - began)
        known = self._models.get(path)
        if known and answer.version and str(answer.version) not in known.metadata.versions:
            newest = max((int(v) for v in known.metadata.versions if v.isdecimal()), default=0)
            if answer.version > newest:  # an older one is a degraded answer
                del self._models[path]
        return answer

    async def metadata(
        self, app: str, *, version: int | str | None = None, timeout_s: float | None = None
    ) -> ModelMetadata:
        """What `app` takes and gives, fetched anew. Raises as `infer` does."""
        self._open()
        return (await self._fetch(_path(app, version), self._deadline(timeout_s))).metadata

    async def models(self, *, timeout_s: float | None = None) -> tuple[ModelState, ...]:
        """Every model that the gateway knows, ready or not. Raises as `infer` does."""
        self._open()
        ask = Ask("POST", "/v2/repository/index", self._headers, METADATA)
        won = await self._call(ask, self._deadline(timeout_s))
        return _decoded(won, tuple[ModelState, ...], "list of models")

    async def ready(self, app: str | None = None, *, timeout_s: float | None = None) -> bool:
        """Whether a gateway says that `app` (None: anything at all) would be answered now.

        False too if no gateway can be reached. Raises `NotFound` for an app that doesn't exist.
        """
        self._open()
        path = "/v2/health/ready" if app is None else f"{_path(app, None)}/ready"
        try:
            await self._call(
                Ask("GET", path, self._headers, METADATA, rounds_max=0), self._deadline(timeout_s)
            )
        except (Unavailable, Timeout):
            return False
        return True

    # below the surface

    def _open(self) -> Gateways:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise Closed(Code.CANCELLED, "this client is closed")
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise Closed(Code.CANCELLED, "this client belongs to another event loop; make one for each")
            self._loop = loop
            self._gateways = Gateways(self._addresses, loop.time)
            self._slots = asyncio.Semaphore(INFLIGHT_MAX)
        return self._gateways

    def _deadline(self, timeout_s: float | None) -> float:
        return self._gateways.clock() + (self._timeout_s if timeout_s is None else _positive(timeout_s))

    async def _call(self, ask: Ask, deadline: float) -> Won:
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError:
            raise Timeout(Code.TIMEOUT, f"{INFLIGHT_MAX} other calls were under way all the time") from None
        try:
            came = await Call(self._gateways, ask, deadline, self._hedge).run()
        finally:
            self._slots.release()
        if isinstance(came, ClientError):
            raise came
        return came

    async def _tensors(self, path: str, given: _Given, deadline: float) -> Tensors:
        if not self._check:
            return given.tensors({})
        known = self._models.get(path) or await self._fetch(path, deadline)
        try:
            return given.tensors(known.specs)
        except InvalidInput:
            if self._gateways.clock() - known.fetched_at < STALE_S:
                raise
        return given.tensors((await self._fetch(path, deadline)).specs)  # it may be another version by now

    async def _fetch(self, path: str, deadline: float) -> _Known:
        won = await self._call(Ask("GET", path, self._headers, METADATA), deadline)
        metadata = _decoded(won, ModelMetadata, "metadata of a model")
        if len(self._models) >= MODELS_MAX:
            self._models.clear()
        known = self._models[path] = _Known(metadata, self._gateways.clock())
        return known


@dataclass(frozen=True)
class _Given:
    """What a caller gave for one inference."""

    inputs: Any
    outputs: Sequence[str] | None
    datatypes: Mapping[str, str]
    request_id: str | None

    def tensors(self, specs: Mapping[str, TensorSpec]) -> Tensors:
        """As they are sent to a model with these inputs; none: not known. Raises `InvalidInput`."""
        named = named_inputs(self.inputs, specs)
        arrays = {
            name: to_tensor(name, value, specs.get(name), self.datatypes.get(name))
            for name, value in named.items()
        }
        return Tensors(arrays, tuple(self.outputs) if self.outputs is not None else None, self.request_id)


def _decoded(won: Won, type_: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(won.reply.body, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadAnswer(Code.PROTOCOL, f"no {what}: {error}", gateway=won.gateway.url) from error


def _answer(won: Won, request_id: str | None, latency_s: float) -> Answer:
    headers, url = won.reply.headers, won.gateway.url
    try:
        outputs, echoed = decode(won.reply.body, json_bytes_of(headers))
    except ValueError as error:
        raise BadAnswer(Code.PROTOCOL, f"no answer to an inference: {error}", gateway=url) from error
    version = headers.get("understudy-version", "")
    return Answer(
        outputs=outputs,
        variant=headers.get("understudy-variant"),
        version=int(version) if version.isdecimal() else None,
        degraded=headers.get("understudy-degraded"),
        gateway=url,
        request_id=headers.get("x-request-id") or echoed or request_id,
        latency_s=latency_s,
    )


def _path(app: str, version: int | str | None) -> str:
    path = f"/v2/models/{quote(app, safe='')}"
    return path if version is None else f"{path}/versions/{quote(str(version), safe='')}"


def _positive(timeout_s: float) -> float:
    if not timeout_s > 0:
        raise InvalidInput(Code.INVALID_ARGUMENT, f"timeout_s: {timeout_s} is no time in seconds > 0")
    return timeout_s


def _header(name: str, value: str, *, secret: bool = False) -> str:
    if not value.isascii() or not value.isprintable() or len(value) > 8192:
        shown = "" if secret else f" {value[:60]!r}"
        raise InvalidInput(Code.INVALID_ARGUMENT, f"{name}:{shown} can't stand in a header")
    return value
