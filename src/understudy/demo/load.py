"""Open-loop load: labelled rows to every app at a fixed rate, whatever the answers do.

Request i of an app is due at start + i / rate; its latency counts from then, also when it left late
(no coordinated omission). It runs as a process of its own, so that nothing the demonstration draws or
starts delays a request: `python -m understudy.demo.load` reads a `LoadPlan` from standard input, writes
batches of `Sample` to standard output, and stops sending when its input ends. Both are msgpack, each
behind its length as u32. Times are seconds of the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import gc
import math
import struct
import sys
import time
from collections import deque
from typing import Literal

import httptools
import msgspec
import uvloop

LENGTH = struct.Struct("<I")
TICK_S = 0.001  # the resolution of the loop's timers
SWEEP_S = 0.01  # how often deadlines are looked at
BATCH_S = 0.1  # how often samples are written
CONNECTIONS_MAX = 512  # per app: at 250 requests/s, two seconds without any answer
CONNECTIONS_READY = 4  # opened per app before the first request is due
CONNECT_TIMEOUT_S = 1.0

Outcome = Literal["ok", "status", "malformed", "timeout", "lost", "unsent"]


class AppLoad(msgspec.Struct, frozen=True):
    """What is sent to one app. `bodies[i]` is a request body whose right answer is `labels[i]`."""

    app: str
    bodies: tuple[bytes, ...]
    labels: tuple[int, ...]
    classes: int
    rate_per_s: float  # 0: closed loop, `CONNECTIONS_READY` connections that ask again once they are answered
    deadline_ms: float


class LoadPlan(msgspec.Struct, frozen=True):
    host: str
    port: int
    apps: tuple[AppLoad, ...]


class Sample(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One request as its client saw it. `outcome` is `ok` only for a well-formed 200 within the deadline."""

    app: int  # index in the plan
    due_s: float
    lag_s: float  # sent later than due by this
    latency_s: float  # from due to the end of the answer, or to giving up
    outcome: Outcome
    status: int = 0  # HTTP; 0 if there was no answer
    variant: str = ""
    degraded: str = ""  # the reason that the answer gave, "" for none
    correct: bool = False  # the label is the true one

    @property
    def done_s(self) -> float:
        return self.due_s + self.latency_s


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class _Body(msgspec.Struct):
    model_name: str
    outputs: list[_Output]


_decode_body = msgspec.json.Decoder(_Body).decode


def label_of(body: bytes, app: str, classes: int) -> int | None:
    """The class that a well-formed answer names; None for any other body."""
    try:
        answer = _decode_body(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    outputs = {output.name: output for output in answer.outputs}
    label, shares = outputs.get("label"), outputs.get("probabilities")
    if answer.model_name != app or label is None or shares is None:
        return None
    if label.datatype != "INT64" or label.shape != [1] or len(label.data) != 1:
        return None
    if shares.datatype != "FP32" or shares.shape != [1, classes] or len(shares.data) != classes:
        return None
    if not all(map(math.isfinite, shares.data)) or not 0 <= label.data[0] < classes:
        return None
    return int(label.data[0])


class _Request:
    __slots__ = ("connection", "deadline_s", "done", "due_s", "expected", "lag_s", "wire")

    def __init__(self, due_s: float, deadline_s: float, wire: bytes, expected: int) -> None:
        self.due_s = due_s
        self.deadline_s = deadline_s
        self.wire = wire
        self.expected = expected
        self.lag_s = 0.0
        self.connection: _Connection | None = None
        self.done = False


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self, sender: _Sender) -> None:
        self._sender = sender
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._request: _Request | None = None
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.variant = ""
        self.degraded = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def send(self, request: _Request) -> None:
        assert self.transport is not None
        self._request = request
        request.connection = self
        request.lag_s = time.monotonic() - request.due_s
        self.transport.write(request.wire)

    def close(self) -> None:
        self._request = None
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            request, self._request = self._request, None
            if request is not None:
                self._sender.finish(request, "malformed")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        request, self._request = self._request, None
        self._sender.lost(self, request)

    # httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"understudy-variant":
            self.variant = value.decode("latin-1")
        elif lowered == b"understudy-degraded":
            self.degraded = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        request, self._request = self._request, None
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        status, keep_alive = self._parser.get_status_code(), self._parser.should_keep_alive()
        variant, degraded = self.variant, self.degraded
        self._body, self.variant, self.degraded = [], "", ""
        if request is None:  # an answer nobody asked for: this peer can't be trusted to keep order
            self.close()
            return
        self._sender.answered(request, status, body, variant, degraded)
        if keep_alive:
            self._sender.connected(self)
        elif self.transport is not None:
            self.transport.close()


