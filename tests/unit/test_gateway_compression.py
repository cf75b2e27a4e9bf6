"""Compressed bodies: plain within the limit, refused beyond it, never on the loop for long."""

from __future__ import annotations

import asyncio
import gzip
import math
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from time import monotonic
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.gateway import compression
from understudy.gateway.compression import INLINE_BYTES_MAX, Decompressor, Wish, decompress
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.frames import Buffer

LIMIT = 1_000_000
PLAIN = b"0123456789" * 1000


@pytest.mark.parametrize(("encoding", "pack"), [(b"gzip", gzip.compress), (b"DEFLATE", zlib.compress)])
def test_bodies_are_made_plain(encoding: bytes, pack: object) -> None:
    assert callable(pack)
    assert decompress(encoding, pack(PLAIN), LIMIT) == PLAIN
    assert decompress(encoding, pack(PLAIN), len(PLAIN)) == PLAIN
    assert decompress(encoding, pack(b""), LIMIT) == b""


def test_a_gzip_body_may_have_members() -> None:
    """As concatenated files and parallel compressors have them."""
    parts = [PLAIN[:10], b"", bytes(1_000_000), PLAIN[10:]]
    body = b"".join(map(gzip.compress, parts))
    assert decompress(b"x-gzip", memoryview(body), 2 * LIMIT) == b"".join(parts)
    with pytest.raises(UnderstudyError, match="decompressed body too large"):
        decompress(b"gzip", body, LIMIT + 100)
    with pytest.raises(UnderstudyError, match="has more than 64 members"):
        decompress(b"gzip", gzip.compress(b"") * 65, LIMIT)


