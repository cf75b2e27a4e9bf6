"""Frame links over real sockets: replies find their callers, and a bad peer harms itself only."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from understudy.adapters.links import SILENCE_MS_MAX, FrameLink, dial, keep_connected, listen, parse_address
from understudy.wire.errors import Code, ConfigError, InvalidArgument, ProtocolError, UnderstudyError
from understudy.wire.frames import PREFIX, Frame, encode_frame
from understudy.wire.messages import (
    Drain,
    Drained,
    Hello,
    Infer,
    Kind,
    Ping,
    Pong,
    Probe,
    Probed,
    decode_message,
    encode_infer,
    encode_message,
)

TIMEOUT_S = 5.0  # of anything that should happen: reached only by a failing test


class Peer:
    """One end: remembers frames and why links were lost, answers by `answer`."""

    def __init__(self, answer: Callable[[FrameLink, Frame], None] | None = None, **limits: int) -> None:
        self.answer = answer
        self.limits = limits
        self.links: list[FrameLink] = []
        self.frames: list[Frame] = []
        self.lost: list[Exception | None] = []
        self._changed = asyncio.Event()

    def make(self) -> FrameLink:
        return FrameLink(self._frame_came, self._link_lost, on_made=self._link_made, **self.limits)

    def _link_made(self, link: FrameLink) -> None:
        self.links.append(link)
        self._changed.set()

    def _frame_came(self, link: FrameLink, frame: Frame) -> None:
        self.frames.append(frame)
        if self.answer is not None:
            self.answer(link, frame)
        self._changed.set()

    def _link_lost(self, _link: FrameLink, error: Exception | None) -> None:
        self.lost.append(error)
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def pong(link: FrameLink, frame: Frame) -> None:
    link.send(Pong(), frame.stream)


def run(test: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_watched(test))


async def _watched(test: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(2 * TIMEOUT_S):
        await test()


@contextlib.asynccontextmanager
async def linked(server: Peer, client: Peer) -> AsyncIterator[tuple[FrameLink, FrameLink]]:
    """(server's link, client's link) over a socket pair."""
    left, right = socket.socketpair()
    loop = asyncio.get_running_loop()
    _, server_link = await loop.create_connection(server.make, sock=left)
    _, client_link = await loop.create_connection(client.make, sock=right)
    try:
        yield server_link, client_link
    finally:
        server_link.abort()
        client_link.abort()
        await server.until(lambda: server.lost)
        await client.until(lambda: client.lost)


@contextlib.asynccontextmanager
async def raw_peer(peer: Peer) -> AsyncIterator[tuple[FrameLink, socket.socket]]:
    """A link and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, link = await asyncio.get_running_loop().create_connection(peer.make, sock=ours)
    try:
        yield link, theirs
    finally:
        theirs.close()
        link.abort()
        await peer.until(lambda: peer.lost)


def test_a_call_gets_its_reply() -> None:
    async def test() -> None:
        async with linked(Peer(pong), Peer()) as (_, client):
            assert await client.call(Ping(), Pong, TIMEOUT_S) == Pong()

    run(test)


def test_replies_find_their_callers_in_any_order() -> None:
    async def test() -> None:
        waiting: list[Frame] = []

        def answer_backwards(link: FrameLink, frame: Frame) -> None:
            waiting.append(frame)
            if len(waiting) == 20:
                for asked in reversed(waiting):
                    message = decode_message(asked)
                    assert isinstance(message, Drain)
                    link.send(Drained(int(message.timeout_ms)), asked.stream)

        async with linked(Peer(answer_backwards), Peer()) as (_, client), asyncio.TaskGroup() as group:
            calls = [group.create_task(client.call(Drain(n), Drained, TIMEOUT_S)) for n in range(20)]
        assert [call.result().finished for call in calls] == list(range(20))

    run(test)


def test_a_body_of_many_reads_arrives_whole() -> None:
    async def test() -> None:
        server = Peer()
        body = bytes(range(256)) * 20_000
        async with linked(server, Peer()) as (_, client):
            client.send(Infer(1000), 5, body)
            client.send(Infer(2000), 6)
            await server.until(lambda: len(server.frames) == 2)
        assert [(f.stream, len(f.payload)) for f in server.frames] == [(5, len(body)), (6, 0)]
        assert server.frames[0].payload == body

    run(test)


def test_large_payloads_and_small_frames_keep_their_order() -> None:
    async def test() -> None:
        server = Peer()
        bodies = [bytes([number]) * (1 + number % 3 * 300_000) for number in range(12)]
        async with linked(server, Peer()) as (_, client):
            for number, body in enumerate(bodies):
                client.write(*encode_infer(1.0, number, body))
            await server.until(lambda: len(server.frames) == len(bodies))
        assert [frame.stream for frame in server.frames] == list(range(len(bodies)))
        assert [bytes(frame.payload) for frame in server.frames] == bodies

    run(test)


