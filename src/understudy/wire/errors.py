"""Every way in which Understudy can fail, by a stable code.

Lives here: the one root of the error tree and the codes that cross process boundaries. Does not live
here: what a transport makes of a code (HTTP status, exit status). Each transport has a table of its own.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any


class Origin(StrEnum):
    """Who has to change something for the failure to go away."""

    CALLER = "caller"
    US = "us"
    PEER = "peer"
    ENVIRONMENT = "environment"


class Code(StrEnum):
    """Stable names of failures. They appear on the wire, in logs, metrics and `--json` output."""

    INVALID_ARGUMENT = "invalid-argument"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    CONFLICT = "conflict"
    TOO_LARGE = "too-large"
    TIMEOUT = "timeout"
    BUSY = "busy"
    SHED = "shed"
    RATE_LIMITED = "rate-limited"
    DRAINING = "draining"
    UNAVAILABLE = "unavailable"
    LINK_LOST = "link-lost"
    CANCELLED = "cancelled"
    MODEL_FAILED = "model-failed"
    OUTPUT_INVALID = "output-invalid"
    OUT_OF_MEMORY = "out-of-memory"
    POISON = "poison"
    ARTIFACT_CORRUPT = "artifact-corrupt"
    ARTIFACT_MISSING = "artifact-missing"
    LOAD_FAILED = "load-failed"
    STORE_UNAVAILABLE = "store-unavailable"
    PROTOCOL = "protocol"
    CONFIG = "config"
    INTERNAL = "internal"


# code -> (may the same request succeed elsewhere or later, who has to act)
TRAITS: dict[Code, tuple[bool, Origin]] = {
    Code.INVALID_ARGUMENT: (False, Origin.CALLER),
    Code.UNAUTHENTICATED: (False, Origin.CALLER),
    Code.FORBIDDEN: (False, Origin.CALLER),
    Code.NOT_FOUND: (False, Origin.CALLER),
    Code.CONFLICT: (False, Origin.CALLER),
    Code.TOO_LARGE: (False, Origin.CALLER),
    Code.TIMEOUT: (False, Origin.US),
    Code.BUSY: (True, Origin.US),
    Code.SHED: (True, Origin.US),
    Code.RATE_LIMITED: (True, Origin.CALLER),
    Code.DRAINING: (True, Origin.US),
    Code.UNAVAILABLE: (True, Origin.US),
    Code.LINK_LOST: (True, Origin.PEER),
    Code.CANCELLED: (False, Origin.CALLER),
    Code.MODEL_FAILED: (True, Origin.US),
    Code.OUTPUT_INVALID: (True, Origin.US),
    Code.OUT_OF_MEMORY: (True, Origin.ENVIRONMENT),
    Code.POISON: (False, Origin.CALLER),
    Code.ARTIFACT_CORRUPT: (True, Origin.ENVIRONMENT),
    Code.ARTIFACT_MISSING: (True, Origin.ENVIRONMENT),
    Code.LOAD_FAILED: (False, Origin.CALLER),
    Code.STORE_UNAVAILABLE: (True, Origin.ENVIRONMENT),
    Code.PROTOCOL: (False, Origin.PEER),
    Code.CONFIG: (False, Origin.CALLER),
    Code.INTERNAL: (False, Origin.US),
}


def is_text(text: str) -> bool:
    """Whether it can be sent and stored: names of files and arguments hold whatever bytes they like."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


# Terminals obey them, or show what follows in another order: all control characters but those of layout, and
# what changes the direction of text.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def presentable(text: str) -> str:
    """`text` with what is no character, and what a terminal would obey, shown as an escape."""
    if not is_text(text):
        text = text.encode(errors="backslashreplace").decode()
    if text.isprintable():
        return text
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def cut(text: str, chars_max: int) -> str:
    """The beginning of `text`, with a mark where the rest is left out."""
    return text if len(text) <= chars_max else text[:chars_max] + "…"


def quoted(value: bytes) -> str:
    """What somebody sent, or its beginning, as a message names it."""
    return repr(value[:40].decode("ascii", "backslashreplace"))


class UnderstudyError(Exception):
    """Root of every expected failure.

    `code` is stable, `message` is for a person and says how to mend it, `context` holds facts whose
    names end in their unit. `traceback` is that of a model's code, bounded by who sets it: for logs, failure
    records and operators, never for clients.
    """

    def __init__(self, code: Code, message: str, /, **context: Any) -> None:
        message = presentable(message)
        super().__init__(message)
        self.code = code
        self.message = message
        self.context = context
        self.traceback = ""

    @property
    def retryable(self) -> bool:
        return TRAITS[self.code][0]

    @property
    def origin(self) -> Origin:
        return TRAITS[self.code][1]

    def __str__(self) -> str:
        if not self.context:
            return self.message
        facts = ", ".join(f"{name}={value}" for name, value in self.context.items())
        return presentable(f"{self.message} ({facts})")


class InvalidArgument(UnderstudyError):
    """The caller sent something that can't be served; the message names the offending part."""

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(Code.INVALID_ARGUMENT, message, **context)


class ProtocolError(UnderstudyError):
    """A peer sent bytes that are not the framed protocol. The connection can't be used any more."""

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(Code.PROTOCOL, message, **context)


class ConfigError(UnderstudyError):
    """A configuration file or manifest is wrong; the message starts with the path of the field."""

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(Code.CONFIG, message, **context)


class CommandError(UnderstudyError):
    """A command can't do what it was asked; `hint` says what the person can do about it."""

    def __init__(self, code: Code, message: str, hint: str = "", **context: Any) -> None:
        super().__init__(code, message, **context)
        self.hint = presentable(hint)
