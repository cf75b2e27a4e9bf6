"""Connections of clients, without sockets: bytes in, answers out.

Three connections are sent the same pieces: one parses every head, one takes known heads as known, one serves
the real API. The first two must be answered alike; none may answer a request twice, late or not at all.
"""

from __future__ import annotations

import sys
from asyncio import events
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import http_grammar
from http_peer import Peer
from mutations import cut

from understudy.gateway.api import Api
from understudy.gateway.door import Door
from understudy.gateway.exchange import Exchange, Head
from understudy.gateway.half_closed import BEGIN
from understudy.gateway.http import HttpConnection
from understudy.gateway.request_id import RequestIds
from understudy.gateway.shares import ByteShares, Connections
from understudy.settings.gateway import GatewayConfig, GatewayTuning, HttpLimits
from understudy.wire.errors import UnderstudyError
from understudy.wire.frames import Buffer, Frame
from understudy.wire.messages import Kind

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit"))
import gateway_world

LIMITS = HttpLimits(
    header_bytes_max=2048,
    headers_max=20,
    body_bytes_max=200_000,
    body_bytes_total_max=300_000,
    pipeline_max=4,
)
REFUSALS = {400, 403, 408, 413, 421, 431, 501, 503, 505}  # of a connection; the API has others
API_STATUSES = {200, 404, 405, 415, 500, *REFUSALS}


class Forgetful(dict[bytes, Head]):
    """Known heads that are never found: every request goes through the parser."""

    def get(self, key: bytes, default: Any = None) -> Any:
        return default


class Steps:
    """As much of an event loop as a connection uses: what is to be called soon."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, _delay_s: float, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def run(self) -> None:
        while self.soon:
            self.soon.pop(0)()


class NoIds(RequestIds):
    """A name that is the same for all, so that answers can be compared."""

    def of(self, headers: Mapping[bytes, bytes]) -> bytes:
        return b"-"


class Recorder:
    """A service that notes what it is asked. Answers each request with its number, some at once."""

    def __init__(self, known_heads: dict[bytes, Head]) -> None:
        self.draining = False
        self.known_heads = known_heads
        self.bytes_held = 0
        self.retry_after_s = 1
        self.authenticator = None
        self.door = Door(GatewayConfig(name="g1", hosts=("t",)), None, "token")
        self.cors = None
        self.request_ids = NoIds()
        self.connections = Connections(10)
        self.shares = ByteShares(1 << 40, 0, list)

    def begin(self, chance: Random) -> None:
        self.chance = chance
        self.seen: list[tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...], bytes]] = []
        self.pending: list[tuple[int, Exchange]] = []

    def over_share(self, client: str, app: str = "") -> None:
        pass

    def note_refusal(self, error: UnderstudyError, method: bytes, url: bytes, origin: str) -> None:
        pass

    def body_bytes_max(self, target: bytes) -> int:
        return LIMITS.body_bytes_max

    def cancel(self, request: Any) -> None:
        raise AssertionError("no exchange had a request")

    def handle(self, exchange: Exchange, head: Head, body: Buffer, now: float) -> None:
        self.seen.append((head.method, head.url, tuple(head.headers.items()), bytes(body)))
        self.pending.append((len(self.seen) - 1, exchange))
        if self.chance.random() < 0.5:
            self.answer_one()

    def answer_one(self) -> None:
        number, exchange = self.pending.pop(self.chance.randrange(len(self.pending)))
        exchange.finish(b"HTTP/1.1 200 OK\r\nNumber: %d\r\n" % number, b"%d" % number)


class HttpTarget:
    name = "http"

    def __init__(self) -> None:
        self.steps = Steps()
        self.parsed, self.known = Recorder(Forgetful()), Recorder({})
        self.real = RealService()

    def generate(self, rng: Random) -> list[bytes]:
        return cut(rng, http_grammar.stream(rng))

    def check(self, pieces: list[bytes]) -> str:
        events._set_running_loop(self.steps)  # type: ignore[arg-type]
        try:
            return self._check(pieces)
        finally:
            events._set_running_loop(None)

    def _check(self, pieces: list[bytes]) -> str:
        chance = crc32(b"".join(pieces[-2:]))
        parsed = self._talk(self.parsed, pieces, chance)
        known = self._talk(self.known, pieces, chance)
        assert self.known.seen == self.parsed.seen, "a known head was read as another request"
        assert known.written == parsed.written
        begun = (
            BEGIN if parsed.lost else b""
        )  # what a client that half closed is asked with, before its answer
        answers = read_answers(parsed.written.removesuffix(begun), [seen[0] for seen in self.parsed.seen])
        _check_answers(answers, len(self.parsed.seen), parsed)
        if chance % 4 == 0:
            self._check_api(pieces, len(self.parsed.seen))
        if chance % 8 == 0:
            self._check_whole(pieces, parsed)
        refused = any(status != 200 for status, _, _ in answers)
        return "refused" if refused else f"{min(len(answers), 2)} answers"

    def _talk(self, service: Recorder, pieces: list[bytes], seed: int) -> Peer:
        chance = Random(seed)
        service.begin(chance)
        connection = HttpConnection(service, LIMITS)
        peer = Peer(connection, slow=chance.random() < 0.2)
        for piece in pieces:
            peer.send(piece)
            self.steps.run()
            while service.pending and chance.random() < 0.5:
                service.answer_one()
                self.steps.run()
            if chance.random() < 0.5:
                peer.read_all()
                self.steps.run()
            assert len(connection.queue) <= LIMITS.pipeline_max + 1
        if chance.random() < 0.3:
            peer.send_eof()
        lost = chance.random() < 0.1
        while not lost and (service.pending or self.steps.soon or peer.unread):
            self.steps.run()
            peer.read_all()
            if service.pending:
                service.answer_one()
        assert lost or not peer.unsent or connection.closing, "requests were left unread"
        peer.lost = lost
        peer.lose()
        self.steps.run()
        service.pending.clear()
        assert not service.connections
        assert service.bytes_held == 0, service.bytes_held
        return peer

    def _check_api(self, pieces: list[bytes], requests: int) -> None:
        connection = HttpConnection(self.real.api, LIMITS)
        peer = Peer(connection, slow=False)
        for piece in pieces:
            peer.send(piece)
            self.steps.run()
            self.real.answer_all()
            self.steps.run()
        for status, _, _ in read_answers(peer.written, None):
            assert status in API_STATUSES, status
        peer.lose()
        assert not self.real.api.connections
        assert self.real.api.bytes_held == 0
        assert not self.real.api.crashes.contained
        self.real.rest()

    def _check_whole(self, pieces: list[bytes], cut_peer: Peer) -> None:
        """The same bytes in one read are the same requests, unless something is refused on the way."""
        seen = self.parsed.seen
        if len(pieces) == 1 or b"HTTP/1.1 4" in cut_peer.written or b"HTTP/1.1 5" in cut_peer.written:
            return
        whole = self._talk(self.parsed, [b"".join(pieces)], 1)
        if whole.lost or cut_peer.lost:
            return
        assert self.parsed.seen == seen, "it matters how the bytes were cut"


class RealService:
    """The gateway's API before a replica that answers everything."""

    def __init__(self) -> None:
        self.world = gateway_world.World()
        self.api = Api(self.world.gateway, GatewayTuning(http=LIMITS))
        self.api.routes_changed()

    def answer_all(self) -> None:
        world = self.world
        for replica in world.gateway.replicas.values():
            for stream in list(replica.outstanding):
                answer = Frame(Kind.RESULT, stream, 0, gateway_world.RESULT, b"{}")
                world.gateway.dispatcher.frame_received(replica, answer, world.now)

    def rest(self) -> None:
        for link in self.world.links.values():
            link.sent.clear()
        if self.world.app.queues.watch:
            self.world.now += 1000.0
            self.world.gateway.dispatcher.tick(list(self.world.gateway.apps.values()), self.world.now, 1.0)
        assert self.world.gateway.dispatcher.inflight == 0


