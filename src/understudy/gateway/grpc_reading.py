"""What is read of gRPC calls, and for how long.

The library bounds messages for all methods alike, so by the size of inference's, and calls only in number:
one that sends nothing would have its place for ever. So every call is a stream to it, and is read here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from understudy.settings.gateway import OTHER_BODY_BYTES_MAX, GatewayTuning
from understudy.wire.errors import Code, InvalidArgument, UnderstudyError


class Reading:
    """Of all calls of one gateway process."""

    def __init__(self, settings: GatewayTuning) -> None:
        self._timeout_s = settings.http.body_timeout_s
        self._watches_max = settings.grpc.watches_max
        self._watches = 0

    async def message(self, context: Any) -> bytes:
        """The only one. Raises TIMEOUT, and INVALID_ARGUMENT if there is none."""
        message = await self._next(context)
        if message is None:
            raise InvalidArgument("no message")
        return message

    async def small(self, context: Any, kind: Any) -> Any:
        """The only one, which isn't inference's. Raises TOO_LARGE besides, before it is decoded."""
        return _decoded(await self.message(context), kind)

    async def every_small(self, context: Any, kind: Any) -> AsyncIterator[Any]:
        """As they come, each in time."""
        while (message := await self._next(context)) is not None:
            yield _decoded(message, kind)

    async def _next(self, context: Any) -> bytes | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                message = await context.read()
        except TimeoutError:
            raise UnderstudyError(Code.TIMEOUT, f"no message within {self._timeout_s:g} s") from None
        return None if message is grpc.aio.EOF else message

    @contextmanager
    def watch(self) -> Iterator[None]:
        """A stream that may last, beside inference. Raises SHED if there are enough."""
        if self._watches >= self._watches_max:
            raise UnderstudyError(Code.SHED, "too many streams of health and reflection")
        self._watches += 1
        try:
            yield
        finally:
            self._watches -= 1


def _decoded(message: bytes, kind: Any) -> Any:
    if len(message) > OTHER_BODY_BYTES_MAX:
        raise UnderstudyError(Code.TOO_LARGE, "the message is too large", limit_bytes=OTHER_BODY_BYTES_MAX)
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise InvalidArgument(f"not a {kind.DESCRIPTOR.name}: {error}") from error
