"""A connection without a socket: what a request leaves behind, and heads that are not parsed again."""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import weakref
from itertools import pairwise
from typing import Any

import pytest
from gateway_world import RESULT, World
from hypothesis import given
from hypothesis import strategies as st

from understudy.adapters.buffers import FREE_REFERENCES, Buffers
from understudy.gateway import http
from understudy.gateway.answers import error_answer
from understudy.gateway.api import Api
from understudy.gateway.exchange import Head
from understudy.gateway.http import KNOWN_HEADS_MAX, HttpConnection
from understudy.invariants import InvariantBroken
from understudy.settings.gateway import GatewayTuning, HttpLimits
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.frames import Frame
from understudy.wire.messages import Kind

WIRE = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n{}"


class RecordingTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = self.ended = False

    def write(self, data: Any) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def connected(world: World) -> tuple[Api, HttpConnection, RecordingTransport]:
    """A client of the world's gateway."""
    api = Api(world.gateway, GatewayTuning())
    api.routes_changed()
    connection = HttpConnection(api, HttpLimits())
    transport = RecordingTransport()
    connection.connection_made(transport)
    return api, connection, transport


def test_requests_leave_no_cycles_for_the_garbage_collector():
    """One cycle per request made collections of 80 ms, in which nobody was answered."""
    world = World()
    _, connection, transport = connected(world)
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


class Forgetful(dict[bytes, Head]):
    """Known heads that are never found: every request goes through the parser."""

    def get(self, key: bytes, default: Any = None) -> Any:
        return default


class Served:
    """An API and a connection whose requests are recorded and answered with their own body."""

    def __init__(self, known_heads: dict[bytes, Head]) -> None:
        self.api = Api(World().gateway, GatewayTuning())
        self.api.known_heads = known_heads
        self.api.handle = self._handle  # type: ignore[method-assign]
        self.seen: list[tuple[Head, bytes]] = []
        self.connection = HttpConnection(self.api, HttpLimits())
        self.transport = RecordingTransport()
        self.connection.connection_made(self.transport)

    def _handle(self, exchange: Any, head: Head, body: bytes, now: float) -> None:
        self.seen.append((head, body))
        exchange.finish(b"HTTP/1.1 200 OK\r\n", body)

    def send(self, *parts: bytes) -> Served:
        for part in parts:
            self.connection.data_received(part)
        return self


def request(body: bytes = b"{}", *headers: bytes, path: bytes = b"/a", method: bytes = b"POST") -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method, path), b"Host: t", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def without_ids(answers: bytes) -> bytes:
    return re.sub(rb"X-Request-Id: [0-9a-f]{8}-[0-9a-f]+\r\n", b"", answers)


REQUESTS = (
    request(),
    request(b"[1]"),
    request(b"[2]"),
    request(b"", path=b"/b"),
    request(b"[3]", b"Understudy-Timeout-Ms: 5"),
    request(b"[4]", b"Expect: 100-continue"),
    request(b"[5]", b"Connection: close"),
    request(b"[6]", b"Connection: Upgrade", b"Upgrade: h2c"),
    b"GET /c HTTP/1.1\r\nHost: t\r\n\r\n",
    b"POST /d HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"POST /e HTTP/1.0\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n{}",
    b"\r\n" + request(),
    b"POST /f HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    b"rubbish\r\n\r\n",
)


@given(st.lists(st.sampled_from(REQUESTS), max_size=12), st.lists(st.integers(0, 400), max_size=12))
def test_a_known_head_means_what_the_parser_made_of_it(requests: list[bytes], cuts: list[int]):
    stream = b"".join(requests)
    ends = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    parts = [stream[start:end] for start, end in pairwise(ends)]
    for pieces in (requests, parts):  # whole requests are what fills the known heads
        parsed, known = Served(Forgetful()), Served({})
        for _ in range(2):
            parsed.send(*pieces)
            known.send(*pieces)
        assert known.seen == parsed.seen
        assert without_ids(known.transport.written) == without_ids(parsed.transport.written)
        assert known.connection.phase == parsed.connection.phase
        assert known.api.bytes_held == parsed.api.bytes_held


def test_a_repeated_head_is_known_whatever_the_body():
    served = Served({})
    served.send(request(b"[1]"), request(b"[2]"), request(b"[3]") + request(b"[4]"))
    assert [body for _, body in served.seen] == [b"[1]", b"[2]", b"[3]", b"[4]"]
    assert len({id(head) for head, _ in served.seen[1:]}) == 1, "it was parsed again"