def test_a_link_that_breaks_within_a_large_frame_is_lost_like_any_other() -> None:
    async def test() -> None:
        peer = Peer()
        async with raw_peer(peer) as (_, sock):
            head = PREFIX.pack(1_000_000, 1, Kind.INFER, 0, 0)
            await asyncio.get_running_loop().sock_sendall(sock, head + b"x" * 200_000)
            sock.close()
            await peer.until(lambda: peer.lost)
        assert not peer.frames

    run(test)


def test_a_failure_is_raised_where_it_was_asked_for() -> None:
    async def test() -> None:
        def refuse(link: FrameLink, frame: Frame) -> None:
            link.fail(frame.stream, InvalidArgument("no such input", input="x"))

        async with linked(Peer(refuse), Peer()) as (_, client):
            with pytest.raises(UnderstudyError, match="no such input") as caught:
                await client.call(Probe(), Probed, TIMEOUT_S)
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.context == {"input": "x"}

    run(test)


def test_a_reply_of_another_kind_is_a_protocol_error() -> None:
    async def test() -> None:
        async with linked(Peer(pong), Peer()) as (_, client):
            with pytest.raises(ProtocolError, match="expected Probed, got PONG"):
                await client.call(Probe(), Probed, TIMEOUT_S)

    run(test)


def test_silence_ends_in_a_timeout_and_a_late_reply_harms_nobody() -> None:
    async def test() -> None:
        server, client = Peer(), Peer()
        async with linked(server, client) as (server_link, client_link):
            with pytest.raises(UnderstudyError, match="no reply to Ping") as caught:
                await client_link.call(Ping(), Pong, 0.01)
            assert caught.value.code is Code.TIMEOUT
            await server.until(lambda: server.frames)
            server_link.send(Pong(), server.frames[0].stream)
            await client.until(lambda: client.frames)
            server.answer = pong
            assert await client_link.call(Ping(), Pong, TIMEOUT_S) == Pong()

    run(test)


def test_a_lost_link_fails_every_call_on_it() -> None:
    async def test() -> None:
        server, client = Peer(), Peer()

        async def call(link: FrameLink) -> Code:
            with pytest.raises(UnderstudyError) as caught:
                await link.call(Ping(), Pong, TIMEOUT_S)
            return caught.value.code

        async with linked(server, client) as (server_link, client_link), asyncio.TaskGroup() as group:
            calls = [group.create_task(call(client_link)) for _ in range(3)]
            await server.until(lambda: len(server.frames) == 3)
            server_link.abort()
        assert [task.result() for task in calls] == [Code.LINK_LOST] * 3
        assert client_link.closed
        with pytest.raises(UnderstudyError, match="not connected"):
            await client_link.call(Ping(), Pong, TIMEOUT_S)

    run(test)


def test_closing_sends_what_was_written() -> None:
    async def test() -> None:
        server = Peer()
        async with linked(server, Peer()) as (_, client):
            client.send(Ping(), 9)
            client.close()
            await server.until(lambda: server.lost)
            client.send(Ping(), 10)  # dropped, and no error
        assert [frame.stream for frame in server.frames] == [9]
        assert server.lost == [None]

    run(test)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "malformed frame prefix"),
        (PREFIX.pack(100_000, 1, Kind.INFER, 0, 0), "malformed frame prefix"),
        (encode_message(Ping()) + b"\xff" * 12, "malformed frame prefix"),
    ],
)
def test_garbage_ends_the_link_with_the_reason(data: bytes, why: str) -> None:
    async def test() -> None:
        peer = Peer(frame_bytes_max=50_000)
        async with raw_peer(peer) as (link, theirs):
            theirs.send(data)
            await peer.until(lambda: peer.lost)
            assert link.closed
        assert isinstance(peer.lost[0], ProtocolError)
        assert peer.lost[0].message == why

    run(test)


def test_a_message_that_is_none_ends_the_link_too() -> None:
    async def test() -> None:
        def read(_link: FrameLink, frame: Frame) -> None:
            decode_message(frame)

        peer = Peer(read)
        async with raw_peer(peer) as (_, theirs):
            theirs.send(encode_frame(Kind.HELLO, 0, b"\xc1"))
            await peer.until(lambda: peer.lost)
        assert isinstance(peer.lost[0], ProtocolError)

    run(test)


def test_a_peer_that_stops_reading_is_disconnected() -> None:
    async def test() -> None:
        peer = Peer(buffer_bytes_max=1_000_000)
        async with raw_peer(peer) as (link, _):
            written = 0
            while not link.closed and written < 20_000_000:
                link.send(Infer(1), 1, b"x" * 100_000)
                written += 100_000
                await asyncio.sleep(0)
            assert link.congested
            assert written < 3_000_000
            await peer.until(lambda: peer.lost)
        assert isinstance(peer.lost[0], UnderstudyError)
        assert "stopped reading" in str(peer.lost[0])

    run(test)


