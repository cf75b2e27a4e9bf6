"""Raw tensors of the Open Inference Protocol: bytes -> arrays, arrays -> bytes.

Row-major and little-endian. BOOL is one byte, 0 or 1; BF16 the upper two bytes of a float32; each element
of BYTES follows its length as a 4-byte unsigned integer. The same bytes travel behind the JSON of an HTTP
body and in the raw contents of a gRPC message.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod

import numpy as np

from understudy.wire.frames import Buffer
from understudy.wire.tensors import DATATYPES, Array, round_to_bf16

_STORED: dict[str, np.dtype[np.generic]] = {
    **{name: dtype.newbyteorder("<") for name, dtype in DATATYPES.items() if name != "BYTES"},
    "BOOL": np.dtype(np.uint8),
    "BF16": np.dtype("<u2"),
}
_LENGTH = struct.Struct("<I")
_BF16_SHIFT = np.uint32(16)


def item_bytes(datatype: str) -> int:
    """Of one element; BYTES has no such size."""
    return _STORED[datatype].itemsize


def read(datatype: str, shape: Sequence[int], content: Buffer, start: int, size: int) -> Array:
    """The tensor in `content[start : start + size]`, which the caller knows to exist.

    Numbers are a view of `content`, or a copy where that is read-only, they are not aligned to their size or
    have another form in NumPy. Raises `ValueError` saying what is wrong with the bytes.
    """
    if datatype == "BYTES":
        return _read_bytes(shape, content, start, size)
    stored = _STORED[datatype]
    count = prod(shape)
    wanted = count * stored.itemsize
    if size != wanted:
        raise ValueError(f"{datatype} of this shape takes {wanted} bytes, not {size}")
    array = np.frombuffer(content, stored, count, start).reshape(shape)
    if datatype == "BF16":
        return (array.astype(np.uint32) << _BF16_SHIFT).view(np.float32)
    # Runtimes read through pointers, which has to be aligned, and models may change what they are given.
    if not (array.flags.aligned and array.flags.writeable):
        array = array.copy()
    if datatype == "BOOL":
        if array.max(initial=0) > 1:
            raise ValueError("a BOOL is a byte of 0 or 1")
        return array.view(np.bool_)
    return array


def _read_bytes(shape: Sequence[int], content: Buffer, start: int, size: int) -> Array:
    count = prod(shape)
    if count * _LENGTH.size > size:  # before anything is made as large as the shape says
        raise ValueError(f"{count} BYTES elements take more than {size} bytes")
    array = np.empty(count, dtype=object)
    at, end = start, start + size
    for index in range(count):
        first = at + _LENGTH.size
        if first > end:
            raise ValueError(f"the bytes end before BYTES element {index} of {count}")
        at = first + _LENGTH.unpack_from(content, first - _LENGTH.size)[0]
        if at > end:
            raise ValueError(f"BYTES element {index} is longer than what is left of the tensor")
        array[index] = text_or_bytes(bytes(content[first:at]))
    if at != end:
        raise ValueError(f"{end - at} bytes are left after the last of {count} BYTES elements")
    return array.reshape(shape)


def text_or_bytes(element: bytes) -> str | bytes:
    """Models see text, as they do when it comes in JSON; what isn't valid UTF-8 stays what it is."""
    try:
        return element.decode()
    except UnicodeDecodeError:
        return element


def write(datatype: str, array: Array) -> Buffer:
    """The tensor's bytes: a view of `array` where it holds them as they are sent."""
    if datatype == "BYTES":
        parts: list[bytes] = []
        for value in array.ravel().tolist():
            element = value.encode() if isinstance(value, str) else value
            parts += (_LENGTH.pack(len(element)), element)
        return b"".join(parts)
    if datatype == "BF16":
        array = (round_to_bf16(array).view(np.uint32) >> _BF16_SHIFT).astype(_STORED[datatype])
    elif datatype != "BOOL":
        array = array.astype(_STORED[datatype], copy=False)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