class _Sender:
    """Everything about one app: its schedule, its connections, its requests in flight."""

    def __init__(self, generator: LoadGenerator, index: int, load: AppLoad, start_s: float) -> None:
        self._generator = generator
        self._index = index
        self._load = load
        path = f"/v2/models/{load.app}/infer"
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._wires = [f"{head}Content-Length: {len(b)}\r\n\r\n".encode() + b for b in load.bodies]
        self._period_s = 1.0 / load.rate_per_s if load.rate_per_s else 0.0  # 0: closed loop
        self._sent = 0
        self._start_s = start_s
        self._closed = False
        self._connections = 0  # open or being opened
        self.idle: list[_Connection] = []
        self._waiting: deque[_Request] = deque()  # for a connection
        self._in_flight: deque[_Request] = deque()  # by due time; answered ones leave lazily

    def send_due(self, now_s: float) -> None:
        if not self._period_s:
            while self.idle and self._start_s <= now_s:
                self.idle.pop().send(self._next_request(now_s))
            return
        while (due_s := self._start_s + self._sent * self._period_s) <= now_s:
            request = self._next_request(due_s)
            if self.idle:
                self.idle.pop().send(request)
            else:
                self._waiting.append(request)
                self.connect()

    def _next_request(self, due_s: float) -> _Request:
        row = self._sent % len(self._wires)
        self._sent += 1
        deadline_s = due_s + self._load.deadline_ms / 1000.0
        request = _Request(due_s, deadline_s, self._wires[row], self._load.labels[row])
        self._in_flight.append(request)
        return request

    def connect(self) -> None:
        if self._connections < CONNECTIONS_MAX:
            self._connections += 1
            self._generator.spawn_connect(self)

    def connected(self, connection: _Connection) -> None:
        """`connection` is free: for a request that waits, else for a later one."""
        while self._waiting:
            request = self._waiting.popleft()
            if not request.done:
                connection.send(request)
                return
        if self._closed:
            connection.close()
        elif self._period_s or not self._generator.sending:
            self.idle.append(connection)
        else:
            connection.send(self._next_request(time.monotonic()))

    def connect_failed(self) -> None:
        while self._waiting:
            request = self._waiting.popleft()
            if not request.done:
                self.finish(request, "unsent")
                return

    def lost(self, connection: _Connection | None, request: _Request | None) -> None:
        self._connections -= 1
        if connection in self.idle:
            self.idle.remove(connection)
        if request is not None:
            self.finish(request, "lost")

    def sweep(self, now_s: float) -> None:
        """Give up on requests past their deadline. Their connections can't be used again."""
        while self._in_flight and (self._in_flight[0].done or self._in_flight[0].deadline_s < now_s):
            request = self._in_flight.popleft()
            if not request.done:
                self.finish(request, "timeout")
                if request.connection is not None:
                    request.connection.close()

    def answered(self, request: _Request, status: int, body: bytes, variant: str, degraded: str) -> None:
        if status != 200:
            self.finish(request, "status", status)
            return
        label = label_of(body, self._load.app, self._load.classes)
        if label is None:
            self.finish(request, "malformed", status, variant, degraded)
        else:
            self.finish(request, "ok", status, variant, degraded, label == request.expected)

    def finish(
        self,
        request: _Request,
        outcome: Outcome,
        status: int = 0,
        variant: str = "",
        degraded: str = "",
        correct: bool = False,
    ) -> None:
        request.done = True
        now_s = time.monotonic()
        if outcome == "ok" and now_s > request.deadline_s:
            outcome = "timeout"
        latency_s = now_s - request.due_s
        self._generator.samples.append(
            Sample(
                self._index,
                request.due_s,
                request.lag_s,
                latency_s,
                outcome,
                status,
                variant,
                degraded,
                correct,
            )
        )

    @property
    def outstanding(self) -> bool:
        return any(not request.done for request in self._in_flight)

    def close(self) -> None:
        self._closed = True
        while self.idle:
            self.idle.pop().close()


