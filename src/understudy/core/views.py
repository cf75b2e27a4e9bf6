"""What people are shown of a cluster, whoever answered: the controller, or a gateway while it is away.

Pure: documents in, records out. The records are what `status --json` writes, so their names are stable.
What a gateway can't know is null.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from understudy.core.lifecycle import CasePhase, NodePhase, ReplicaPhase
from understudy.wire.errors import ProtocolError
from understudy.wire.records import VariantKey


class AppHealth(StrEnum):
    """An app, as its users feel it. It follows from what is seen at the moment, so it has no table."""

    OK = "ok"  # its full-size variant is ready
    DEGRADED = "degraded"  # something else answers
    FAILING = "failing"  # too many users get errors of ours, whatever is ready
    DOWN = "down"  # nobody answers


NODE_LOST = "lost"  # a gateway has no link to it, and can't know its phase


class ReplicaView(msgspec.Struct):
    id: str
    version: int
    variant: str
    node: str
    role: str
    state: str
    pid: int
    memory_mb: float | None = None
    restarts: int | None = None
    detail: str = ""
    proven_ago_s: float | None = None  # since an inference succeeded


class AppView(msgspec.Struct):
    name: str
    version: int
    criticality: str
    state: str  # an `AppHealth`
    serving: str | None  # best variant that is ready; "static" for the declared answer
    full_size: str
    reason: str | None  # why it isn't ok
    protection: str | None  # "warm n2", "cold n3", "none"
    replicas: list[ReplicaView]
    requests: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None
    batching: dict[str, str] = {}  # by variant: whether its requests share batches, and why

    @property
    def proven_ago_s(self) -> float | None:
        """The oldest proof among the replicas that are ready."""
        ready = [
            r.proven_ago_s
            for r in self.replicas
            if r.state == ReplicaPhase.READY and r.proven_ago_s is not None
        ]
        return max(ready, default=None)


class NodeView(msgspec.Struct):
    name: str
    site: str
    state: str  # a `NodePhase`, or NODE_LOST
    replicas: int
    memory_mb: float | None = None
    memory_used_mb: float | None = None
    reason: str = ""  # of the state, where it isn't ready
    sandbox: str = ""  # tier, and in parentheses what it lacks there


class GatewayLine(msgspec.Struct):
    name: str
    connected: bool
    http_address: str
    revision: int


class StoreView(msgspec.Struct):
    ok: bool
    error: str = ""


class QuarantineView(msgspec.Struct):
    app: str
    version: int
    variant: str
    state: str = CasePhase.QUARANTINED
    why: str = ""
    nodes: list[str] = []
    node: str = ""
    retry_s: float | None = None

    @property
    def sentence(self) -> str:
        what = f"{self.app}/{self.variant}"
        if self.state == CasePhase.DOUBTED:
            return f"{what}: {self.why}" + (f"; tried on {self.node} meanwhile" if self.node else "")
        then = f"; on trial on {self.node}" if self.node else ""
        then = f"; tried again in {self.retry_s:.0f} s" if self.retry_s is not None else then
        return f"{what}: in quarantine: {self.why}{then}" if self.why else f"{what}: in quarantine{then}"


class StatusView(msgspec.Struct):
    apps: list[AppView]
    nodes: list[NodeView]
    gateways: list[GatewayLine]
    revision: int
    source: str = "controller"  # controller | gateway
    address: str = ""
    cluster: str = ""
    leader: str | None = None
    store: StoreView | None = None
    quarantined: list[VariantKey] | None = None
    quarantines: list[QuarantineView] = []
    warnings: list[str] = []

    @property
    def met(self) -> bool:
        """Every app is served by its full-size variant, users get answers, and there is whom to ask."""
        answered = self.has_table and any(g.connected for g in self.gateways)
        return answered and all(app.state == AppHealth.OK for app in self.apps)

    @property
    def has_table(self) -> bool:
        """A gateway without one knows of no app."""
        return self.revision >= 0


def from_controller(document: Any, address: str) -> StatusView:
    """Raises `ProtocolError` when it isn't a status."""
    if not isinstance(document, dict):
        raise _no_status(address, f"expected an object, got {type(document).__name__}")
    return _converted({**document, "source": "controller", "address": address})


def from_gateway(document: Any, address: str) -> StatusView:
    """The view of one gateway: what it routes to, not what is planned. Raises `ProtocolError`."""
    try:
        revision = document["revision"]
        whole = {
            "source": "gateway",
            "address": address,
            "cluster": document.get("cluster", ""),
            "revision": revision,
            "apps": [_gateway_app(app) for app in document["apps"]],
            "nodes": [_gateway_node(node) for node in document["nodes"]],
            "gateways": [{"name": "", "connected": True, "http_address": address, "revision": revision}],
        }
    except (KeyError, TypeError) as error:
        raise _no_status(address, error) from error
    return _converted(whole)


def _converted(document: dict[str, Any]) -> StatusView:
    try:
        return msgspec.convert(document, StatusView)
    except msgspec.ValidationError as error:
        raise _no_status(document["address"], error) from error


def _no_status(address: str, why: object) -> ProtocolError:
    return ProtocolError(f"{address} answered with something else than a status: {why}")


def _gateway_node(node: dict[str, Any]) -> dict[str, Any]:
    if node["suspect"]:
        state: str = NodePhase.SUSPECT
    else:
        state = NodePhase.READY if node["connected"] else NODE_LOST
    return {**node, "state": state, "replicas": len(node["replicas"])}


def _gateway_app(app: dict[str, Any]) -> dict[str, Any]:
    if app["ready"]:
        state = AppHealth.DEGRADED if app["degraded"] else AppHealth.OK
    else:
        state = AppHealth.DEGRADED if app["serving"] == "static" else AppHealth.DOWN
    failing = app.get("failing", "") if state != AppHealth.DOWN else ""
    if failing:
        state = AppHealth.FAILING
    return {
        **app,
        "state": state,
        "reason": None if state == AppHealth.OK else failing or app["degraded"] or "no replica is ready",
        "protection": None,
        "p50_ms": app["p50_ms"] or None,
        "p99_ms": app["p99_ms"] or None,
    }
