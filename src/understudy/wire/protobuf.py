"""Just enough of protobuf's wire format to route a message without decoding it. No library, no I/O.

A message is a row of fields, each a key (number and wire type) and a value; strings, bytes and messages
carry their length, so they are skipped in one step. Messages may be concatenated: fields of the later one
are merged into the former (protobuf encoding guide, "Last One Wins"), which is how an answer gets further
parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from understudy.wire.errors import InvalidArgument
from understudy.wire.frames import Buffer

# Bounds the time that a hostile message takes. A request has one such field per input, output and parameter.
FIELDS_MAX = 8192
VARINT_BYTES_MAX = 10
KEY_MAX = 0xFFFFFFFF

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5  # the other wire types are obsolete

# Of inference.ModelInferRequest.
_MODEL_NAME = 1 << 3 | LENGTH_DELIMITED
_MODEL_VERSION = 2 << 3 | LENGTH_DELIMITED
_ID = 3 << 3 | LENGTH_DELIMITED


class InferHead(NamedTuple):
    """What a gateway has to know of an `inference.ModelInferRequest`. Empty where nothing was said."""

    model_name: str
    model_version: str
    id: bytes


def read_infer_head(message: bytes) -> InferHead:
    """Of a serialized ModelInferRequest; what is inside its other fields is not looked at.

    Raises `InvalidArgument` for bytes that are no message, and for one of more than `FIELDS_MAX` fields.
    """
    name = version = id_ = b""
    for key, _, start, end in _fields(message):
        if key == _MODEL_NAME:
            name = message[start:end]
        elif key == _MODEL_VERSION:
            version = message[start:end]
        elif key == _ID:
            id_ = message[start:end]
    return InferHead(_text(name, "model_name"), _text(version, "model_version"), id_)


def without_field(message: Buffer, number: int) -> tuple[bytes, list[tuple[int, int]]]:
    """`message` without its fields `number`, and where (start, end) the content of each of those is.

    For large contents that are not to be copied. Raises `InvalidArgument` like `read_infer_head`.
    """
    wanted = number << 3 | LENGTH_DELIMITED
    spans: list[tuple[int, int]] = []
    rest: list[Buffer] = []
    kept_at = 0
    for key, at, start, end in _fields(message):
        if key == wanted:
            rest.append(message[kept_at:at])
            spans.append((start, end))
            kept_at = end
    rest.append(message[kept_at:])
    return b"".join(rest), spans


def _fields(message: Buffer) -> Iterator[tuple[int, int, int, int]]:
    """Top-level fields: key, where the key is, where the value's content begins and ends."""
    at, end = 0, len(message)
    for _ in range(FIELDS_MAX):
        if at == end:
            return
        begin = at
        key, start = _varint(message, at)
        if not 8 <= key <= KEY_MAX:
            raise _malformed(f"key {key}", begin)
        wire_type = key & 7
        if wire_type == LENGTH_DELIMITED:
            size, start = _varint(message, start)
            at = start + size
        elif wire_type == VARINT:
            _, at = _varint(message, start)
        elif wire_type == FIXED64:
            at = start + 8
        elif wire_type == FIXED32:
            at = start + 4
        else:
            raise _malformed(f"wire type {wire_type}", begin)
        if at > end:
            raise _malformed("a field longer than the message", begin)
        yield key, begin, start, at
    if at < end:
        raise InvalidArgument("the request has too many fields", limit=FIELDS_MAX)


def length_delimited(number: int, content: bytes) -> bytes:
    """`content` (a string, bytes or a serialized message) as field `number`, which is less than 16."""
    return length_prefix(number, len(content)) + content


def length_prefix(number: int, size_bytes: int) -> bytes:
    """What stands before the content of field `number`."""
    prefix = bytearray([number << 3 | LENGTH_DELIMITED])
    while size_bytes >= 0x80:
        prefix.append(size_bytes & 0x7F | 0x80)
        size_bytes >>= 7
    prefix.append(size_bytes)
    return bytes(prefix)


def _varint(message: Buffer, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    if at < len(message) and message[at] < 0x80:  # most are one byte long
        return message[at], at + 1
    value = 0
    for index, byte in enumerate(message[at : at + VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise _malformed("a number without end", at)


def _text(value: bytes, field: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{field} is not valid UTF-8") from error


def _malformed(what: str, at: int) -> InvalidArgument:
    return InvalidArgument(f"not a protobuf message: {what}", at_byte=at)
