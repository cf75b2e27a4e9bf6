"""What a request takes in memory, estimated on the cautious side before anything is made of it.

JSON of short strings takes thirty times its bytes as Python objects, and outputs may be many times as large
as inputs: so what is bounded is not a body's size, but what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.frames import Buffer
from understudy.wire.tensors import Array

SMALL_BYTES = 64 * 1024  # a body that isn't looked through
CHUNK_BYTES = 1024 * 1024
# Of what one element becomes on the way: the object, its places in a list and an array, and the copy that a
# runtime makes of a text.
ELEMENT_BYTES = 96
OBJECT_BYTES = 256  # a tensor or a table in JSON
TEXT_FACTOR = 5  # a text of four bytes per character, and the body itself
PROTOBUF_FACTOR = 64  # a byte of contents that aren't raw may be an element
POINTER_FACTOR = ELEMENT_BYTES // 8  # an array of texts shows pointers as its size
JSON_FACTOR = 18  # FP32 as Python's numbers, and as text
BINARY_FACTOR = 3  # views, contents and the body that they are joined to
_COMMA, _BRACKET, _BRACE = (ord(character) for character in ",[{")


class Appetite(NamedTuple):
    """Of a model, measured when it was deployed: bytes per byte of its inputs."""

    per_byte: float = 2.0  # what an inference adds at its peak
    output_per_byte: float = 1.0

    @property
    def in_binary(self) -> float:
        """As `in_json`, for the cheapest form of answer."""
        return self.per_byte + self.output_per_byte * BINARY_FACTOR

    @property
    def in_json(self) -> float:
        """Bytes per byte of inputs until the answer is sent, as JSON."""
        return self.per_byte + self.output_per_byte * JSON_FACTOR


# An array's, if its elements aren't texts.
number_bytes: Callable[[Array], int] = attrgetter("nbytes")


def array_bytes(array: Array) -> int:
    """What it holds; of texts only the pointers are counted by NumPy."""
    return array.nbytes * POINTER_FACTOR if array.dtype.hasobject else array.nbytes


def json_bytes_decoded(json: Buffer) -> int:
    """Upper bound of the bytes that decoding takes. 1 ms for each MB; nothing for a small body."""
    size = len(json)
    if size <= SMALL_BYTES:
        return size * ELEMENT_BYTES
    elements = objects = 0
    content = np.frombuffer(json, np.uint8)
    for start in range(0, size, CHUNK_BYTES):
        chunk = content[start : start + CHUNK_BYTES]
        elements += int(np.count_nonzero(chunk == _COMMA)) + int(np.count_nonzero(chunk == _BRACKET))
        objects += int(np.count_nonzero(chunk == _BRACE))
    return elements * ELEMENT_BYTES + objects * OBJECT_BYTES + size * TEXT_FACTOR


def refuse_beyond(bytes_max: int, needed_bytes: int, what: str) -> None:
    if needed_bytes > bytes_max:
        raise UnderstudyError(
            Code.TOO_LARGE,
            f"{what} may take {needed_bytes >> 20} MB of memory; one request may take {bytes_max >> 20} MB, "
            "half of agent.request_memory_mb: send fewer elements at once, or numbers in binary form",
        )