def test_a_link_is_full_until_its_peer_has_read() -> None:
    async def test() -> None:
        peer = Peer(full_bytes=1_000_000)
        async with raw_peer(peer) as (link, theirs):
            while not link.full:
                assert link._transport.get_write_buffer_size() <= 1_000_000  # type: ignore[union-attr]
                link.send(Infer(1), 1, b"x" * 100_000)
                await asyncio.sleep(0)
            assert not link.closed
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(TIMEOUT_S):
                while link.full:
                    await loop.sock_recv(theirs, 1 << 20)
            assert not link.congested
            assert not peer.lost

    run(test)


def test_congestion_ends_when_the_peer_reads_again() -> None:
    async def test() -> None:
        peer = Peer()
        async with raw_peer(peer) as (link, theirs):
            link.send(Infer(1), 1, b"x" * 1_000_000)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert link.congested
            loop = asyncio.get_running_loop()
            received = 0
            while received < 1_000_000:
                received += len(await loop.sock_recv(theirs, 1 << 20))
            assert not link.congested

    run(test)


@pytest.mark.parametrize("scheme", ["unix", "tcp"])
def test_dial_and_listen_meet(scheme: str, tmp_path: Path) -> None:
    async def test() -> None:
        server = Peer(pong)
        asked = f"unix:{tmp_path}/run/s.sock" if scheme == "unix" else "tcp:127.0.0.1:0"
        with contextlib.closing(await listen(asked, server.make)) as listener:
            port: Any = listener.sockets[0].getsockname()[1] if scheme == "tcp" else None
            client = Peer()
            link = await dial(f"tcp:127.0.0.1:{port}" if port else asked, client.make)
            assert await link.call(Ping(), Pong, TIMEOUT_S) == Pong()
            link.close()
            await client.until(lambda: client.lost)
            await server.until(lambda: server.lost)

    run(test)


def test_a_machine_that_went_without_a_word_is_missed_by_both_ends() -> None:
    async def test() -> None:
        peers = Peer(), Peer()
        server = await listen("tcp:127.0.0.1:0", peers[0].make)
        port = server.sockets[0].getsockname()[1]
        link = await dial(f"tcp:127.0.0.1:{port}", peers[1].make)
        await peers[0].until(lambda: peers[0].links)
        for end in (link, peers[0].links[0]):
            assert end._transport is not None
            sock = end._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENCE_MS_MAX
        link.close()
        await peers[0].until(lambda: peers[0].lost)
        server.close()

    run(test)


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))

    async def test() -> None:
        first = await listen(f"unix:{path}", Peer().make)
        with pytest.raises(ConfigError, match="another process listens here already"):
            await listen(f"unix:{path}", Peer().make)
        first.close()

    run(test)


def test_a_file_is_never_mistaken_for_a_stale_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("precious")

    async def test() -> None:
        with pytest.raises(ConfigError, match="can't listen"):
            await listen(f"unix:{path}", Peer().make)

    run(test)
    assert path.read_text() == "precious"


def test_dialling_nobody_says_so(tmp_path: Path) -> None:
    async def test() -> None:
        for address in (f"unix:{tmp_path}/none.sock", "tcp:127.0.0.1:1"):
            with pytest.raises(UnderstudyError, match=address) as caught:
                await dial(address, Peer().make)
            assert caught.value.code is Code.UNAVAILABLE

    run(test)


def test_a_link_is_kept_through_restarts_of_the_listener(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s.sock"

    async def test() -> None:
        client = Peer()
        served: list[Hello] = []

        async def serve(link: FrameLink) -> None:
            link.send(Hello("gateway", f"start-{len(served)}"))
            served.append(Hello("gateway", "g"))
            lost_before = len(client.lost)
            await client.until(lambda: len(client.lost) > lost_before)

        async def listen_once(start: int) -> None:
            server = Peer()
            with contextlib.closing(await listen(address, server.make)):
                await server.until(lambda: server.frames)
                assert decode_message(server.frames[0]) == Hello("gateway", f"start-{start}")
                server.links[0].abort()
                await server.until(lambda: server.lost)
            Path(address.removeprefix("unix:")).unlink(missing_ok=True)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(keep_connected(address, client.make, serve, backoff_s_max=0.05))
            for start in range(3):
                await listen_once(start)
            task.cancel()

    run(test)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("unix:/run/a.sock", ("unix", "/run/a.sock", 0)),
        ("tcp:127.0.0.1:80", ("tcp", "127.0.0.1", 80)),
        ("tcp:[::1]:80", ("tcp", "::1", 80)),
    ],
)
def test_addresses(address: str, parts: tuple[str, str, int]) -> None:
    assert parse_address(address) == parts


@pytest.mark.parametrize(
    "address",
    [
        "",
        "unix:",
        "tcp:host",
        "tcp:host:70000",
        "tcp::80",
        "tcp:host:x",
        "tcp:host:²",
        "http:a:1",
        "unix:" + "a" * 108,
    ],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigError):
        parse_address(address)
