"""The datatypes of the Open Inference Protocol as NumPy arrays, and such arrays from and to raw bytes.

BF16 has no NumPy type: such tensors are float32 arrays whose values are representable in bfloat16.
BYTES tensors are object arrays of `str`; an element that is not valid UTF-8 is `bytes`. The only module of
`wire` that needs NumPy; processes that don't look into tensors don't import it.

Raw bytes are row-major and little-endian. BOOL is one byte, 0 or 1; BF16 the upper two bytes of a float32;
each element of BYTES follows its length as a 4-byte unsigned integer. The same bytes travel behind the JSON
of an HTTP body and in the raw contents of a gRPC message.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from understudy.wire.frames import Buffer

Array = npt.NDArray[Any]

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
    "BF16": np.dtype(np.float32),
}
FLOATS = frozenset({"FP16", "FP32", "FP64", "BF16"})
RANK_MAX = 32  # NumPy arrays have no more dimensions, in version 1

_STORED: dict[str, np.dtype[np.generic]] = {
    **{name: dtype.newbyteorder("<") for name, dtype in DATATYPES.items() if name != "BYTES"},
    "BOOL": np.dtype(np.uint8),
    "BF16": np.dtype("<u2"),
}
_LENGTH = struct.Struct("<I")
_BF16_SHIFT = np.uint32(16)

_count_nonzero = np.count_nonzero
_isfinite = np.isfinite


def fits(shape: Sequence[int], pattern: Sequence[int], length_min: int = 1) -> bool:
    """Whether a tensor of `shape` may be where `pattern` is declared; -1 is any length from `length_min`."""
    if len(shape) != len(pattern):
        return False
    for length, wanted in zip(shape, pattern, strict=True):
        if length < length_min if wanted == -1 else length != wanted:
            return False
    return True


def show_shape(shape: Sequence[int]) -> str:
    """`[1,64]`, as in a request, cut after eight dimensions: a caller may have sent any number of them."""
    shown = ",".join(str(length) for length in shape[:8])
    return f"[{shown},…]" if len(shape) > 8 else f"[{shown}]"


def is_finite(array: Array) -> bool:
    """False if a floating-point array holds NaN or infinity. 0.6 µs for ten values."""
    return bool(_count_nonzero(_isfinite(array)) == array.size)


def round_to_bf16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The nearest bfloat16 values, ties to even, as float32. Too large becomes infinite; NaN stays NaN."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    values = (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    # Rounding carries a NaN of all ones into the sign bit; keep NaN what it was.
    return np.where(np.isnan(array), array, values).reshape(array.shape)


def item_bytes(datatype: str) -> int:
    """Of one element; BYTES has no such size."""
    return _STORED[datatype].itemsize


def from_raw(datatype: str, shape: Sequence[int], content: Buffer, start: int, size: int) -> Array:
    """The tensor in `content[start : start + size]`, which the caller knows to exist.

    Numbers are a view of `content`, or a copy where that is read-only, they are not aligned to their size or
    have another form in NumPy. Raises `ValueError` saying what is wrong with the bytes.
    """
    if datatype == "BYTES":
        return _bytes_from_raw(shape, content, start, size)
    stored = _STORED[datatype]
    count = prod(shape)
    wanted = count * stored.itemsize
    if size != wanted:
        raise ValueError(f"{datatype} of this shape takes {wanted} bytes, not {size}")
    array = np.frombuffer(content, stored, count, start).reshape(shape)
    if datatype == "BF16":
        return np.asarray(array.astype(np.uint32) << _BF16_SHIFT).view(np.float32)  # a scalar too is an array
    # Runtimes read through pointers, which has to be aligned, and models may change what they are given.
    if not (array.flags.aligned and array.flags.writeable):
        array = array.copy()
    if datatype == "BOOL":
        if array.max(initial=0) > 1:
            raise ValueError("a BOOL is a byte of 0 or 1")
        return array.view(np.bool_)
    return array


def _bytes_from_raw(shape: Sequence[int], content: Buffer, start: int, size: int) -> Array:
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


def to_raw(datatype: str, array: Array) -> Buffer:
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