def test_a_bomb_takes_no_more_memory_than_a_body_may() -> None:
    bomb = gzip.compress(bytes(100_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(UnderstudyError, match="decompressed body too large") as caught:
            decompress(b"gzip", bomb, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 3 * LIMIT
    finally:
        tracemalloc.stop()
    assert caught.value.code is Code.TOO_LARGE


@pytest.mark.parametrize(
    ("encoding", "body", "message"),
    [
        (b"gzip", b"", "ends too early"),
        (b"gzip", PLAIN, "incorrect header check"),
        (b"gzip", gzip.compress(PLAIN, mtime=0)[:-9], "ends too early"),
        (b"gzip", gzip.compress(PLAIN, mtime=0) + b"more", "incorrect header check"),
        (b"gzip", gzip.compress(PLAIN, mtime=0) + gzip.compress(PLAIN)[:-1], "ends too early"),
        (b"deflate", zlib.compress(PLAIN) + zlib.compress(PLAIN), "goes on after its end"),
        (b"gzip", zlib.compress(PLAIN), "incorrect header check"),
        (b"deflate", b"\xff" * 10, "incorrect header check"),
        (b"br", PLAIN, "Content-Encoding 'br' is not known here"),
        (b"gzip, gzip", PLAIN, "is not known here"),
        (b"\xe9", PLAIN, "is not known here"),
    ],
)
def test_what_is_wrong_is_said(encoding: bytes, body: bytes, message: str) -> None:
    with pytest.raises(UnderstudyError, match=message) as caught:
        decompress(encoding, body, LIMIT)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.context.get("status") == (415 if "not known" in message else None)


SIZE = INLINE_BYTES_MAX + 1
End: TypeAlias = Buffer | UnderstudyError


def wish(sender: str = "a", *, due: float = math.inf, gone: Callable[[], bool] = lambda: False) -> Wish:
    return Wish(sender, due, gone)


class Ends:
    """Collects what becomes of bodies, by the name that each was started with."""

    def __init__(self, count: int) -> None:
        self.order: list[str] = []
        self.of: dict[str, End] = {}
        self._count = count
        self._all = asyncio.Event()

    def wait_for(self, name: str) -> Callable[[End], None]:
        def done(end: End) -> None:
            self.order.append(name)
            self.of[name] = end
            if len(self.order) == self._count:
                self._all.set()

        return done

    async def all(self) -> None:
        await self._all.wait()


def test_large_bodies_are_made_plain_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the loop goes on between two pieces."""
    threads: list[str] = []
    step = compression._step

    def watched(job: compression._Job) -> End | None:
        threads.append(threading.current_thread().name)
        return step(job)

    async def test() -> None:
        monkeypatch.setattr(compression, "_step", watched)
        decompressor, ends = Decompressor(100 * SIZE, 8), Ends(2)
        for name, size in (("small", 1000), ("large", 100 * SIZE)):
            decompressor.start(b"gzip", gzip.compress(bytes(size)), wish(), ends.wait_for(name))
        await ends.all()
        assert ends.of == {"small": bytes(1000), "large": bytes(100 * SIZE)}

    asyncio.run(test())
    assert len(threads) > 100
    assert set(threads) == {"decompression"}


def test_senders_take_turns() -> None:
    """Who sends a small body doesn't wait for somebody's many large ones, nor for his first."""

    async def test() -> None:
        decompressor, ends = Decompressor(100 * SIZE, 8), Ends(5)
        large, small = gzip.compress(bytes(100 * SIZE)), gzip.compress(bytes(SIZE))
        for number in range(4):
            decompressor.start(b"gzip", large, wish("much"), ends.wait_for(f"much {number}"))
        decompressor.start(b"gzip", small, wish("little"), ends.wait_for("little"))
        await ends.all()
        assert ends.order == ["little", "much 0", "much 1", "much 2", "much 3"]

    asyncio.run(test())


def test_only_so_many_are_begun_at_once() -> None:
    """What is half made plain holds memory that is counted nowhere."""

    async def test() -> None:
        decompressor, ends = Decompressor(100 * SIZE, 1), Ends(2)
        decompressor.start(b"gzip", gzip.compress(bytes(100 * SIZE)), wish("first"), ends.wait_for("first"))
        decompressor.start(b"gzip", gzip.compress(bytes(SIZE)), wish("second"), ends.wait_for("second"))
        await ends.all()
        assert ends.order == ["first", "second"]

    asyncio.run(test())


def test_only_so_many_large_bodies_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has most waiting is refused for who has less."""
    monkeypatch.setattr(compression, "WAITING_MAX", 3)
    held = threading.Event()
    step = compression._step
    monkeypatch.setattr(compression, "_step", lambda job: step(job) if held.wait(10) else None)

    async def test() -> None:
        decompressor, ends = Decompressor(SIZE, 8), Ends(7)
        body = gzip.compress(bytes(SIZE))
        for name in ("a1", "a2", "a3", "a4", "b1", "b2"):
            decompressor.start(b"gzip", body, wish(name[0]), ends.wait_for(name))
        decompressor.start(b"br", body, wish("c"), ends.wait_for("unknown"))
        assert ends.order == ["a4", "a3", "b2", "unknown"]
        held.set()
        await ends.all()
        for name in ("a1", "a2", "b1"):
            assert ends.of.pop(name) == bytes(SIZE)
        errors = [error for error in ends.of.values() if isinstance(error, UnderstudyError)]
        assert [error.code for error in errors] == [*[Code.SHED] * 3, Code.INVALID_ARGUMENT]

    asyncio.run(test())


def test_nothing_is_made_plain_for_nobody() -> None:
    """Whose client is gone, or has waited in vain: not a piece of it."""

    async def test() -> None:
        decompressor, ends = Decompressor(SIZE, 8), Ends(2)
        body = gzip.compress(bytes(SIZE))
        decompressor.start(b"gzip", body, wish(due=monotonic()), ends.wait_for("late"))
        decompressor.start(b"gzip", body, wish(gone=lambda: True), ends.wait_for("gone"))
        await ends.all()
        for end in ends.of.values():
            assert isinstance(end, UnderstudyError)
            assert end.code is Code.TIMEOUT

    asyncio.run(test())


@given(
    plain=st.binary(max_size=2000),
    times=st.integers(1, 2000),
    members=st.integers(1, 3),
    level=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_any_body_is_as_it_was(plain: bytes, times: int, members: int, level: int) -> None:
    whole = plain * times
    assert decompress(b"gzip", gzip.compress(whole, level) * members, 20_000_000) == whole * members
    assert decompress(b"deflate", zlib.compress(whole, level), len(whole)) == whole
    if whole:
        with pytest.raises(UnderstudyError, match="too large"):
            decompress(b"deflate", zlib.compress(whole, level), len(whole) - 1)
