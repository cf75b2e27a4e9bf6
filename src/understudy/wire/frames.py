"""The framed protocol, without I/O: bytes in, frames out.

A frame is a fixed 12-byte prefix, a msgpack header and a raw payload:

    body length u32 | stream u32 | kind u8 | flags u8 | header length u16 | header | payload

All integers are little-endian. `body length` counts header and payload. The header is msgpack (see
`messages`); the payload is never looked at here. Whatever bytes arrive, `FrameDecoder.feed` either
returns frames or raises `ProtocolError`, and it never holds more than one frame of the permitted size.
"""

from __future__ import annotations

import struct

import msgspec

from understudy.wire.errors import ProtocolError

PREFIX = struct.Struct("<IIBBH")
PREFIX_BYTES = PREFIX.size
HEADER_BYTES_MAX = 0xFFFF
FRAME_BYTES_MAX_DEFAULT = 72 * 1024 * 1024

_pack = PREFIX.pack
_unpack_from = PREFIX.unpack_from


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One received frame. `header` and `payload` are copies that the receiver owns."""

    kind: int
    stream: int
    flags: int
    header: bytes
    payload: bytes


def encode_frame(kind: int, stream: int, header: bytes, payload: bytes = b"", flags: int = 0) -> bytes:
    """Prefix, header and payload as one bytes object.

    Raises `ProtocolError` if the header is longer than 65,535 bytes or the whole exceeds 4 GiB: large
    content belongs into the payload.
    """
    header_bytes = len(header)
    body_bytes = header_bytes + len(payload)
    if header_bytes > HEADER_BYTES_MAX or body_bytes > 0xFFFFFFFF:
        raise ProtocolError("frame too large to encode", header_bytes=header_bytes, body_bytes=body_bytes)
    return _pack(body_bytes, stream, kind, flags, header_bytes) + header + payload


class FrameDecoder:
    """Turns a byte stream, however it was cut, into frames.

    After a `ProtocolError` the decoder is spent: the stream has no marks to find the next frame by, so
    the connection must be closed. Every later `feed` raises again.
    """

    __slots__ = ("_buffer", "_failed", "_frame_bytes_max", "_wanted_bytes")

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX_DEFAULT) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._wanted_bytes = PREFIX_BYTES
        self._failed = False

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """All frames that `data` completes, in order.

        Raises `ProtocolError` for a frame beyond `frame_bytes_max` or a header longer than its body.
        """
        if self._failed:
            raise ProtocolError("decoder already failed")
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
