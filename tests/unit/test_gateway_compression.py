"""Compressed bodies: plain within the limit, refused beyond it, never on the loop for long."""

from __future__ import annotations

import asyncio
import gzip
import threading
import tracemalloc
import zlib

import pytest

from understudy.gateway import compression
from understudy.gateway.compression import INLINE_BYTES_MAX, Decompressor, decompress
from understudy.wire.errors import Code, UnderstudyError

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


def test_large_bodies_are_made_plain_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[int, str] = {}

    def watched(encoding: bytes, body: bytes, bytes_max: int) -> bytes:
        plain = decompress(encoding, body, bytes_max)
        threads[len(plain)] = threading.current_thread().name
        return plain

    async def test() -> None:
        monkeypatch.setattr(compression, "decompress", watched)
        decompressor = Decompressor(LIMIT)
        for size in (1000, INLINE_BYTES_MAX + 1):
            done: asyncio.Future[bytes | UnderstudyError] = asyncio.get_running_loop().create_future()
            decompressor.start(b"gzip", gzip.compress(bytes(size)), done.set_result)
            assert await done == bytes(size)

    asyncio.run(test())
    assert threads[1000] == "MainThread"
    assert threads[INLINE_BYTES_MAX + 1].startswith("decompression")


def test_only_so_many_large_bodies_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "WAITING_MAX", 2)

    async def test() -> list[bytes | UnderstudyError]:
        decompressor = Decompressor(LIMIT)
        ends: list[bytes | UnderstudyError] = []
        all_done = asyncio.Event()

        def done(end: bytes | UnderstudyError) -> None:
            ends.append(end)
            if len(ends) == 4:
                all_done.set()

        body = gzip.compress(bytes(INLINE_BYTES_MAX + 1))
        for _ in range(3):
            decompressor.start(b"gzip", body, done)
        decompressor.start(b"br", body, done)
        await all_done.wait()
        return ends

    refused, unknown, *plain = asyncio.run(test())
    assert isinstance(refused, UnderstudyError)
    assert refused.code is Code.SHED
    assert isinstance(unknown, UnderstudyError)
    assert plain == [bytes(INLINE_BYTES_MAX + 1)] * 2
