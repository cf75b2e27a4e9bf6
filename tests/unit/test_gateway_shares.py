"""No client and no app takes what others need: connections, and bytes of bodies and answers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from gateway_world import World

from understudy.gateway import shares
from understudy.gateway.api import Api
from understudy.gateway.http import HttpConnection
from understudy.gateway.shares import ByteShares, Holding
from understudy.settings.gateway import GatewayTuning, HttpLimits
from understudy.wire.errors import UnderstudyError


class Client(asyncio.Transport):
    """One that reads `reads` bytes and no more."""

    def __init__(self, address: str, reads: int = 1 << 40) -> None:
        super().__init__({"peername": (address, 1)})
        self.protocol: HttpConnection
        self.written = b""
        self.aborted = False
        self._room = reads

    def write(self, data: Any) -> None:
        self.written += data
        if len(self.written) > self._room:
            self.protocol.pause_writing()

    def read_all(self) -> None:
        self._room = 1 << 40
        self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return max(len(self.written) - self._room, 0)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.aborted

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.protocol.connection_lost(None)


class Gateway:
    """Connections of clients; requests wait until they are answered."""

    def __init__(self, **limits: int) -> None:
        settings = GatewayTuning(http=HttpLimits(**limits))
        self.api = Api(World().gateway, settings)
        self.api.handle = self._handle  # type: ignore[method-assign]
        self.open: list[Any] = []

    def _handle(self, exchange: Any, *_: Any) -> None:
        self.open.append(exchange)

    def connect(self, address: str, reads: int = 1 << 40) -> HttpConnection:
        connection = HttpConnection(self.api, self.api.settings.http)
        transport = Client(address, reads)
        transport.protocol = connection
        connection.connection_made(transport)
        return connection

    def answer(self, body: bytes) -> None:
        self.open.pop(0).finish(b"HTTP/1.1 200 OK\r\n", body)


def transport(connection: HttpConnection) -> Client:
    assert isinstance(connection._transport, Client)
    return connection._transport


def post(body: bytes) -> bytes:
    return b"POST /a HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def test_who_has_most_connections_makes_room_for_who_has_less() -> None:
    gateway = Gateway(connections_max=4)
    many = [gateway.connect("many") for _ in range(4)]
    others = [gateway.connect("few"), gateway.connect("one")]
    assert not any(other.gone or other.closing for other in others)
    assert [each.gone for each in many] == [True, True, False, False]
    refused = gateway.connect("many")
    assert (refused.closing, len(gateway.api.connections)) == (True, 4), "its own are as many as it may have"
    assert gateway.connect("few").closing, "it has as many as anybody"
    assert not gateway.connect("new").closing


def test_a_connection_that_somebody_works_for_stays() -> None:
    gateway = Gateway(connections_max=3)
    asked, asking, idle = (gateway.connect("many") for _ in range(3))
    asked.data_received(post(b"{}"))
    asking.data_received(post(b"{}")[:-1])
    gateway.connect("a")
    assert [each.gone for each in (asked, asking, idle)] == [False, False, True], "the idle one goes first"
    gateway.connect("many")
    gateway.connect("b")
    assert [each.gone for each in (asked, asking)] == [False, True]


def test_any_order_of_coming_and_going_is_counted_right() -> None:
    chance = random.Random(5)
    gateway = Gateway(connections_max=10)
    alive: list[HttpConnection] = []
    for _ in range(2000):
        if alive and chance.random() < 0.4:
            connection = alive.pop(chance.randrange(len(alive)))
            transport(connection).abort()
        else:
            connection = gateway.connect(chance.choice("aaab"))
            if not connection.gone:
                alive.append(connection)
        alive = [each for each in alive if not each.gone]
        assert sorted(map(id, gateway.api.connections)) == sorted(map(id, alive))
        assert len(gateway.api.connections) == len(alive) <= 10
    for connection in alive:
        transport(connection).abort()
    assert not gateway.api.connections
    assert not gateway.api.connections._of


@pytest.mark.usefixtures("recount")
def test_one_client_leaves_room_for_the_bodies_of_others() -> None:
    gateway = Gateway(body_bytes_total_max=1000, body_bytes_max=100)
    greedy = [gateway.connect("greedy") for _ in range(30)]
    for connection in greedy:
        connection.data_received(post(bytes(100))[:-1])
    refused = sum(connection.closing for connection in greedy)
    assert 400 < gateway.api.bytes_held <= 600
    assert refused >= 20
    for address in "abcd":
        small = gateway.connect(address)
        small.data_received(post(bytes(20)))
        assert not small.closing
    assert len(gateway.open) == 4
    while gateway.open:
        gateway.answer(b"")
    for connection in list(gateway.api.connections):
        transport(connection).abort()
    assert gateway.api.bytes_held == 0


@pytest.mark.usefixtures("recount")
def test_answers_that_a_client_doesnt_read_are_held_for_it_and_count() -> None:
    gateway = Gateway(body_bytes_total_max=1000, body_bytes_max=100)
    reader, deaf = gateway.connect("reader", reads=100), gateway.connect("deaf", reads=100)
    for connection in (reader, deaf):
        connection.data_received(post(b"{}"))
    gateway.answer(bytes(300))
    assert 200 <= gateway.api.bytes_held - 2 <= 500
    transport(reader).read_all()
    assert gateway.api.bytes_held == 2
    gateway.answer(bytes(900))
    assert deaf.gone, "it holds more than its share"
    assert not reader.gone
    assert gateway.api.bytes_held == 0


@pytest.mark.usefixtures("recount")
def test_answers_that_wait_for_an_earlier_one_count() -> None:
    gateway = Gateway(body_bytes_total_max=10_000, body_bytes_max=100)
    connection = gateway.connect("a")
    connection.data_received(post(b"{}") * 3)
    first = gateway.open.pop(0)
    gateway.answer(bytes(1000))
    gateway.answer(bytes(1000))
    assert 2000 <= gateway.api.bytes_held <= 2500
    first.finish(b"HTTP/1.1 200 OK\r\n", b"")
    assert gateway.api.bytes_held == 0
    assert transport(connection).written.count(b"HTTP/1.1 200") == 3


@pytest.fixture
def recount(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every question."""
    monkeypatch.setattr(shares, "RECOUNT_S", 0.0)
    monkeypatch.setattr(shares, "RECOUNT_TIMES", 0)


@pytest.mark.usefixtures("recount")
@pytest.mark.parametrize("by", ["client", "app"])
def test_whoever_floods_the_last_comer_finds_room(by: str) -> None:
    """Any crowd, whatever it takes: never more than the limit, and who holds nothing gets something."""
    for seed in range(20):
        chance = random.Random(seed)
        held: Counter[str] = Counter()

        def holdings(held: Counter[str] = held) -> list[Holding]:
            return [Holding(name, name, size) for name, size in held.items()]

        limit = 100_000
        bytes_shares = ByteShares(limit, 1000, holdings)

        def ask(name: str, size: int, held: Counter[str] = held, of: ByteShares = bytes_shares) -> bool:
            held[name] += size
            who = (name, "") if by == "client" else ("", name)
            error = of.refusal(held.total(), *who)
            assert error is None or isinstance(error, UnderstudyError)
            if error is not None:
                held[name] -= size
            return error is None

        crowd = [f"c{number}" for number in range(chance.randrange(1, 20))]
        for _ in range(3000):
            ask(chance.choice(crowd[: chance.randrange(len(crowd)) + 1]), chance.randrange(1, 1000))
        assert held.total() <= limit
        assert ask("newcomer", 500), f"seed {seed}: {held}"