def test_known_heads_are_bounded():
    served = Served({})
    for number in range(3 * KNOWN_HEADS_MAX):
        served.send(request(path=b"/%d" % number))
        assert len(served.api.known_heads) <= KNOWN_HEADS_MAX
    served.send(request(b"{}", b"Cookie: " + b"c" * 2000))
    assert all(len(head) <= 1024 for head in served.api.known_heads)


def test_a_draining_gateway_closes_a_connection_with_a_known_head():
    served = Served({}).send(request(), request())
    served.api.draining = True
    served.send(request())
    assert served.transport.written.endswith(b"Connection: close\r\n\r\n{}")


def test_a_known_head_does_not_lift_the_bound_on_bodies_held():
    served = Served({}).send(request())
    served.api.bytes_held = HttpLimits().body_bytes_total_max
    served.send(request())
    assert b"503 Service Unavailable" in served.transport.written


class Held(Served):
    """Answers nothing until it is told to."""

    def __init__(self, limits: HttpLimits | None = None) -> None:
        super().__init__({})
        self.open: list[tuple[Any, bytes]] = []
        self.connection.limits = limits or HttpLimits()

    def _handle(self, exchange: Any, head: Head, body: bytes, now: float) -> None:
        self.seen.append((head, body))
        self.open.append((exchange, body))

    def answer(self) -> None:
        exchange, body = self.open.pop(0)
        exchange.finish(b"HTTP/1.1 200 OK\r\n", body)


