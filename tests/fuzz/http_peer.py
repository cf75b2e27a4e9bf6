"""The client's end of a connection and the transport between: what asyncio does, without sockets."""

from __future__ import annotations

import asyncio
from typing import Any

READ_BYTES = 256_000  # of one read, as uvloop does it


class Peer(asyncio.Transport):
    """A `slow` one takes nothing of what is written until it reads: every answer waits in a buffer."""

    def __init__(self, protocol: asyncio.Protocol, *, slow: bool) -> None:
        super().__init__()
        self.slow = slow
        self.written = b""
        self.unread = 0  # bytes that were written and not taken
        self.unsent = b""  # not read by the other side
        self.ended = False  # the other side closed, or will send no more
        self.lost = False
        self._protocol: asyncio.BaseProtocol = protocol
        self._reading = True
        self._pumping = False
        self._eof = False
        self._closed = False
        self._owner = protocol
        protocol.connection_made(self)

    # what the client does

    def send(self, data: bytes) -> None:
        self.unsent += data
        self._pump()

    def send_eof(self) -> None:
        self._eof = True
        self._pump()

    def read_all(self) -> None:
        if self.unread:
            self.unread = 0
            if not self._closed:
                self._protocol.resume_writing()  # type: ignore[attr-defined]

    def lose(self) -> None:
        self._reading = False
        self._protocol.connection_lost(None)  # type: ignore[attr-defined]

    # what the transport does

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        while self._reading and self.unsent and not self._closed:
            protocol = self._protocol
            if isinstance(protocol, asyncio.BufferedProtocol):
                buffer = protocol.get_buffer(-1)
                count = min(len(buffer), len(self.unsent))
                buffer[:count] = self.unsent[:count]
                self.unsent = self.unsent[count:]
                protocol.buffer_updated(count)
            else:
                data, self.unsent = self.unsent[:READ_BYTES], self.unsent[READ_BYTES:]
                protocol.data_received(data)  # type: ignore[attr-defined]
        if self._eof and self._reading and not self.unsent and not self._closed:
            self._eof = False
            if not self._protocol.eof_received():  # type: ignore[attr-defined]
                self.close()
        self._pumping = False

    def write(self, data: Any) -> None:
        assert not self.ended, "written after the end"
        self.written += data
        if self.slow:
            self.unread += len(data)
            if self.unread == len(data):
                self._protocol.pause_writing()  # type: ignore[attr-defined]

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.unread

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        assert not self._closed
        self._reading = True
        self._pump()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self._closed = self.ended = True

    def is_closing(self) -> bool:
        return self._closed

    def abort(self) -> None:
        self.close()
