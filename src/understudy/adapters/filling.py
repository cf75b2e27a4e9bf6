"""Reading a large message straight into its place, instead of piece by piece through the loop's buffer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class _Filler(asyncio.BufferedProtocol):
    """Stands in for `owner` while its buffer fills. All but the bytes goes to `owner`."""

    def __init__(
        self,
        transport: asyncio.Transport,
        owner: asyncio.Protocol,
        rest: memoryview,
        received: Callable[[int], None],
    ) -> None:
        self._transport = transport
        self._owner = owner
        self._rest = rest
        self._received = received

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._rest

    def buffer_updated(self, nbytes: int) -> None:
        self._rest = self._rest[nbytes:]
        if not self._rest:
            _read_by(self._transport, self._owner)
        self._received(nbytes)

    def eof_received(self) -> bool | None:
        return self._owner.eof_received()

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport.set_protocol(self._owner)  # or it and this would hold each other, and the buffer
        self._owner.connection_lost(exc)


def fill(
    transport: asyncio.Transport,
    owner: asyncio.Protocol,
    rest: memoryview,
    received: Callable[[int], None],
) -> None:
    """Read the next bytes into `rest` until it is full; `owner` gets what comes after it.

    `received` is told of each read; when it hears of the last one, `owner` is the protocol again. To be
    called by the protocol of `transport` while it reads, never while reading is paused.
    """
    _read_by(transport, _Filler(transport, owner, rest, received))


def _read_by(transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
    transport.pause_reading()  # a transport chooses how to read when it starts to
    transport.set_protocol(protocol)
    transport.resume_reading()