def statuses(written: bytes) -> list[int]:
    return [int(part[:3]) for part in written.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("known", [True, False])
def test_requests_that_came_in_one_read_wait_beyond_the_pipelines_limit(known: bool):
    """One read holds thousands of small ones; all at once they would hold a thousand times its size."""

    async def talk() -> None:
        served = Held(HttpLimits(pipeline_max=3))
        if known:
            served.send(request()).answer()
        served.seen.clear()
        served.send(b"".join(request(b"%d" % number) for number in range(10, 99)))
        assert len(served.seen) == 3
        while served.open:
            served.answer()
            await asyncio.sleep(0)
            assert len(served.connection.queue) <= 3
        assert [body for _, body in served.seen] == [b"%d" % number for number in range(10, 99)]
        assert statuses(served.transport.written)[-89:] == [200] * 89

    asyncio.run(talk())


def test_a_client_that_reads_no_answers_is_given_one():
    served = Served({})

    def full(data: bytes) -> None:
        served.transport.written += data
        served.connection.pause_writing()

    served.transport.write = full  # type: ignore[method-assign]
    served.send(request() * 1000)
    assert len(served.seen) == 1


def test_head_is_answered_without_a_body():
    """A body would be read as the beginning of the next answer."""
    served = Served({}).send(request(b"[1]", method=b"HEAD"), request(b"[2]"))
    first, second = without_ids(served.transport.written).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert first == b"Content-Length: 3\r\n\r\n"
    assert second.endswith(b"[2]")


def test_a_body_is_asked_for_after_the_answers_to_earlier_requests():
    served = Held().send(request(b"[1]"), request(b"[2]", b"Expect: 100-continue")[:-3])
    assert served.transport.written == b""
    served.answer()
    assert statuses(served.transport.written) == [200, 100]
    served.send(b"[2]").answer()
    assert statuses(served.transport.written) == [200, 100, 200]


def test_no_body_is_asked_for_when_there_is_none():
    """Found by fuzzing: it was asked for later, in the name of another request."""
    served = Held().send(request(b"[1]"), request(b"", b"Expect: 100-continue"), request(b"[3]"))
    for _ in range(3):
        served.answer()
    assert statuses(served.transport.written) == [200, 200, 200]


@pytest.mark.parametrize("line", [b"Expect: the worst\r\n", b"Expect: 100-continue\r\n"])
def test_only_a_client_that_may_wait_is_told_to_continue(line: bytes):
    version = b"1.1" if b"worst" in line else b"1.0"
    served = Held().send(b"POST /a HTTP/%b\r\nHost: t\r\nContent-Length: 2\r\n%b\r\n" % (version, line))
    assert served.transport.written == b""


@pytest.mark.parametrize("line", [b"GET /a", b"GET /a HTTP/0.9", b"GET /a HTTP/2.0"])
def test_other_versions_of_http_are_refused(line: bytes):
    served = Served({}).send(line + b"\r\n\r\n")
    assert statuses(served.transport.written) == [505]
    assert not served.seen


@pytest.mark.parametrize(
    ("encoding", "status"),
    [
        (b"Chunked", 200),
        (b"chunked ", 200),
        (b"gzip, chunked", 501),
        (b"gzip\r\nTransfer-Encoding: chunked", 400),
        (b"\xe9", 501),
    ],
)
def test_no_body_is_taken_for_another_one(encoding: bytes, status: int):
    head = b"POST /a HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: %b\r\n\r\n" % encoding
    served = Served({}).send(head + b"2\r\n{}\r\n0\r\n\r\n")
    assert len(served.seen) == (status == 200)
    assert status == 200 or statuses(served.transport.written) == [status]


@pytest.mark.parametrize(
    ("header", "value", "taken"),
    [
        (b"Understudy-Timeout-Ms", b"1000", True),
        (b"Understudy-Timeout-Ms", b"0.5", True),
        (b"Understudy-Timeout-Ms", b"1000 \t", True),
        *((b"Understudy-Timeout-Ms", v, False) for v in (b"1_000", b"1e3", b"+1", b".5", b"nan", b"\xb2")),
        (b"Inference-Header-Content-Length", b"1_0", False),
    ],
)
def test_a_number_is_digits(header: bytes, value: bytes, taken: bool):
    world = World()
    api = Api(world.gateway, GatewayTuning())
    api.routes_changed()
    connection, transport = HttpConnection(api, HttpLimits()), RecordingTransport()
    connection.connection_made(transport)
    connection.data_received(WIRE.replace(b"\r\n\r\n", b"\r\n%b: %b\r\n\r\n" % (header, value), 1))
    assert len(list(world.links["r1"].infers())) == taken
    assert taken or b"HTTP/1.1 400" in transport.written
    assert b"b'" not in transport.written


def test_of_an_unknown_encoding_it_is_said_which_are_known():
    error = UnderstudyError(Code.INVALID_ARGUMENT, "not known")
    assert b"Accept-Encoding: gzip, deflate\r\n" in error_answer(error, 1, status=415)[0]


CHUNKED = b"POST /a HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n%b\r\n"


def test_trailers_are_no_headers_of_the_request():
    served = Served({}).send(CHUNKED % b"" + b"2\r\n{}\r\n0\r\nUnderstudy-Timeout-Ms: 1\r\n\r\n")
    ((head, body),) = served.seen
    assert (sorted(head.headers), body) == ([b"host", b"transfer-encoding"], b"{}")


@pytest.mark.parametrize("endless", [b"0\r\nX: ", b"2;x="])
def test_trailers_and_extensions_of_chunks_are_bounded(endless: bytes):
    """A parser collects a header until it ends."""
    served = Served({}).send(CHUNKED % b"", endless)
    for _ in range(40):
        served.send(b"x" * 1000)
    assert statuses(served.transport.written) == [431]


def test_a_chunked_body_may_be_larger_than_headers_may_be():
    chunk = b"1\r\nx\r\n" * 2000
    served = Served({}).send(CHUNKED % b"", *[chunk] * 30, b"0\r\n\r\n")
    assert [len(body) for _, body in served.seen] == [60_000]


def test_a_chunked_body_after_an_offer_to_upgrade_is_refused():
    """The parser would leave it out."""
    offer = CHUNKED % b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    served = Served({}).send(offer + b"2\r\n{}\r\n0\r\n\r\n")
    assert not served.seen
    assert statuses(served.transport.written) == [400]


def test_a_client_that_is_cut_off_can_read_why():
    """Closing while it sends would reset the connection, and the reset would overtake the answer."""
    served = Served({}).send(b"POST /a HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999\r\n\r\n")
    assert statuses(served.transport.written) == [413]
    assert (served.transport.ended, served.transport.closed) == (True, False)
    served.send(b"x" * 1000)
    served.connection.sweep(served.connection.due + 0.1)
    assert served.transport.closed


def test_a_connection_whose_answer_took_long_is_idle_only_from_then_on():
    held = Held()
    held.send(request())
    due = held.connection.due
    held.connection.sweep(due + 0.1)
    held.answer()
    held.connection.sweep(due + 0.6)
    assert not held.transport.closed, "its client may well ask again"
    held.connection.sweep(held.connection.due + 0.1)
    assert held.transport.closed


LARGE = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: t\r\nContent-Length: 900000\r\n\r\n"
LOST = {
    "half of a body is there": bytes(8000),
    "a request waits for its answer": bytes(900_000),
}


@pytest.mark.parametrize("when", sorted(LOST))
def test_a_lost_connection_leaves_nothing_for_the_garbage_collector(
    when: str, monkeypatch: pytest.MonkeyPatch
):
    """Bodies waited for a collection, uncounted, while the next client sent its own."""
    buffers = Buffers()
    monkeypatch.setattr(http, "BUFFERS", buffers)
    world = World()
    api, connection, transport = connected(world)
    connection.data_received(LARGE + LOST[when])
    (block,) = buffers._kept
    assert sys.getrefcount(block) > FREE_REFERENCES
    gone = weakref.ref(connection)
    world.links["r1"].sent.clear()  # what a real link has written by then
    gc.disable()
    try:
        getattr(transport, "protocol", connection).connection_lost(None)
        del connection
        world.advance(1.0)  # past the hedge delay, so that no queue holds the request any more
        assert sys.getrefcount(block) == FREE_REFERENCES
        del transport  # a real one lets go of its protocol, if later
        assert gone() is None
    finally:
        gc.enable()
    assert api.bytes_held == 0


# What proxies and browsers write

TARGETS = {
    b"/a": b"/a",
    b"/a/": b"/a",
    b"http://t/a": b"/a",
    b"HTTPS://t:443/a/?b=/c/": b"/a?b=/c/",
    b"http://t": b"/",
    b"http://t?b": b"/?b",
    b"/": b"/",
    b"*": b"*",
    b"ftp://t/a": b"ftp://t/a",
}


@pytest.mark.parametrize(("target", "path"), TARGETS.items())
def test_a_target_may_be_a_whole_url_or_end_in_a_slash(target: bytes, path: bytes):
    """RFC 9112, 3.2.2: a server must accept the absolute form."""
    served = Served({}).send(b"OPTIONS %b HTTP/1.1\r\nHost: t\r\n\r\n" % target)
    assert [head.url for head, _ in served.seen] == [path]


@pytest.mark.parametrize("lines", [b"", b"Host: a\r\nHost: b\r\n"])
def test_a_request_names_one_host(lines: bytes):
    served = Served({}).send(b"GET /a HTTP/1.1\r\n%b\r\n" % lines)
    assert statuses(served.transport.written) == [400]
    assert not served.seen


def test_an_old_client_names_none():
    assert Served({}).send(b"GET /a HTTP/1.0\r\n\r\n").seen


class Mistaken(RecordingTransport):
    """Our own code fails when it writes here."""

    def write(self, data: Any) -> None:
        raise ValueError("a mistake")

    def abort(self) -> None:
        self.closed = True


@pytest.mark.parametrize("failure", [False, True])
def test_an_answer_that_our_own_mistake_breaks_ends_its_connection_and_no_other(failure: bool) -> None:
    world = World()
    api = Api(world.gateway, GatewayTuning())
    api.routes_changed()
    connections, transports = [], [Mistaken(), RecordingTransport()]
    for transport in transports:
        connection = HttpConnection(api, HttpLimits())
        connection.connection_made(transport)
        connection.data_received(WIRE)
        connections.append(connection)
    for frame in list(world.links["r1"].infers()):
        world.reply("r1", frame, Code.INVALID_ARGUMENT if failure else None)
    assert [transport.closed for transport in transports] == [True, False]
    assert transports[1].written.startswith(b"HTTP/1.1 400" if failure else b"HTTP/1.1 200")
    connections[0].connection_lost(None)
    assert (world.gateway.dispatcher.inflight, api.bytes_held) == (0, 0)
    assert api.crashes.contained == {"request": 1}


def test_a_request_that_ends_twice_or_a_count_below_zero_is_a_broken_invariant() -> None:
    world = World()
    request = world.request()
    world.reply("r1")
    with pytest.raises(InvariantBroken):
        world.gateway.dispatcher.flights.end(request)
    another = world.request()
    world.app.inflight = 0
    with pytest.raises(InvariantBroken):
        world.gateway.dispatcher.cancel(another)
