"""JSON as other programs write it: with a mark before it, and with NaN for what is missing."""

from __future__ import annotations

import re

import msgspec

from understudy.wire.errors import InvalidArgument
from understudy.wire.frames import Buffer

BOM = b"\xef\xbb\xbf"  # which whoever reads JSON may ignore (RFC 8259, 8.1)
_NUMBERS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b')  # outside of texts
_LONE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")


def loosened(body: Buffer, *, missing_allowed: bool) -> Buffer:
    """`body` as strict JSON. Where missing values are allowed, NaN is null, and Infinity is refused."""
    if bytes(body[:3]) == BOM:
        body = memoryview(body)[3:]
    if not missing_allowed:
        return body
    content = bytes(body)
    return _NUMBERS.sub(_strict, content) if b"NaN" in content or b"Infinity" in content else content


def _strict(found: re.Match[bytes]) -> bytes:
    token = found.group()
    if token.startswith(b'"'):
        return token
    if token != b"NaN":
        raise InvalidArgument(f"request body: {token.decode()} is no missing value; NaN and null are")
    return b"null"


def why_invalid(body: Buffer, error: Exception) -> str:
    """What is wrong with a body that a decoder refused."""
    if isinstance(error, RecursionError):
        return "JSON is nested too deep"
    if isinstance(error, msgspec.ValidationError):
        return str(error)
    content = bytes(body)
    if lone := _LONE.search(content):
        return f"not valid JSON: half a surrogate pair ({lone.group().decode()})"
    if any(not token.startswith(b'"') for token in _NUMBERS.findall(content)):
        return 'JSON has no NaN and no Infinity; NaN is read where the manifest says missing = "nan"'
    return f"not valid JSON: {error}"
