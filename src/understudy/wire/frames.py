"""The framed protocol, without I/O: bytes in, frames out.

A frame is a fixed 12-byte prefix, a msgpack header and a raw payload:

    body length u32 | stream u32 | kind u8 | flags u8 | header length u16 | header | payload

All integers are little-endian. `body length` counts header and payload. The header is msgpack (see
`messages`); the payload is never looked at here. Whatever bytes arrive, `FrameDecoder.feed` either
returns frames or raises `ProtocolError`, and it never holds more than one frame of the permitted size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from understudy.wire.errors import ProtocolError

PREFIX = struct.Struct("<IIBBH")
PREFIX_BYTES = PREFIX.size
HEADER_BYTES_MAX = 0xFFFF
FRAME_BYTES_MAX_DEFAULT = 72 * 1024 * 1024
LARGE_BYTES = 128 * 1024  # a payload from here on isn't joined to anything nor copied on the way
PAYLOAD_ALIGNMENT_BYTES = 16  # of large payloads; what the allocator gives, too

Buffer: TypeAlias = bytes | bytearray | memoryview
Allocate: TypeAlias = Callable[[int], bytearray | memoryview]

# Flags of an INFER frame: the payload, and that of its answer, is protobuf instead of HTTP's form.
ENCODING_PROTOBUF = 1

_pack = PREFIX.pack
_unpack_from = PREFIX.unpack_from


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One received frame. `header` and `payload` are the receiver's own.

    The payload of a large frame is a writable view of the memory that it was read into.
    """

    kind: int
    stream: int
    flags: int
    header: bytes
    payload: bytes | memoryview


def encode_frame(kind: int, stream: int, header: bytes, payload: Buffer = b"", flags: int = 0) -> bytes:
    """Prefix, header and payload as one bytes object.

    Raises `ProtocolError` if the header is longer than 65,535 bytes or the whole exceeds 4 GiB: large
    content belongs into the payload.
    """
    return frame_head(kind, stream, header, len(payload), flags) + payload


def frame_head(kind: int, stream: int, header: bytes, payload_bytes: int, flags: int = 0) -> bytes:
    """All of a frame but its payload. Raises `ProtocolError` like `encode_frame`."""
    header_bytes = len(header)
    body_bytes = header_bytes + payload_bytes
    if header_bytes > HEADER_BYTES_MAX or body_bytes > 0xFFFFFFFF:
        raise ProtocolError("frame too large to encode", header_bytes=header_bytes, body_bytes=body_bytes)
    return _pack(body_bytes, stream, kind, flags, header_bytes) + header


class _Partial:
    """A large frame that is being received."""

    __slots__ = ("body", "flags", "header_bytes", "kind", "rest", "start", "stream")

    def __init__(
        self, kind: int, stream: int, flags: int, header_bytes: int, body_bytes: int, allocate: Allocate
    ) -> None:
        self.kind = kind
        self.stream = stream
        self.flags = flags
        self.header_bytes = header_bytes
        # The payload begins on a boundary, so that tensors in it which are aligned to it need no copy.
        self.start = -header_bytes % PAYLOAD_ALIGNMENT_BYTES
        self.body = allocate(self.start + body_bytes)
        self.rest = memoryview(self.body)[self.start :]  # not received yet

    def take(self, data: bytes | memoryview) -> int:
        """Copy as much of `data` as is missing; how much that was."""
        count = min(len(data), len(self.rest))
        self.rest[:count] = data[:count]
        self.rest = self.rest[count:]
        return count

    def frame(self) -> Frame:
        split = self.start + self.header_bytes
        payload = memoryview(self.body)[split:]
        return Frame(self.kind, self.stream, self.flags, bytes(self.body[self.start : split]), payload)


class FrameDecoder:
    """Turns a byte stream, however it was cut, into frames.

    After a `ProtocolError` the decoder is spent: the stream has no marks to find the next frame by, so
    the connection must be closed. Every later `feed` raises again.
    """

    __slots__ = (
        "_allocate",
        "_buffer",
        "_failed",
        "_frame_bytes_max",
        "_large_bytes",
        "_partial",
        "_wanted_bytes",
    )

    def __init__(
        self,
        frame_bytes_max: int = FRAME_BYTES_MAX_DEFAULT,
        large_bytes: int = LARGE_BYTES,
        allocate: Allocate = bytearray,
    ) -> None:
        """`allocate` gives writable memory for a frame of at least `large_bytes`."""
        self._allocate = allocate
        self._frame_bytes_max = frame_bytes_max
        self._large_bytes = large_bytes
        self._buffer = bytearray()
        self._wanted_bytes = PREFIX_BYTES
        self._failed = False
        self._partial: _Partial | None = None

    @property
    def buffered_bytes(self) -> int:
        partial = self._partial
        if partial is None:
            return len(self._buffer)
        return PREFIX_BYTES + len(partial.body) - partial.start - len(partial.rest) + len(self._buffer)

    @property
    def gap(self) -> memoryview | None:
        """Where the rest of a large frame belongs: fill it from the front, then call `filled`."""
        return None if self._partial is None else self._partial.rest

    def filled(self, count: int) -> list[Frame]:
        """`count` bytes were read into the front of `gap`; the frame that they complete, if they do."""
        partial = self._partial
        if partial is None:
            raise ProtocolError("nothing was to be filled")
        partial.rest = partial.rest[count:]
        if partial.rest:
            return []
        self._partial = None
        return [partial.frame()]

    def feed(self, data: bytes) -> list[Frame]:
        """All frames that `data` completes, in order.

        Raises `ProtocolError` for a frame beyond `frame_bytes_max` or a header longer than its body.
        """
        if self._failed:
            raise ProtocolError("decoder already failed")
        if self._partial is not None:
            taken = self._partial.take(data)
            return self.filled(0) + (self.feed(data[taken:]) if taken < len(data) else [])
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted_bytes:
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        frames: list[Frame] = []
        offset = 0
        available = len(data)
        while available - offset >= PREFIX_BYTES:
            body_bytes, stream, kind, flags, header_bytes = _unpack_from(data, offset)
            if body_bytes > self._frame_bytes_max or header_bytes > body_bytes:
                self._failed = True
                raise ProtocolError(
                    "malformed frame prefix",
                    body_bytes=body_bytes,
                    header_bytes=header_bytes,
                    frame_bytes_max=self._frame_bytes_max,
                )
            start = offset + PREFIX_BYTES
            end = start + body_bytes
            if end > available:
                if body_bytes >= self._large_bytes:
                    self._partial = _Partial(kind, stream, flags, header_bytes, body_bytes, self._allocate)
                    offset = start + self._partial.take(memoryview(data)[start:])
                self._wanted_bytes = end - offset
                break
            split = start + header_bytes
            frames.append(Frame(kind, stream, flags, data[start:split], data[split:end]))
            offset = end
        else:
            self._wanted_bytes = PREFIX_BYTES
        if offset < available:
            self._buffer += data[offset:] if offset else data
        return frames
