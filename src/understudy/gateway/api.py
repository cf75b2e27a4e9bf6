"""What a path means: the Open Inference Protocol over HTTP, and the gateway's own status.

Inference is looked up in one dictionary by the raw URL; everything else is a table of patterns.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

import understudy
from understudy.core.gateway.machine import Gateway
from understudy.core.gateway.rotation import App, Request
from understudy.gateway import answers, openapi, triton
from understudy.gateway.auth import Authenticator
from understudy.gateway.compression import Decompressor
from understudy.gateway.cors import Cors
from understudy.gateway.exchange import Exchange, Head, InferRequest
from understudy.gateway.http import HttpConnection
from understudy.gateway.request_id import RequestIds
from understudy.settings.gateway import GatewayTuning
from understudy.settings.runtimes import RUNTIMES
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.frames import Buffer

if TYPE_CHECKING:
    from understudy.wire.records import AppVersion, TensorSpec

CONTENT_ENCODING = b"content-encoding"
JSON_LENGTH = answers.JSON_LENGTH.lower()
LENGTH_DIGITS_MAX = 10

NO_TABLE = "the gateway has no route table yet: no controller has answered, and none is on its disk"
Answer = tuple[int, Any]


class Api:
    """Serves every connection of one gateway process."""

    def __init__(self, gateway: Gateway, settings: GatewayTuning) -> None:
        self.gateway = gateway
        self.settings = settings
        self.retry_after_s = settings.admission.retry_after_s
        self.draining = False
        self.authenticator: Authenticator | None = None  # None: everybody may do everything
        self.cors = Cors(settings.cors) if settings.cors.origins else None
        self.request_ids = RequestIds()
        self.connections: set[HttpConnection] = set()
        self.handshakes: set[asyncio.Task[None]] = set()  # of TLS; each becomes a connection
        self.connections_max = settings.http.connections_max
        self.body_bytes_held = 0
        self.known_heads: dict[bytes, Head] = {}
        self._infer: dict[bytes, App] = {}
        self._decompressor = Decompressor(settings.http.body_bytes_max)
        self._openapi = msgspec.Raw(answers.json_body(openapi.document(settings)))
        model = r"/v2/models/(?P<app>[^/]+)(?:/versions/(?P<version>[^/]+))?"
        repository = r"/v2/repository/models/(?P<app>[^/]+)"
        self._get = _routes(
            (r"/v2", self._server),
            (r"/v2/health/live", self._live),
            (r"/v2/health/ready", self._server_ready),
            (r"/v2/models", self._models),
            (r"/v2/models/stats", self._statistics),
            (model, self._model),
            (model + "/ready", self._model_ready),
            (model + "/config", self._configuration),
            (model + "/stats", self._statistics),
            (r"/understudy/status", self._status),
            (r"/understudy/failures(?:/(?P<app>[^/]+))?", self._failures),
            (r"/openapi\.json", self._document),
        )
        self._post = _routes(
            (r"/v2/repository/index", self._index),
            (repository + "/load", self._load),
            (repository + "/unload", self._unload),
        )
        self._infer_pattern = re.compile(model + "/infer")

    # connections

    def connection_opened(self, connection: HttpConnection) -> bool:
        self.connections.add(connection)
        return len(self.connections) <= self.connections_max

    def connection_closed(self, connection: HttpConnection) -> None:
        self.connections.discard(connection)

    def cancel(self, request: Request) -> None:
        self.gateway.dispatcher.cancel(request)

    # requests

    def routes_changed(self) -> None:
        """The set of apps or their versions changed."""
        self._infer = {}
        for name, app in self.gateway.apps.items():
            path = f"/v2/models/{name}"
            self._infer[f"{path}/infer".encode()] = app
            self._infer[f"{path}/versions/{app.spec.version}/infer".encode()] = app

    def handle(self, exchange: Exchange, head: Head, body: Buffer, now: float) -> None:
        app = self._infer.get(head.url)
        try:
            if app is not None and head.method == b"POST":
                if self.authenticator is not None:
                    exchange.client = self.authenticator.check(
                        head.headers, app.name, exchange.connection
                    ).client
                self._submit(exchange, app, head.headers, body, now)
            else:
                self._handle_rest(exchange, head, body, now)
        except UnderstudyError as error:
            exchange.fail(error, error.context.pop("status", None))

    def _submit(
        self, exchange: Exchange, app: App, headers: dict[bytes, bytes], body: Buffer, now: float
    ) -> None:
        timeout = headers.get(b"understudy-timeout-ms")
        timeout_ms = app.spec.deadline_ms if timeout is None else self._timeout_ms(timeout)
        deadline = now + timeout_ms / 1000
        length = headers.get(JSON_LENGTH)
        json_bytes = -1 if length is None else self._json_bytes(length)
        encoding = headers.get(CONTENT_ENCODING, b"identity")
        if encoding != b"identity":
            done = partial(self._submit_plain, exchange, app, json_bytes, now, deadline)
            self._decompressor.start(encoding, body, done)
            return
        self._dispatch(exchange, InferRequest(app, body, now, deadline, json_bytes), now)

    def _dispatch(self, exchange: Exchange, request: InferRequest, now: float) -> None:
        request.exchange = exchange
        exchange.request = request
        request.client = exchange.client or exchange.connection.address
        self.gateway.dispatcher.submit(request, now)

    def _submit_plain(
        self,
        exchange: Exchange,
        app: App,
        json_bytes: int,
        arrived: float,
        deadline: float,
        plain: Buffer | UnderstudyError,
    ) -> None:
        """Go on with a request whose body was compressed."""
        if exchange not in exchange.connection.queue:
            return  # the client is gone
        now = monotonic()
        if isinstance(plain, UnderstudyError):
            exchange.fail(plain, plain.context.pop("status", None))
        elif now >= deadline:
            exchange.fail(UnderstudyError(Code.TIMEOUT, "decompression took longer than the deadline"))
        elif self.body_bytes_held + len(plain) > self.settings.http.body_bytes_total_max:
            exchange.fail(UnderstudyError(Code.SHED, "too many request bodies at once"))
        else:
            self.body_bytes_held += len(plain)
            exchange.held_bytes += len(plain)
            self._dispatch(exchange, InferRequest(app, plain, arrived, deadline, json_bytes), now)

    def _json_bytes(self, value: bytes) -> int:
        if not value.isdigit() or len(value) > LENGTH_DIGITS_MAX:
            name = answers.JSON_LENGTH.decode()
            raise UnderstudyError(Code.INVALID_ARGUMENT, f"header {name}: {value[:40]!r} is not a length")
        return int(value)

    def _timeout_ms(self, value: bytes) -> float:
        try:
            timeout_ms = float(value)
        except ValueError:
            timeout_ms = -1.0
        limit = self.settings.admission.deadline_ms_max
        if not 0 < timeout_ms <= limit:
            message = f"header Understudy-Timeout-Ms: {value!r} is not a number of ms in (0, {limit:g}]"
            raise UnderstudyError(Code.INVALID_ARGUMENT, message)
        return timeout_ms

    def _handle_rest(self, exchange: Exchange, head: Head, body: Buffer, now: float) -> None:
        method = head.method.decode("latin-1")
        path = unquote(head.url.partition(b"?")[0].decode("latin-1"))
        if method == "OPTIONS":  # before anybody is asked who they are: a browser's preflight doesn't say
            exchange.finish(answers.options_head(self._methods(path)), b"")
            return
        if self.authenticator is not None:
            identity = self.authenticator.check_path(head.headers, path, exchange.connection)
            exchange.client = identity.client if identity else ""
        infer = self._infer_pattern.fullmatch(path)
        if infer:
            self._allow(method, "POST")
            self._submit(exchange, self.app(**infer.groupdict()), head.headers, body, now)
            return
        if method == "HEAD":  # its exchange leaves the body out
            method = "GET"
        for allowed, routes, given in (("GET", self._get, ()), ("POST", self._post, (bytes(body),))):
            for pattern, answer in routes:
                match = pattern.fullmatch(path)
                if match:
                    self._allow(method, allowed)
                    status, content = answer(*given, **match.groupdict())
                    exchange.finish(answers.head(status), answers.json_body(content))
                    return
        raise UnderstudyError(Code.NOT_FOUND, f"no such path: {path[:200]}; all are listed at /openapi.json")

    def _methods(self, path: str) -> str:
        """What is allowed at `path`. Raises NOT_FOUND."""
        if path == "*":
            return "GET, HEAD, OPTIONS, POST"
        if self._infer_pattern.fullmatch(path) or any(p.fullmatch(path) for p, _ in self._post):
            return "OPTIONS, POST"
        if any(pattern.fullmatch(path) for pattern, _ in self._get):
            return "GET, HEAD, OPTIONS"
        raise UnderstudyError(Code.NOT_FOUND, f"no such path: {path[:200]}; all are listed at /openapi.json")

    def _allow(self, method: str, allowed: str) -> None:
        if method != allowed:
            message = f"use {allowed} here, not {method}"
            raise UnderstudyError(Code.INVALID_ARGUMENT, message, status=405, allow=allowed)

    def app(self, app: str, version: str | None) -> App:
        """Raises NOT_FOUND, or UNAVAILABLE before anything is known of models."""
        found = self.gateway.apps.get(app)
        if found is None:
            if self.gateway.table.revision < 0:
                raise UnderstudyError(Code.UNAVAILABLE, NO_TABLE)
            message = f"unknown model {app!r}"
            if self.authenticator is None:  # otherwise what is served here isn't for everybody to know
                message += "; served here: " + (", ".join(sorted(self.gateway.apps)[:20]) or "none")
            raise UnderstudyError(Code.NOT_FOUND, message)
        if version is not None and version != str(found.spec.version):
            served = found.spec.version
            raise UnderstudyError(
                Code.NOT_FOUND, f"model {app!r} has no version {version!r}; it serves {served}"
            )
        return found

    # everything but inference

    def _server(self) -> Answer:
        return 200, server_metadata()

    def _live(self) -> Answer:
        return 200, {"live": True}

    @property
    def ready(self) -> bool:
        """Ready to be sent traffic: it has routes and can answer for at least one app."""
        apps = self.gateway.apps.values()
        ready = self.gateway.table.revision >= 0 and not self.draining
        return ready and (not apps or any(app.fit for app in apps))

    def _server_ready(self) -> Answer:
        content: dict[str, Any] = {"ready": self.ready}
        if not self.ready:
            without = NO_TABLE if self.gateway.table.revision < 0 else "no app is ready"
            content["error"] = "the gateway is draining" if self.draining else without
        return (200 if self.ready else 503), content

    def _models(self) -> Answer:
        """As KServe lists them: names only. What each is, and whether it is ready, is asked one by one."""
        return 200, {"models": sorted(self.gateway.apps)}

    def _model(self, app: str, version: str | None) -> Answer:
        return 200, model_metadata(self.app(app, version).spec)

    def _model_ready(self, app: str, version: str | None) -> Answer:
        """True if a replica answered a real inference within the last probe interval."""
        found = self.app(app, version)
        ready, failing = found.fit, found.health.failing
        content: dict[str, Any] = {"name": app, "ready": ready}
        if failing:
            content["failing"] = failing
        if not ready:
            content["error"] = failing if found.ready else f"no replica of {app!r} is ready"
        return (200 if ready else 503), content

    def _configuration(self, app: str, version: str | None) -> Answer:
        return 200, triton.configuration(self.app(app, version).spec)

    def _statistics(self, app: str | None = None, version: str | None = None) -> Answer:
        apps = self.sorted_apps() if app is None else [self.app(app, version)]
        return 200, triton.statistics(apps, monotonic(), time())

    def _index(self, body: bytes) -> Answer:
        return 200, triton.index(self.sorted_apps(), ready_only=triton.wants_ready_only(body))

    def _load(self, body: bytes, app: str) -> Answer:
        triton.load(self.app(app, None), with_parameters=triton.has_parameters(body))
        return 200, {}

    def _unload(self, body: bytes, app: str) -> Answer:
        triton.refuse_unload(self.app(app, None))

    def _failures(self, app: str | None = None) -> Answer:
        """Requests that got an error of ours, the newest first. Of this process, and not many."""
        apps = self.sorted_apps() if app is None else [self.app(app, None)]
        return 200, {"failures": failure_records(apps, monotonic(), time())}

    def sorted_apps(self) -> list[App]:
        return [app for _, app in sorted(self.gateway.apps.items())]

    def _document(self) -> Answer:
        return 200, self._openapi

    def _status(self) -> Answer:
        """What this gateway sees, for operators: rotation, suspicion, counters. No secrets in it."""
        gateway = self.gateway
        return 200, {
            "revision": gateway.table.revision,
            "draining": self.draining,
            "connections": len(self.connections),
            "inflight": gateway.dispatcher.inflight,
            "body_bytes_held": self.body_bytes_held,
            "refused": self.authenticator.refused if self.authenticator else 0,  # strangers, and the nosy
            "shedding": gateway.dispatcher.gate.dial,
            "nodes": [
                {
                    "name": name,
                    "site": node.info.site,
                    "connected": node.connected,
                    "suspect": node.detector.suspect,
                    "replicas": sorted(node.replicas),
                }
                for name, node in sorted(gateway.nodes.items())
            ],
            "apps": [_app_status(app) for _, app in sorted(gateway.apps.items())],
        }


def _routes(
    *routes: tuple[str, Callable[..., Answer]],
) -> list[tuple[re.Pattern[str], Callable[..., Answer]]]:
    return [(re.compile(pattern), answer) for pattern, answer in routes]


def server_metadata() -> dict[str, Any]:
    return {"name": "understudy", "version": understudy.__version__, "extensions": triton.EXTENSIONS}


def model_metadata(spec: AppVersion) -> dict[str, Any]:
    return {
        "name": spec.app,
        "versions": [str(spec.version)],
        "platform": _platform(spec.full_size.runtime),
        "inputs": [_tensor_metadata(tensor) for tensor in spec.inputs],
        "outputs": [_tensor_metadata(tensor) for tensor in spec.outputs],
    }


def _platform(runtime: str) -> str:
    return RUNTIMES[runtime].platform if runtime in RUNTIMES else runtime


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
    if spec.optional:
        metadata["optional"] = True
    if spec.labels:
        metadata["labels"] = spec.labels
    return metadata


def failure_records(apps: list[App], now: float, unix_s: float) -> list[dict[str, Any]]:
    records = [
        {
            "request_id": failure.request_id,
            "at_unix_ms": round((unix_s - (now - failure.at)) * 1000),
            "app": app.name,
            "version": failure.version,
            "variant": failure.variant,
            "node": failure.node,
            "replica": failure.replica,
            "client": failure.client,
            "code": failure.code,
            "message": failure.message,
            "traceback": failure.traceback,
        }
        for app in apps
        for failure in app.health.failures
    ]
    return sorted(records, key=lambda record: -record["at_unix_ms"])


def _app_status(app: App) -> dict[str, Any]:
    spec: AppVersion = app.spec
    best, now = app.ranked[0] if app.ranked else None, monotonic()
    stats, total = app.traffic.stats, app.traffic.total
    return {
        "name": app.name,
        "version": spec.version,
        "criticality": spec.criticality,
        "ready": app.ready,
        "serving": best.variant if best else ("static" if spec.static is not None else None),
        "full_size": spec.full_size.name,
        "degraded": best.degraded if best else "down",
        "inflight": app.inflight,
        "waiting": len(app.queues.waiting),
        "p50_ms": _ms(app.patience.digest.quantile(0.5)),
        "p99_ms": _ms(app.patience.digest.quantile(0.99)),
        "requests": app.traffic.requests,
        "failed": total.failed + stats.failed,
        "rejected": total.rejected + stats.rejected,
        "failing": app.health.failing,
        "retried": total.retried + stats.retried,
        "hedged": total.hedged + stats.hedged,
        "shed": total.shed + stats.shed,
        "limited": total.limited + stats.limited,
        "limit": app.allowance.concurrency.limit,
        "brownout": app.allowance.brownout.on,
        "replicas": [
            {
                "id": r.id,
                "node": r.node,
                "variant": r.variant,
                "version": r.version,
                "role": r.role,
                "state": r.state,
                "pid": r.pid,
                "connected": r.link is not None,
                "suspect": r.suspect or r.node_suspect,
                "breaker": r.breaker.state,
                "outstanding": len(r.outstanding),
                "proven_ago_s": round(r.unproven_s(now), 1),
            }
            for r in sorted(app.replicas.values(), key=lambda r: (r.rank, r.id))
        ],
    }


def _ms(seconds: float | None) -> float:
    return round((seconds or 0.0) * 1000, 3)
