"""Compressed request bodies: gzip and deflate (zlib), as tritonclient sends them, to a bounded size.

Large ones are made plain in a thread, piece by piece, the senders taking turns: who sends much waits for
himself. Between two pieces the event loop goes on, for a piece holds the interpreter for less than a
millisecond.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections import deque
from collections.abc import Callable, Generator, Hashable
from itertools import islice
from time import monotonic
from typing import NamedTuple, TypeAlias

from understudy.adapters.buffers import Gathered
from understudy.wire.errors import Code, UnderstudyError, quoted
from understudy.wire.frames import Buffer

_GZIP, _ZLIB = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
_WINDOW_BITS = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": _ZLIB}  # x-gzip: RFC 9110, 8.4.1.3
ACCEPTED = "gzip, deflate"
MEMBERS_MAX = 64  # of a gzip body; each costs memory and time, however little is in it
PIECE_BYTES = 64 * 1024  # of a body; what follows a member in its piece is copied
PLAIN_PIECE_BYTES = 256 * 1024

# Up to this size a body is made plain on the event loop, where it takes a millisecond at most.
INLINE_BYTES_MAX = 256 * 1024
# Bodies that wait for the thread which does it with larger ones; each may become as large as bodies may be.
WAITING_MAX = 64

Done: TypeAlias = Callable[[Buffer | UnderstudyError], None]
Steps: TypeAlias = Generator[None, None, Buffer]


class Wish(NamedTuple):
    """Whose a body is, and how long it is worth the work: until `due` (monotonic), and not if `gone`."""

    sender: Hashable
    due: float
    gone: Callable[[], bool]


class _Job(NamedTuple):
    steps: Steps
    wish: Wish
    done: Done


class Decompressor:
    """Makes bodies plain: small ones at once, large ones in a thread of its own, which is shared fairly."""

    def __init__(self, bytes_max: int, begun_max: int) -> None:
        """`begun_max`: as many may be half made plain at once; each holds memory."""
        self._bytes_max = bytes_max
        self._begun_max = begun_max
        self._turn = 0
        self._changed = threading.Condition()
        self._jobs: dict[Hashable, deque[_Job]] = {}  # by sender; the first `begun_max` take turns
        self._thread: threading.Thread | None = None

    def start(self, encoding: bytes, body: Buffer, wish: Wish, done: Done) -> None:
        """Call `done` with the plain body, or with what is wrong; maybe before this returns."""
        try:
            plain = decompress(encoding, body, min(self._bytes_max, INLINE_BYTES_MAX))
        except UnderstudyError as error:
            if error.code is not Code.TOO_LARGE or self._bytes_max <= INLINE_BYTES_MAX:
                done(error)
                return
        except MemoryError as error:
            done(_no_memory(error))
            return
        else:
            done(plain)
            return
        refused = self._enqueue(_Job(_decompress(encoding, body, self._bytes_max), wish, done))
        if refused is not None:
            refused.done(UnderstudyError(Code.SHED, "too many large bodies are compressed"))
        if self._thread is None:
            run = (asyncio.get_running_loop(),)
            self._thread = threading.Thread(target=self._run, args=run, name="decompression", daemon=True)
            self._thread.start()

    def _enqueue(self, job: _Job) -> _Job | None:
        """Who has to go for it: the newest of the sender that has most waiting, or itself."""
        with self._changed:
            mine = self._jobs.setdefault(job.wish.sender, deque())
            mine.append(job)
            self._changed.notify()
            if sum(map(len, self._jobs.values())) <= WAITING_MAX:
                return None
            most = max(self._jobs.values(), key=len)
            if len(most) > len(mine):
                return most.pop()
            if len(mine) == 1:
                del self._jobs[job.wish.sender]
            return mine.pop()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                begun = list(islice(self._jobs.items(), self._begun_max))
                self._turn += 1
                sender, queue = begun[self._turn % len(begun)]
                job = queue[0]
            end = _step(job)
            if end is not None:
                with self._changed:
                    queue.popleft()
                    del self._jobs[sender]
                    if queue:
                        self._jobs[sender] = queue  # behind the others
            if end is not None:
                try:
                    loop.call_soon_threadsafe(job.done, end)
                except RuntimeError:  # the process is ending
                    return
            del begun, job, queue, end  # or a body would be kept until the next one comes


def _step(job: _Job) -> Buffer | UnderstudyError | None:
    """Make a piece of it plain; the end, if that was the last one."""
    if monotonic() >= job.wish.due or job.wish.gone():
        return UnderstudyError(Code.TIMEOUT, "decompression took longer than the deadline")
    try:
        next(job.steps)
    except StopIteration as end:
        plain: Buffer = end.value
        return plain
    except UnderstudyError as error:
        return error
    except MemoryError as error:
        return _no_memory(error)
    except Exception as error:
        return UnderstudyError(Code.INTERNAL, f"the body can't be decompressed: {error!r}")
    return None


def _no_memory(error: MemoryError) -> UnderstudyError:
    return UnderstudyError(Code.SHED, "no memory for the body", reason=str(error))


def decompress(encoding: bytes, body: Buffer, bytes_max: int) -> Buffer:
    """The plain body. Never holds more than `bytes_max` of it.

    Raises TOO_LARGE if it is larger, INVALID_ARGUMENT if `body` is not what `encoding` says, with status 415
    for an encoding that is not known, and MemoryError.
    """
    steps = _decompress(encoding, body, bytes_max)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            plain: Buffer = end.value
            return plain


def _decompress(encoding: bytes, body: Buffer, bytes_max: int) -> Steps:
    """As `decompress`, a piece with each step."""
    bits = _WINDOW_BITS.get(encoding.lower())
    if bits is None:
        message = f"Content-Encoding {quoted(encoding)} is not known here; gzip and deflate are"
        raise UnderstudyError(Code.INVALID_ARGUMENT, message, status=415)
    name = encoding.decode()
    plain = Gathered()
    try:
        at = yield from _member(bits, body, 0, plain, bytes_max)
        members = 1
        while at < len(body) and bits == _GZIP and members < MEMBERS_MAX:  # RFC 1952, 2.2
            at = yield from _member(bits, body, at, plain, bytes_max)
            members += 1
    except zlib.error as error:
        raise UnderstudyError(Code.INVALID_ARGUMENT, f"malformed {name} body: {error}") from error
    except EOFError as error:
        raise UnderstudyError(Code.INVALID_ARGUMENT, f"malformed {name} body: it ends too early") from error
    if at < len(body):
        what = "goes on after its end" if bits == _ZLIB else f"has more than {MEMBERS_MAX} members"
        raise UnderstudyError(Code.INVALID_ARGUMENT, f"malformed {name} body: it {what}")
    return plain.whole()


def _member(bits: int, body: Buffer, at: int, plain: Gathered, bytes_max: int) -> Generator[None, None, int]:
    """Add what is compressed from `at` on to `plain`; where that ends."""
    stream = zlib.decompressobj(bits)
    rest: Buffer = b""  # of a piece that was read, because what it becomes is large
    more = False  # may be had without another piece
    while not stream.eof:
        if not more:
            if at == len(body):
                raise EOFError
            rest = memoryview(body)[at : at + PIECE_BYTES]
            at += len(rest)
        room = min(bytes_max + 1 - plain.size, PLAIN_PIECE_BYTES)
        piece = stream.decompress(rest, room)
        plain.add(piece)
        rest, more = stream.unconsumed_tail, len(piece) == room
        if plain.size > bytes_max:
            raise UnderstudyError(Code.TOO_LARGE, "decompressed body too large", limit_bytes=bytes_max)
        yield
    return at - len(stream.unused_data)