def read_answers(data: bytes, methods: list[bytes] | None) -> list[tuple[int, int, bool]]:
    """(status, number, closes) of each answer but interim ones, in order; nothing else may be in `data`."""
    answers: list[tuple[int, int, bool]] = []
    at = 0
    while at < len(data):
        end = data.index(b"\r\n\r\n", at) + 4
        lines = data[at : end - 4].split(b"\r\n")
        version, status, _ = lines[0].split(b" ", 2)
        assert version == b"HTTP/1.1"
        if status == b"100":
            at = end
            continue
        headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
        number = int(headers.get(b"number", -1))
        length = int(headers[b"content-length"])
        is_head = methods is not None and number >= 0 and methods[number] == b"HEAD"
        at = end if is_head or (methods is None and not _has_body(data, end, length)) else end + length
        assert at <= len(data), "an answer is cut off"
        answers.append((int(status), number, headers.get(b"connection") == b"close"))
    return answers


def _has_body(data: bytes, at: int, length: int) -> bool:
    """Whether an answer of unknown kind has its body."""
    return not data.startswith(b"HTTP/1.1 ", at) and length <= len(data) - at


def _check_answers(answers: list[tuple[int, int, bool]], requests: int, peer: Peer) -> None:
    numbers = [number for status, number, _ in answers if number >= 0]
    assert numbers == list(range(len(numbers))), "out of order, or twice"
    assert peer.lost or len(numbers) == requests, "a request without an answer"
    assert all(status == 200 for status, number, _ in answers if number >= 0)
    refusals = [status for status, number, _ in answers if number < 0]
    assert len(refusals) <= 1
    assert set(refusals) <= REFUSALS, refusals
    assert not refusals or answers[-1][1] < 0, "something was answered after a refusal"
    assert not any(closes for _, _, closes in answers[:-1]), "something was answered after the last answer"
    if answers and answers[-1][2] and not peer.lost:
        assert peer.ended, "the connection was not closed"
