"""What is answered over HTTP besides inference: what is served here, how it is, and how it went."""

from __future__ import annotations

import re
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import msgspec

import understudy
from understudy.core.gateway.rotation import App
from understudy.gateway import answers, openapi, triton
from understudy.settings.runtimes import facts_of

if TYPE_CHECKING:
    from understudy.gateway.api import Api
    from understudy.wire.records import AppVersion, TensorSpec

NO_TABLE = "the gateway has no route table yet: no controller has answered, and none is on its disk"
MODEL = r"/v2/models/(?P<app>[^/]+)(?:/versions/(?P<version>[^/]+))?"
REPOSITORY = r"/v2/repository/models/(?P<app>[^/]+)"
Answer = tuple[int, Any]


class Pages:
    """Patterns of paths, each with what answers it. Those of `post` get the body first."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._openapi = msgspec.Raw(answers.json_body(openapi.document(api.settings)))
        self.get = _routes(
            (r"/v2", self._server),
            (r"/v2/health/live", self._live),
            (r"/v2/health/ready", self._server_ready),
            (r"/v2/models", self._models),
            (r"/v2/models/stats", self._statistics),
            (MODEL, self._model),
            (MODEL + "/ready", self._model_ready),
            (MODEL + "/config", self._configuration),
            (MODEL + "/stats", self._statistics),
            (r"/understudy/status", self._status),
            (r"/understudy/failures(?:/(?P<app>[^/]+))?", self._failures),
            (r"/openapi\.json", self._document),
        )
        self.post = _routes(
            (r"/v2/repository/index", self._index),
            (REPOSITORY + "/load", self._load),
            (REPOSITORY + "/unload", self._unload),
        )

    def _server(self) -> Answer:
        return 200, server_metadata()

    def _live(self) -> Answer:
        return 200, {"live": True}

    def _server_ready(self) -> Answer:
        content: dict[str, Any] = {"ready": self._api.ready}
        if not self._api.ready:
            without = NO_TABLE if self._api.gateway.table.revision < 0 else "no app is ready"
            content["error"] = "the gateway is draining" if self._api.draining else without
        return (200 if self._api.ready else 503), content

    def _models(self) -> Answer:
        """As KServe lists them: names only. What each is, and whether it is ready, is asked one by one."""
        return 200, {"models": sorted(self._api.gateway.apps)}

    def _model(self, app: str, version: str | None) -> Answer:
        return 200, model_metadata(self._api.app(app, version).spec)

    def _model_ready(self, app: str, version: str | None) -> Answer:
        """True if a replica answered a real inference within the last probe interval."""
        found = self._api.app(app, version)
        ready, failing = found.fit, found.health.failing
        content: dict[str, Any] = {"name": app, "ready": ready}
        if failing:
            content["failing"] = failing
        if not ready:
            content["error"] = failing if found.ready else f"no replica of {app!r} is ready"
        return (200 if ready else 503), content

    def _configuration(self, app: str, version: str | None) -> Answer:
        return 200, triton.configuration(self._api.app(app, version).spec)

    def _statistics(self, app: str | None = None, version: str | None = None) -> Answer:
        apps = self._api.sorted_apps() if app is None else [self._api.app(app, version)]
        return 200, triton.statistics(apps, monotonic(), time())

    def _index(self, body: bytes) -> Answer:
        return 200, triton.index(self._api.sorted_apps(), ready_only=triton.wants_ready_only(body))

    def _load(self, body: bytes, app: str) -> Answer:
        triton.load(self._api.app(app, None), with_parameters=triton.has_parameters(body))
        return 200, {}

    def _unload(self, body: bytes, app: str) -> Answer:
        triton.refuse_unload(self._api.app(app, None))

    def _failures(self, app: str | None = None) -> Answer:
        """Requests that got an error of ours, the newest first. Of this process, and not many."""
        apps = self._api.sorted_apps() if app is None else [self._api.app(app, None)]
        return 200, {"failures": failure_records(apps, monotonic(), time())}

    def _document(self) -> Answer:
        return 200, self._openapi

    def _status(self) -> Answer:
        """What this gateway sees, for operators: rotation, suspicion, counters. No secrets in it."""
        gateway = self._api.gateway
        return 200, {
            "revision": gateway.table.revision,
            "draining": self._api.draining,
            "connections": len(self._api.connections),
            "inflight": gateway.dispatcher.inflight,
            "bytes_held": self._api.bytes_held,
            # Strangers, the nosy, pages of other sites, borrowed names
            "refused": sum(each.refused for each in (self._api.authenticator, self._api.door) if each),
            "contained": self._api.crashes.contained,  # what failed by our own mistakes, and ended alone
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
        "platform": facts_of(spec.full_size.runtime).platform,
        "inputs": [_tensor_metadata(tensor) for tensor in spec.inputs],
        "outputs": [_tensor_metadata(tensor) for tensor in spec.outputs],
    }


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
