"""A world for the gateway's machine: virtual time, links that are lists, three nodes and one app."""

from __future__ import annotations

from typing import Any

import msgspec

from understudy.core.gateway import machine as core
from understudy.core.gateway.rotation import Request, Source
from understudy.settings.gateway import GatewayTuning
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.frames import Buffer, Frame, FrameDecoder
from understudy.wire.messages import (
    Failure,
    Heartbeat,
    Kind,
    NodeState,
    ReplicaState,
    Result,
    encode_message,
)
from understudy.wire.records import (
    AppVersion,
    ArtifactRef,
    Contingency,
    NodeInfo,
    Placement,
    Role,
    RouteTable,
    Variant,
)

REF = ArtifactRef("0" * 64, 1, "m.onnx")
BIG, SMALL = Variant("big", "onnx", REF, 0.99), Variant("small", "onnx", REF, 0.95)
DEFAULTS = GatewayTuning()
RESULT = msgspec.msgpack.encode(Result(100, 0, 1))


class FakeLink:
    def __init__(self) -> None:
        self.sent: list[Frame] = []
        self.last_heard_s = 0.0
        self.full = False
        self._decoder = FrameDecoder()

    def write(self, data: bytes, payload: Buffer = b"") -> None:
        self.sent += self._decoder.feed(data + payload)

    def infers(self) -> list[Frame]:
        return [f for f in self.sent if f.kind == Kind.INFER]


class FakeRequest(Request):
    __slots__ = ("outcome",)

    def answered(self, source: Source, result: Result, body: bytes) -> None:
        self._ended((source.variant, source.degraded))

    def failed(self, error: UnderstudyError) -> None:
        self._ended(error.code)

    def answered_static(self, static: dict[str, Any]) -> None:
        self._ended("static")

    def _ended(self, outcome: Any) -> None:
        assert not hasattr(self, "outcome"), "a request ended twice"
        self.outcome = outcome


class World:
    """A gateway, three nodes in two sites, one app: big on n1, maybe small warm on n2, contingency on n3."""

    def __init__(self, standby: bool = True, settings: GatewayTuning = DEFAULTS, **spec: Any) -> None:
        self.now = 100.0
        self.gateway = core.Gateway(settings, random=lambda: 0.5, now=self.now)
        self.links: dict[str, FakeLink] = {}
        self.effects: list[core.GatewayEffect] = []
        self.serials: dict[str, int] = {}
        self.app_version = AppVersion("digits", 1, (BIG, SMALL), **spec)
        nodes = tuple(NodeInfo(n, s, f"unix:/{n}", 100) for n, s in (("n1", "a"), ("n2", "b"), ("n3", "b")))
        contingencies = (
            () if standby else (self.contingency("node:n1", "n2"), self.contingency("site:a", "n3"))
        )
        placements = (Placement("digits", 1, "big", "n1", Role.PRIMARY),)
        table = RouteTable(1, nodes, (self.app_version,), contingencies, placements)
        self.step(core.RoutesReceived(table))
        self.app = self.gateway.apps["digits"]
        for node in ("n1", "n2", "n3"):
            self.step(core.AgentConnected(node))
        self.report("n1", self.replica("r1", "big"))
        self.report("n2", *([self.replica("r2", "small", Role.STANDBY)] if standby else []))
        self.report("n3")

    def contingency(self, failure: str, node: str) -> Contingency:
        return Contingency("digits", 1, failure, node, "small", "big")

    def replica(
        self,
        id_: str,
        variant: str,
        role: Role = Role.PRIMARY,
        state: str = "ready",
        app: str = "digits",
        version: int = 1,
    ) -> ReplicaState:
        return ReplicaState(id_, app, version, variant, role, state, f"unix:/{id_}", pid=1)

    def step(self, event: core.GatewayEvent) -> list[core.GatewayEffect]:
        effects = self.gateway.step(event, self.now)
        for effect in effects:
            if isinstance(effect, core.ConnectWorker) and effect.replica.id not in self.links:
                link = self.links[effect.replica.id] = FakeLink()
                link.last_heard_s = self.now
                effect.replica.link = link
                effects += self.step(core.WorkerConnected(effect.replica.id))
        self.effects += effects
        return effects

    def report(self, node: str, *replicas: ReplicaState) -> list[core.GatewayEffect]:
        self.serials[node] = self.serials.get(node, 0) + 1
        return self.step(core.NodeStateReceived(NodeState(node, 1, self.serials[node], 1, replicas)))

    def request(
        self, timeout_s: float = 1.0, body: bytes = b"{}", app: str = "digits", client: str = ""
    ) -> FakeRequest:
        request = FakeRequest(self.gateway.apps[app], body, self.now, self.now + timeout_s, client=client)
        self.gateway.dispatcher.submit(request, self.now)
        return request

    def reply(
        self, id_: str, frame: Frame | None = None, failure: Code | None = None, infer_us: int = 100
    ) -> None:
        link = self.links[id_]
        frame = frame or link.infers()[-1]
        link.last_heard_s = self.now
        if failure is None:
            header = RESULT if infer_us == 100 else msgspec.msgpack.encode(Result(infer_us, 0, 1))
            answer = Frame(Kind.RESULT, frame.stream, 0, header, b"{}")
        else:
            answer = FrameDecoder().feed(encode_message(Failure(failure, "no"), frame.stream))[0]
        self.gateway.dispatcher.frame_received(self.gateway.replicas[id_], answer, self.now)

    def pong(self, id_: str) -> None:
        """A worker that lives answers pings at once, if it was sent one, whatever it infers."""
        link = self.links[id_]
        if any(frame.kind == Kind.PING for frame in link.sent):
            link.last_heard_s = self.now

    def advance(self, seconds: float, heartbeats: str = "n1 n2 n3") -> list[core.GatewayEffect]:
        effects: list[core.GatewayEffect] = []
        for _ in range(round(seconds / 0.002)):
            self.now += 0.002
            if round(self.now * 1000) % 50 < 2:
                for node in heartbeats.split():
                    self.step(core.HeartbeatReceived(Heartbeat(node, 1, self.serials[node], 50.0)))
            effects += self.step(core.Ticked())
        return effects

    def lose_worker(self, id_: str) -> list[core.GatewayEffect]:
        self.gateway.replicas[id_].link = None
        return self.step(core.WorkerLost(id_))

    def activations(self) -> list[core.SendActivate]:
        return [e for e in self.effects if isinstance(e, core.SendActivate)]
