"""What a command's exit status means, and which failure leads to which. The only such table."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from understudy.wire.errors import Code, UnderstudyError


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2  # wrong arguments, configuration or input: nothing was done
    NOT_FOUND = 3
    UNAVAILABLE = 4  # nobody answers, or nobody can answer now
    TIMEOUT = 5
    UNMET = 6  # `status --check`: an app is degraded or down; `audit`: something was found


EXITS: dict[Code, Exit] = {
    Code.INVALID_ARGUMENT: Exit.USAGE,
    Code.UNAUTHENTICATED: Exit.USAGE,
    Code.FORBIDDEN: Exit.FAILED,
    Code.NOT_FOUND: Exit.NOT_FOUND,
    Code.CONFLICT: Exit.FAILED,
    Code.TOO_LARGE: Exit.USAGE,
    Code.TIMEOUT: Exit.TIMEOUT,
    Code.BUSY: Exit.UNAVAILABLE,
    Code.SHED: Exit.UNAVAILABLE,
    Code.RATE_LIMITED: Exit.UNAVAILABLE,
    Code.DRAINING: Exit.UNAVAILABLE,
    Code.UNAVAILABLE: Exit.UNAVAILABLE,
    Code.LINK_LOST: Exit.UNAVAILABLE,
    Code.CANCELLED: Exit.FAILED,
    Code.MODEL_FAILED: Exit.FAILED,
    Code.OUTPUT_INVALID: Exit.FAILED,
    Code.OUT_OF_MEMORY: Exit.FAILED,
    Code.POISON: Exit.FAILED,
    Code.ARTIFACT_CORRUPT: Exit.FAILED,
    Code.ARTIFACT_MISSING: Exit.NOT_FOUND,
    Code.LOAD_FAILED: Exit.FAILED,
    Code.STORE_UNAVAILABLE: Exit.UNAVAILABLE,
    Code.PROTOCOL: Exit.FAILED,
    Code.CONFIG: Exit.USAGE,
    Code.INTERNAL: Exit.FAILED,
}


class CommandError(UnderstudyError):
    """A command can't do what it was asked; `hint` says what the person can do about it."""

    def __init__(self, code: Code, message: str, hint: str = "", **context: Any) -> None:
        super().__init__(code, message, **context)
        self.hint = hint
