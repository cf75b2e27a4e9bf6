"""One input of a request: JSON or raw bytes -> an array that fits the model's signature.

Whatever is wrong with it is an `InvalidArgument` that names the tensor, what was expected and what came.
JSON data stays raw until its datatype is known from the signature, then one typed decoder reads it and
checks every element on the way.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from understudy.wire.errors import InvalidArgument, cut
from understudy.wire.frames import Buffer
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import (
    DATATYPES,
    FLOATS,
    Array,
    fits,
    from_raw,
    item_bytes,
    round_to_bf16,
    show_shape,
    text_or_bytes,
)

T = TypeVar("T")
Length = Annotated[int, Meta(le=2**31 - 1)]  # of one dimension
Parameters = dict[str, str | int | float | bool]
ReadParameters = dict[str, str | int | float | bool | None]  # null: as if it weren't there
SHOWN_CHARS_MAX = 64  # of a caller's name or text in a message


class ReadTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[Length]
    data: msgspec.Raw = msgspec.Raw()
    parameters: ReadParameters | None = None


class FlatTensor(msgspec.Struct, Generic[T]):
    name: str
    datatype: str
    shape: list[Length]
    data: list[T]
    parameters: ReadParameters | None = None


DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# What one element may be in JSON. 64-bit bounds are checked by NumPy: JSON integers have no bound.
ELEMENTS: dict[str, Any] = {
    "BOOL": bool,
    "UINT8": Annotated[int, Meta(ge=0, le=2**8 - 1)],
    "UINT16": Annotated[int, Meta(ge=0, le=2**16 - 1)],
    "UINT32": Annotated[int, Meta(ge=0, le=2**32 - 1)],
    "UINT64": Annotated[int, Meta(ge=0)],
    "INT8": Annotated[int, Meta(ge=-(2**7), le=2**7 - 1)],
    "INT16": Annotated[int, Meta(ge=-(2**15), le=2**15 - 1)],
    "INT32": Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)],
    "INT64": int,
    "FP16": float,
    "FP32": float,
    "FP64": float,
    "BYTES": str,
    "BF16": float,
}


# How `struct` packs elements: much faster than NumPy reads a list, and it refuses what overflows (in its
# standard modes only).
_PACKED = {"FP16": "e", "FP32": "f", "FP64": "d"}
PACKED_MAX = 4096  # elements; beyond, the gain is small


def given(parameters: ReadParameters | Parameters | None) -> Parameters:
    """Those that say something."""
    return {name: value for name, value in parameters.items() if value is not None} if parameters else {}


@cache  # two entries per datatype and rank of a signature: bounded by 2 x 14 x 32
def _data_decoder(
    datatype: str, depth: int, *, missing: bool = False
) -> Callable[[bytes | msgspec.Raw], list[Any]]:
    type_: Any = ELEMENTS[datatype] | None if missing else ELEMENTS[datatype]
    for _ in range(depth):
        type_ = list[type_]
    return msgspec.json.Decoder(type_).decode


_OPENING = re.compile(rb"[\s\[]*")


def _depth(data: msgspec.Raw) -> int:
    """How many brackets `data` opens with."""
    opening = _OPENING.match(memoryview(data))
    return opening.group().count(b"[") if opening else 0


def shown(text: str) -> str:
    return repr(cut(text, SHOWN_CHARS_MAX))


class InputRule:
    """Turns one tensor of a request into an array, or says what is wrong with it."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.dynamic = any(length == -1 for length in spec.shape[1:])
        self._datatype = spec.datatype
        self._pattern = spec.shape
        self._any_shape = spec.hint
        self._dtype = DATATYPES[spec.datatype]
        self._float = spec.datatype in FLOATS
        self.missing_allowed = False  # null stands for NaN
        self._fitting: list[int] | None = None  # the shape that was found to fit last; what follows from it:
        self._count = 0
        self._pack: Callable[..., None] | None = None
        self._packed = _PACKED.get(spec.datatype)
        self._decode_flat = _data_decoder(spec.datatype, 1)

    def read(self, tensor: ReadTensor | FlatTensor[Any]) -> Array:
        """The tensor in the JSON itself."""
        shape = tensor.shape
        self._check(tensor.datatype, shape)
        flat: list[Any]
        if isinstance(tensor, ReadTensor):
            if not memoryview(tensor.data):
                raise self._wrong("has neither data nor the parameter binary_data_size")
            try:
                flat = self._decode_flat(tensor.data)
            except DECODE_ERRORS as error:
                return self._read_nested(tensor, error)
        else:
            flat = tensor.data
        if len(flat) != self._count:
            raise self._wrong(f"shape {show_shape(shape)} needs {self._count} elements, data has {len(flat)}")
        if self._pack is None:
            return self._array(flat).reshape(shape)
        array = np.empty(shape, self._dtype)
        try:
            self._pack(array.data, 0, *flat)
        except OverflowError as error:
            raise self._out_of_range() from error
        return array

    def read_binary(
        self, datatype: str, shape: list[int], content: Buffer, start: int = 0, size: int | None = None
    ) -> Array:
        """The tensor in `content[start : start + size]`; `size` is that of all the rest by default."""
        self._check(datatype, shape)
        try:
            return from_raw(datatype, shape, content, start, len(content) - start if size is None else size)
        except ValueError as error:
            raise self._wrong(f"binary data: {error}") from error

    def read_whole(self, content: Buffer) -> Array:
        """The tensor that is all of `content`, with the shape that follows from its size.

        Of several dimensions without a fixed length, the last gets what the others, one long, leave. For
        BYTES, `content` is the only element.
        """
        shape = [1 if length == -1 else length for length in self._pattern]
        if self._datatype == "BYTES":
            self._check("BYTES", shape)
            if prod(shape) != 1:
                raise self._wrong(f"shape {show_shape(shape)} is not that of one element")
            array = np.empty(shape, dtype=object)
            array[...] = text_or_bytes(bytes(content))
            return array
        for dimension in reversed(range(len(shape))):
            if self._pattern[dimension] == -1:
                shape[dimension] = len(content) // max(1, prod(shape) * item_bytes(self._datatype))
                break
        if 0 in shape and 0 not in self._pattern:  # more likely cut off than meant
            raise self._wrong(f"shape {show_shape(shape)} doesn't fit {show_shape(self._pattern)}")
        return self.read_binary(self._datatype, shape, content)

    def _check(self, datatype: str, shape: list[int]) -> None:
        if datatype != self._datatype:
            raise self._wrong(f"datatype {shown(datatype)} is not the model's '{self._datatype}'")
        if shape != self._fitting:
            if not self._any_shape and not fits(shape, self._pattern, length_min=0):
                raise self._wrong(f"shape {show_shape(shape)} doesn't fit {show_shape(self._pattern)}")
            self._fitting = shape
            count = self._count = prod(shape)
            packs = self._packed is not None and count <= PACKED_MAX
            self._pack = struct.Struct(f"={count}{self._packed}").pack_into if packs else None

    def _read_nested(self, tensor: ReadTensor, flat_error: Exception) -> Array:
        depth = _depth(tensor.data)
        rank = len(tensor.shape)
        missing = self.missing_allowed and self._float
        if depth <= 1 and not missing:
            raise self._wrong(self._readable(flat_error)) from flat_error
        if depth <= 1:
            rank = depth = 1
        if depth != rank and 0 not in tensor.shape:  # what follows an empty dimension can't be written
            raise self._wrong(f"data is nested {depth} deep; 1 (flat) or {rank} is valid")
        try:
            nested = _data_decoder(self._datatype, depth, missing=missing)(tensor.data)
        except DECODE_ERRORS as error:
            raise self._wrong(self._readable(error)) from error
        try:
            array = self._array(nested)
        except ValueError as error:  # ragged
            raise self._wrong("nested data has rows of different lengths") from error
        if not array.size and 0 in tensor.shape:
            return array.reshape(tensor.shape)
        if depth == 1 and array.size == prod(tensor.shape):
            return array.reshape(tensor.shape)
        if array.shape != tuple(tensor.shape):
            got = show_shape(array.shape)
            raise self._wrong(f"nested data has shape {got}, not {show_shape(tensor.shape)}")
        return array

    def _array(self, data: list[Any]) -> Array:
        try:
            if not self._float:
                return np.array(data, self._dtype)
            with np.errstate(over="raise"):
                array = np.array(data, self._dtype)
        except (OverflowError, FloatingPointError) as error:
            raise self._out_of_range() from error
        if self._datatype == "BF16":
            array = round_to_bf16(array)
            if np.isinf(array).any():
                raise self._wrong("data has a value outside the range of BF16")
        return array

    def _readable(self, error: Exception) -> str:
        what = _readable(error)
        if not what.endswith("got `null`"):
            return what
        if not self._float:
            return f"{what}: {self._datatype} has no missing values"
        return f'{what}: a missing value; it is taken for NaN where the manifest says missing = "nan"'

    def _out_of_range(self) -> InvalidArgument:
        return self._wrong(f"data has a value outside the range of {self._datatype}")

    def _wrong(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"input {shown(self.spec.name)}: {what}")


_AT = re.compile(r" - at `\$([^`]*)`$")


def _readable(error: Exception) -> str:
    """A decoder's message with the place first: `data[3]: expected `float`, got `str``."""
    if isinstance(error, RecursionError):
        return "data is nested too deep"
    text = str(error)
    at = _AT.search(text)
    what = _AT.sub("", text)
    return f"data{at[1] if at else ''}: {what[:1].lower()}{what[1:]}"
