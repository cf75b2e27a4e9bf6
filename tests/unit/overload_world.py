"""A queueing simulation around the gateway's machine: replicas that take time, clients that don't care.

Virtual time in steps of a millisecond; arrivals are drawn from a seed. What is simulated is only the worker
and the clients; everything that decides is the real machine and dispatcher.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from gateway_world import BIG, SMALL, FakeRequest, World

from understudy.core.gateway import machine as core
from understudy.core.gateway.rotation import App
from understudy.wire.errors import Code
from understudy.wire.frames import Buffer, Frame, FrameDecoder
from understudy.wire.messages import (
    Failure,
    Heartbeat,
    Infer,
    Kind,
    Ping,
    Pong,
    ReplicaState,
    Result,
    decode_message,
    encode_message,
)
from understudy.wire.records import AppVersion, Role

STEP_S = 0.001
TICK_STEPS = 2
HEARTBEAT_STEPS = 50


class Server:
    """A worker with one model: it takes what waits, `rows_max` at most, for `base_s + row_s * rows`."""

    def __init__(
        self, world: Simulation, id_: str, base_s: float, row_s: float = 0.0, rows_max: int = 1
    ) -> None:
        self.world, self.id = world, id_
        self.base_s, self.row_s, self.rows_max = base_s, row_s, rows_max
        self.queue_max = 256
        self.fails: Code | None = None  # answer this, at once
        self.last_heard_s = world.now
        self.full = False
        self.received = 0
        self._decoder = FrameDecoder()
        self._queue: deque[tuple[float, int]] = deque()  # deadline, stream
        self._running: list[int] = []
        self._until = 0.0
        self._pinged = False
        self._refusals: list[tuple[int, Code]] = []
        world.gateway.replicas[id_].link = self
        world.servers.append(self)

    @property
    def capacity_per_s(self) -> float:
        return self.rows_max / (self.base_s + self.row_s * self.rows_max)

    def write(self, data: bytes, payload: Buffer = b"") -> None:
        for frame in self._decoder.feed(data + payload):
            message = decode_message(frame)
            if isinstance(message, Ping):
                self._pinged = True
                continue
            if not isinstance(message, Infer):
                self._queue = deque(item for item in self._queue if item[1] != frame.stream)
                continue
            self.received += 1
            if self.fails is not None or len(self._queue) >= self.queue_max:
                self._refusals.append((frame.stream, self.fails or Code.BUSY))
            else:
                self._queue.append((self.world.now + message.timeout_us / 1e6, frame.stream))

    def run(self, now: float) -> None:
        if self._pinged:
            self._pinged = False
            self._answer(FrameDecoder().feed(encode_message(Pong()))[0], now)
        refusals, self._refusals = self._refusals, []
        for stream, code in refusals:
            self._answer(FrameDecoder().feed(encode_message(Failure(code, "no"), stream))[0], now)
        if self._running and now >= self._until:
            rows, self._running = self._running, []
            header = msgspec.msgpack.encode(Result(round(self._batch_s(len(rows)) * 1e6), 0, len(rows)))
            for stream in rows:
                self._answer(Frame(Kind.RESULT, stream, 0, header, b"{}"), now)
        while not self._running and self._queue:
            batch = [self._queue.popleft() for _ in range(min(self.rows_max, len(self._queue)))]
            self._running = [stream for deadline, stream in batch if deadline > now]
            started = max(now - STEP_S, self._until)  # within this step
            self._until = started + self._batch_s(len(self._running))

    def _batch_s(self, rows: int) -> float:
        return self.base_s + self.row_s * rows

    def _answer(self, frame: Frame, now: float) -> None:
        self.last_heard_s = now
        self.world.gateway.dispatcher.frame_received(self.world.gateway.replicas[self.id], frame, now)


class SimulatedRequest(FakeRequest):
    __slots__ = ("at", "world")

    def _ended(self, outcome: Any) -> None:
        super()._ended(outcome)
        self.at = self.world.now


class Simulation(World):
    def __init__(self, standby: bool = False, seed: int = 1, **kwargs: Any) -> None:
        self.servers: list[Server] = []
        self.late_s = 0.0  # the gateway's loop
        self.extra: dict[str, AppVersion] = {}
        super().__init__(standby, **kwargs)
        self.random = random.Random(seed)
        self.requests: list[SimulatedRequest] = []
        self._steps = 0

    def add_app(self, name: str, **spec: Any) -> App:
        """One more app, with a replica named like it on n3."""
        self.extra[name] = AppVersion(name, 1, (BIG, SMALL), **spec)
        table = self.gateway.table
        apps = (self.app_version, *self.extra.values())
        self.step(core.RoutesReceived(msgspec.structs.replace(table, revision=table.revision + 1, apps=apps)))
        replicas = [
            ReplicaState(other, other, 1, "big", Role.PRIMARY, "ready", f"unix:/{other}", pid=1)
            for other in self.extra
        ]
        self.report("n3", *replicas)
        return self.gateway.apps[name]

    def run(self, seconds: float, load: dict[str, float] | Callable[[], dict[str, float]]) -> None:
        """`load`: requests per second by app."""
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            self._steps += 1
            for server in self.servers:
                server.run(self.now)
            for name, per_s in (load() if callable(load) else load).items():
                app = self.gateway.apps[name]
                for _ in range(self._arrivals(per_s * STEP_S)):
                    self.send(app)
            if self._steps % HEARTBEAT_STEPS == 0:
                for node in ("n1", "n2", "n3"):
                    self.step(core.HeartbeatReceived(Heartbeat(node, 1, self.serials[node], 50.0)))
            if self._steps % TICK_STEPS == 0:
                self.step(core.Ticked(self.late_s))

    def send(self, app: App, client: str = "", timeout_s: float | None = None) -> SimulatedRequest:
        deadline = self.now + (timeout_s or app.spec.deadline_ms / 1000)
        request = SimulatedRequest(app, b"{}", self.now, deadline, client=client)
        request.world = self
        self.requests.append(request)
        self.gateway.dispatcher.submit(request, self.now)
        return request

    def _arrivals(self, mean: float) -> int:
        """Poisson, by exponential gaps."""
        count, at = 0, self.random.expovariate(1.0)
        while at < mean:
            count += 1
            at += self.random.expovariate(1.0)
        return count

    def since(self, moment: float, app: str = "digits") -> Outcomes:
        ended = [r for r in self.requests if r.app.name == app and r.done and r.at >= moment]
        return Outcomes(ended, self.now - moment)


class Outcomes:
    """Of the requests of a stretch of time."""

    def __init__(self, requests: list[SimulatedRequest], seconds: float) -> None:
        self.answered = [r for r in requests if isinstance(r.outcome, tuple)]
        self.refused = [r for r in requests if r.outcome is Code.SHED]
        self.others = [r for r in requests if not isinstance(r.outcome, tuple) and r.outcome is not Code.SHED]
        self.seconds = seconds

    @property
    def goodput_per_s(self) -> float:
        return len(self.answered) / self.seconds

    def latency_s(self, quantile: float) -> float:
        latencies = sorted(r.at - r.arrived for r in self.answered)
        return latencies[int(quantile * (len(latencies) - 1))]

    @property
    def slowest_refusal_s(self) -> float:
        return max((r.at - r.arrived for r in self.refused), default=0.0)
