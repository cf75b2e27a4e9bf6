"""Free-form parts of a manifest (`static`, `probe`, `options`): what may be in them, since they are sent on.

JSON and MessagePack have to carry them unchanged: no dates, no infinities, no integers beyond 64 bits, no
text that isn't Unicode, and nothing nested so deep that a decoder gives up.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import msgspec

from understudy.wire.errors import InvalidArgument, cut

DEPTH_MAX = 48  # a tensor of the highest rank, and what is around it
INT_MIN, INT_MAX = -(2**63), 2**64 - 1
SHOWN_CHARS_MAX = 64


def check_document(field: str, document: Any, bytes_max: int) -> None:
    """Raises `InvalidArgument` that names the place. `bytes_max`: as JSON."""
    waiting: list[tuple[str, Any, int]] = [(field, document, 1)]
    while waiting:
        path, value, depth = waiting.pop()
        if depth > DEPTH_MAX:
            raise InvalidArgument(f"{field}: nested deeper than {DEPTH_MAX}")
        if isinstance(value, dict):
            for key, each in value.items():
                if not isinstance(key, str):
                    raise InvalidArgument(f"{path}: a key has to be text, not {shown(key)}")
                _check_text(path, key)
                waiting.append((f"{path}.{key[:SHOWN_CHARS_MAX]}", each, depth + 1))
        elif isinstance(value, list | tuple):
            waiting += [(f"{path}[{index}]", each, depth + 1) for index, each in enumerate(value)]
        else:
            _check_scalar(path, value)
    size_bytes = len(msgspec.json.encode(document))
    if size_bytes > bytes_max:
        raise InvalidArgument(f"{field}: has {size_bytes} bytes as JSON; {bytes_max} is the limit")


def _check_scalar(path: str, value: Any) -> None:
    if isinstance(value, str):
        _check_text(path, value)
    elif isinstance(value, float):
        if not isfinite(value):
            raise InvalidArgument(f"{path}: {value} can't be sent as JSON; use a finite number")
    elif isinstance(value, int):  # a bool is one
        if not INT_MIN <= value <= INT_MAX:
            raise InvalidArgument(f"{path}: the number doesn't fit into 64 bits")
    elif value is not None:
        what = type(value).__name__
        raise InvalidArgument(f"{path}: a {what} can't be sent as JSON; write it as text")


def _check_text(path: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{path}: has a lone surrogate, which is no text") from None


def shown(value: Any) -> str:
    """`value` in a message, cut. Of a large integer only that it is one: its digits may be too many."""
    if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        return "a number beyond 64 bits"
    text = repr(value)
    return cut(text, SHOWN_CHARS_MAX)
