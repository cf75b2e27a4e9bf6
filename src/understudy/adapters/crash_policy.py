"""What a process does about its own mistakes: one rule for every shell.

An exception that nobody expected breaks what it was about. What belongs to one request, connection or link
ends alone: whoever ends it calls `contain`. What everybody shares may be half changed: the process ends, and
whoever looks after it starts a clean one. So it does for a broken invariant wherever that is seen, and for a
callback of the loop that nobody contains.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from time import monotonic
from typing import Any

import structlog

from understudy.invariants import InvariantBroken

REPORT_INTERVAL_S = 60.0  # between two reports of one cause
CAUSES_MAX = 256  # that are told apart; beyond that they are forgotten
EXIT_BROKEN = os.EX_SOFTWARE


class CrashPolicy:
    """Of one process. `contained` counts what ended alone, by what it was."""

    def __init__(
        self,
        *,
        shared: tuple[type[asyncio.BaseProtocol], ...] = (),
        end: Callable[[int], Any] = os._exit,
        now: Callable[[], float] = monotonic,
    ) -> None:
        """`shared`: kinds of protocol that change what belongs to all; where one fails, the process ends."""
        self.contained: dict[str, int] = {}
        self._shared = shared
        self._end = end
        self._now = now
        self._log = structlog.get_logger()
        self._reported: dict[str, tuple[float, int]] = {}  # cause -> when, and how often since

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Decide about whatever the callbacks of `loop` raise."""
        loop.set_exception_handler(self.callback_failed)

    def callback_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """As an exception handler of asyncio. A loop closes the transport of a protocol that failed."""
        error, what = context.get("exception"), str(context.get("message"))
        protocol = context.get("protocol")
        if "handle" in context or isinstance(protocol, self._shared) or isinstance(error, InvariantBroken):
            self.broken(what, error)
        else:
            self.contain(type(protocol).__name__ if protocol is not None else "callback", error, what)

    def contain(self, kind: str, error: BaseException | None, what: str = "") -> None:
        """`error` broke one `kind` of thing, which the caller ends. A broken invariant ends the process."""
        if isinstance(error, InvariantBroken):
            self.broken(what, error)
            return
        self.contained[kind] = self.contained.get(kind, 0) + 1
        now, cause = self._now(), _cause(error, what)
        at, unreported = self._reported.get(cause, (float("-inf"), 0))
        if now - at < REPORT_INTERVAL_S:
            self._reported[cause] = (at, unreported + 1)
            return
        if len(self._reported) >= CAUSES_MAX:
            self._reported.clear()
        self._reported[cause] = (now, 0)
        self._log.error(
            "callback.failed", kind=kind, what=what, error=repr(error), unreported=unreported, exc_info=error
        )

    def broken(self, what: str, error: BaseException | None) -> None:
        """Nobody knows any more what is true: end at once."""
        self._log.critical("process.broken", what=what, error=repr(error), exc_info=error)
        self._end(EXIT_BROKEN)


def _cause(error: BaseException | None, what: str) -> str:
    """The same for what fails in the same way at the same place."""
    trace = error.__traceback__ if error is not None else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else what
    return f"{type(error).__name__} {place}"
