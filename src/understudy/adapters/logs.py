"""Structured logs: lines for people on a terminal, JSON otherwise. To one stream, never to a file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import stat
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

    def isatty(self) -> bool:
        return (self._stream or sys.stderr).isatty()


def be_patient() -> None:
    """Let nothing that this process prints fail: it has others to keep running, whoever reads or doesn't."""
    sys.stdout, sys.stderr = cast(TextIO, _Patient(sys.stdout)), cast(TextIO, _Patient(sys.stderr))


_file = ""  # where standard error went when this process began, if that is a file


def reopen() -> None:
    """Go on in a new file of the same name: the former one was set aside. As SIGHUP asks."""
    if not _file:
        return
    with contextlib.suppress(OSError):  # it goes on in the former file
        number = os.open(_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        for each in (1, 2) if os.path.sameopenfile(1, 2) else (2,):
            os.dup2(number, each)
        os.close(number)


def _regular_file(number: int) -> str:
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(number).st_mode):
            return os.readlink(f"/proc/self/fd/{number}")
    return ""


def configure(role: str, name: str) -> None:
    """Set up structlog for this process; every line carries the role and the name.

    It goes to standard error, whatever that is by then.
    """
    global _file
    _file = _file or _regular_file(2)
    on_terminal = sys.stderr.isatty()
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
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Patient(None))),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(process=f"{role}:{name}")
