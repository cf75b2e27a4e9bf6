"""Compressed request bodies: gzip and deflate (zlib), as tritonclient sends them, to a bounded size."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.frames import Buffer

_WINDOW_BITS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}

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
    if encoding.lower() not in _WINDOW_BITS:
        message = f"Content-Encoding {encoding[:40]!r} is not known here; gzip and deflate are"
        raise UnderstudyError(Code.INVALID_ARGUMENT, message, status=415)
    stream = zlib.decompressobj(_WINDOW_BITS[encoding.lower()])
    try:
        plain = stream.decompress(body, bytes_max + 1)
    except zlib.error as error:
        raise UnderstudyError(
            Code.INVALID_ARGUMENT, f"malformed {encoding.decode()} body: {error}"
        ) from error
    if len(plain) > bytes_max:
        raise UnderstudyError(Code.TOO_LARGE, "decompressed body too large", limit_bytes=bytes_max)
    if not stream.eof or stream.unused_data:
        what = "ends too early" if not stream.eof else "goes on after its end"
        raise UnderstudyError(Code.INVALID_ARGUMENT, f"malformed {encoding.decode()} body: it {what}")
    return plain
