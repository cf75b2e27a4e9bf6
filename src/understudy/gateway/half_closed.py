"""A client that sends no more: it waits for its answer, or it is gone and nobody does.

Both look alike (TCP's FIN), and both are common: `nc -N` waits, a client that gave up closed. What tells
them apart is a byte sent to them: the kernel of one that is gone answers with a reset. Every answer begins
with the same bytes, so these can be sent before the answer is known, and a client that waits notices nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

BEGIN = b"HTTP/1.1 "
CHECKS_S = (0.005, 0.05, 0.25)  # a reset has come after one round trip; later ones the sweep sees
TCP_CLOSE = 7  # linux/tcp_states.h


class HalfClosed:
    """The client of `transport`, of which at least one request is unanswered. Aborts it when it is gone."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._begun = True
        transport.write(BEGIN)
        loop = asyncio.get_running_loop()
        for delay_s in CHECKS_S:
            loop.call_later(delay_s, self.check)

    def check(self) -> None:
        """The loop doesn't look at a socket that has nothing more to be read, so this has to."""
        connection = self._transport.get_extra_info("socket")
        if connection is None or self._transport.is_closing():
            return
        with contextlib.suppress(OSError):  # its first byte is the state
            if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:
                self._transport.abort()

    def rest(self, answer: bytes) -> bytes:
        """What of the next answer is still to be sent."""
        begun, self._begun = self._begun, False
        return answer.removeprefix(BEGIN) if begun else answer