class LoadGenerator:
    """Sends from `start` until `stop`; `samples` grows with each finished request."""

    def __init__(self, plan: LoadPlan, group: asyncio.TaskGroup) -> None:
        self.samples: list[Sample] = []
        self._plan = plan
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._senders: list[_Sender] = []
        self.sending = False
        self._next_sweep_s = 0.0

    def start(self) -> None:
        start_s = time.monotonic() + 0.2  # time for the first connections
        for index, load in enumerate(self._plan.apps):
            offset_s = index / len(self._plan.apps) / load.rate_per_s if load.rate_per_s else 0.0
            sender = _Sender(self, index, load, start_s + offset_s)
            self._senders.append(sender)
            for _ in range(CONNECTIONS_READY):
                sender.connect()
        self.sending = True
        self._tick()

    async def stop(self) -> None:
        """Send nothing more; wait until each request was answered or its deadline passed."""
        self.sending = False
        while any(sender.outstanding for sender in self._senders):
            await asyncio.sleep(SWEEP_S)
            self._sweep(time.monotonic())
        for sender in self._senders:
            sender.close()

    def spawn_connect(self, sender: _Sender) -> None:
        self._group.create_task(self._connect(sender))

    async def _connect(self, sender: _Sender) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(sender), self._plan.host, self._plan.port
                )
        except (OSError, TimeoutError):
            sender.lost(None, None)
            sender.connect_failed()
        else:
            if connection.closed:
                sender.connect_failed()
            else:
                sender.connected(connection)

    def _tick(self) -> None:
        if not self.sending:
            return
        self._loop.call_later(TICK_S, self._tick)
        now_s = time.monotonic()
        for sender in self._senders:
            sender.send_due(now_s)
        if now_s >= self._next_sweep_s:
            self._sweep(now_s)

    def _sweep(self, now_s: float) -> None:
        self._next_sweep_s = now_s + SWEEP_S
        for sender in self._senders:
            sender.sweep(now_s)


def framed(content: bytes) -> bytes:
    return LENGTH.pack(len(content)) + content


async def read_framed(reader: asyncio.StreamReader) -> bytes | None:
    """The next content; None at the end of the stream."""
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        return None


class _Pipe(asyncio.BaseProtocol):
    """Knows when everything has been written."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


async def run() -> None:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin.buffer)
    output, written = await loop.connect_write_pipe(_Pipe, sys.stdout.buffer)
    content = await read_framed(commands)
    if content is None:
        return
    encode = msgspec.msgpack.Encoder().encode

    def write_batch() -> None:
        if generator.samples:
            batch, generator.samples = generator.samples, []
            output.write(framed(encode(batch)))

    async with asyncio.TaskGroup() as group:
        generator = LoadGenerator(msgspec.msgpack.decode(content, type=LoadPlan), group)
        gc.freeze()  # the bodies stay; no collection needs to look at them
        generator.start()
        end = group.create_task(read_framed(commands))
        while not end.done():
            await asyncio.wait([end], timeout=BATCH_S)
            write_batch()
        await generator.stop()
        write_batch()
    output.close()
    await written.closed.wait()  # a batch may be larger than the pipe


def main() -> None:
    uvloop.run(run())


if __name__ == "__main__":
    main()
