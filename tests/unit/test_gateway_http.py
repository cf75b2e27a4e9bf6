"""A connection without a socket: what a request leaves behind in memory."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from gateway_world import RESULT, World

from understudy.config import GatewayTuning, HttpLimits
from understudy.gateway.api import Api
from understudy.gateway.http import HttpConnection
from understudy.wire.frames import Frame
from understudy.wire.messages import Kind

WIRE = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n{}"


class RecordingTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += data


def test_requests_leave_no_cycles_for_the_garbage_collector():
    """One cycle per request made collections of 80 ms, in which nobody was answered."""
    world = World()
    api = Api(world.gateway, GatewayTuning())
    api.routes_changed()
    connection = HttpConnection(api, HttpLimits())
    transport = RecordingTransport()
    connection.connection_made(transport)
    replica = world.gateway.replicas["r1"]

    def exchange(count: int) -> None:
        for _ in range(count):
            connection.data_received(WIRE)
            answer = Frame(Kind.RESULT, next(iter(replica.outstanding)), 0, RESULT, b"{}")
            world.gateway.dispatcher.frame_received(replica, answer, world.now)
        world.advance(1.0)  # past the hedge delay, so that no queue holds them any more

    exchange(10)
    gc.collect()
    gc.disable()
    try:
        exchange(100)
        assert gc.collect() < 20, "cycles were left behind"
    finally:
        gc.enable()
    assert transport.written.count(b"HTTP/1.1 200 OK") == 110
