"""Structured logs: lines for people on a terminal, JSON otherwise. To one stream, never to a file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from typing import TextIO, cast

import structlog


class _Patient(io.TextIOBase):
    """A stream that fails nobody: a full disk under the log is no reason to stop serving."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            (self._stream or sys.stderr).write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            (self._stream or sys.stderr).flush()


def configure(role: str, name: str, descriptor: int = -1) -> None:
    """Set up structlog for this process; every line carries the role and the name.

    It goes to `descriptor` if one is given, else to standard error, whatever that is by then.
    """
    stream = os.fdopen(descriptor, "w", buffering=1) if descriptor >= 0 else None
    on_terminal = (stream or sys.stderr).isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if on_terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Patient(stream))),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(process=f"{role}:{name}")
