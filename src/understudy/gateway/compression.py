"""Compressed request bodies: gzip and deflate (zlib), as tritonclient sends them, to a bounded size."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from understudy.wire.errors import Code, UnderstudyError, quoted
from understudy.wire.frames import Buffer

_GZIP, _ZLIB = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
_WINDOW_BITS = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": _ZLIB}  # x-gzip: RFC 9110, 8.4.1.3
ACCEPTED = "gzip, deflate"
MEMBERS_MAX = 64  # of a gzip body; each costs memory and time, however little is in it
PIECE_BYTES = 256 * 1024  # what follows a member in its piece is copied

# Up to this size a body is made plain on the event loop, where it takes a millisecond at most.
INLINE_BYTES_MAX = 256 * 1024
# Bodies that wait for the thread which does it with larger ones; each may become as large as bodies may be.
WAITING_MAX = 64


class Decompressor:
    """Makes bodies plain: small ones at once, large ones in a thread of its own, one after another."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._waiting = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decompression")

    def start(self, encoding: bytes, body: Buffer, done: Callable[[bytes | UnderstudyError], None]) -> None:
        """Call `done` with the plain body, or with what is wrong; maybe before this returns."""
        try:
            plain = decompress(encoding, body, min(self._bytes_max, INLINE_BYTES_MAX))
        except UnderstudyError as error:
            if error.code is not Code.TOO_LARGE or self._bytes_max <= INLINE_BYTES_MAX:
                done(error)
                return
        else:
            done(plain)
            return
        if self._waiting >= WAITING_MAX:
            done(UnderstudyError(Code.SHED, "too many large bodies are compressed"))
            return
        self._waiting += 1
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, decompress, encoding, body, self._bytes_max)
        future.add_done_callback(partial(self._finish, done))

    def _finish(self, done: Callable[[bytes | UnderstudyError], None], future: asyncio.Future[bytes]) -> None:
        self._waiting -= 1
        if future.cancelled():  # the process is ending
            return
        error = future.exception()
        if error is not None and not isinstance(error, UnderstudyError):
            error = UnderstudyError(Code.INTERNAL, f"the body can't be decompressed: {error!r}")
        done(error or future.result())


def decompress(encoding: bytes, body: Buffer, bytes_max: int) -> bytes:
    """The plain body. Never holds more than `bytes_max` of it.

    Raises TOO_LARGE if it is larger, INVALID_ARGUMENT if `body` is not what `encoding` says, with status 415
    for an encoding that is not known.
    """
    bits = _WINDOW_BITS.get(encoding.lower())
    if bits is None:
        message = f"Content-Encoding {quoted(encoding)} is not known here; gzip and deflate are"
        raise UnderstudyError(Code.INVALID_ARGUMENT, message, status=415)
    name = encoding.decode()
    parts: list[bytes] = []
    try:
        at = _member(bits, body, 0, parts, bytes_max)
        members = 1
        while at < len(body) and bits == _GZIP and members < MEMBERS_MAX:  # RFC 1952, 2.2
            at = _member(bits, body, at, parts, bytes_max)
            members += 1
    except zlib.error as error:
        raise UnderstudyError(Code.INVALID_ARGUMENT, f"malformed {name} body: {error}") from error
    except EOFError as error:
        raise UnderstudyError(Code.INVALID_ARGUMENT, f"malformed {name} body: it ends too early") from error
    if at < len(body):
        what = "goes on after its end" if bits == _ZLIB else f"has more than {MEMBERS_MAX} members"
        raise UnderstudyError(Code.INVALID_ARGUMENT, f"malformed {name} body: it {what}")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _member(bits: int, body: Buffer, at: int, parts: list[bytes], bytes_max: int) -> int:
    """Add what is compressed from `at` on to `parts`; where that ends."""
    stream = zlib.decompressobj(bits)
    room = bytes_max + 1 - sum(map(len, parts))
    while not stream.eof:
        if at == len(body):
            raise EOFError
        piece = memoryview(body)[at : at + PIECE_BYTES]
        parts.append(stream.decompress(piece, room))
        at += len(piece) - len(stream.unused_data)
        room -= len(parts[-1])
        if room <= 0:
            raise UnderstudyError(Code.TOO_LARGE, "decompressed body too large", limit_bytes=bytes_max)
    return at
