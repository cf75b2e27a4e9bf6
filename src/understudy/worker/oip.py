"""Open Inference Protocol, JSON form: request body -> arrays, arrays -> response body.

Lives here: the schema of bodies, checks against a model's signature, conversion from and to NumPy. A body
that is wrong in any way is an `InvalidArgument` that names the tensor, what was expected and what came.
Does not live here: binary tensors. They will enter where a tensor has no `data` (`_InputRule.read`).

Tensor data stays raw JSON until its datatype is known from the signature, then one typed decoder reads it
and checks every element on the way.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from math import prod
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from understudy.wire.errors import InvalidArgument
from understudy.wire.frames import Buffer
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import (
    DATATYPES,
    FLOATS,
    Array,
    fits,
    is_finite,
    round_to_bf16,
    show_shape,
    zeros,
)

T = TypeVar("T")
Length = Annotated[int, Meta(le=2**31 - 1)]  # of one dimension
Parameters = dict[str, str | int | float | bool]
SHOWN_CHARS_MAX = 64  # of a caller's name or text in a message


class _ReadTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[Length]
    data: msgspec.Raw
    parameters: Parameters | None = None


class _RequestedOutput(msgspec.Struct):
    name: str
    parameters: Parameters | None = None


class _Body(msgspec.Struct):
    inputs: list[_ReadTensor]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[_RequestedOutput] | None = None


class _FlatTensor(msgspec.Struct, Generic[T]):
    name: str
    datatype: str
    shape: list[Length]
    data: list[T]
    parameters: Parameters | None = None


class _FlatBody(msgspec.Struct, Generic[T]):
    """A body whose tensors all have flat data of one element type: the usual one, read in one pass."""

    inputs: list[_FlatTensor[T]]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[_RequestedOutput] | None = None


class _WrittenTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: Sequence[int]
    data: list[Any]


class _Response(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_WrittenTensor]
    id: str | None = None


class Request(msgspec.Struct, gc=False):
    """A checked request. `rows` is the length of dimension 0, or 1 for a model that can't be batched.

    Requests with equal `key` may share a batch.
    """

    inputs: dict[str, Array]
    rows: int
    key: Hashable
    id: str | None
    outputs: tuple[str, ...] | None  # None: all


_decode_body = msgspec.json.Decoder(_Body).decode
_encode = msgspec.json.Encoder().encode
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# What one element may be in JSON. 64-bit bounds are checked by NumPy: JSON integers have no bound.
_ELEMENTS: dict[str, Any] = {
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
PACKED_MAX = 4096  # elements; beyond, the formats would fill `struct`'s cache and the gain is small


@cache  # one entry per datatype and rank of a signature: bounded by 14 x 32
def _data_decoder(datatype: str, depth: int) -> Callable[[bytes | msgspec.Raw], list[Any]]:
    type_: Any = _ELEMENTS[datatype]
    for _ in range(depth):
        type_ = list[type_]
    return msgspec.json.Decoder(type_).decode


_OPENING = re.compile(rb"[\s\[]*")


def _depth(data: msgspec.Raw) -> int:
    """How many brackets `data` opens with."""
    opening = _OPENING.match(memoryview(data))
    return opening.group().count(b"[") if opening else 0


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…")


class _InputRule:
    """Turns one tensor of a request into an array, or says what is wrong with it."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.dynamic = any(length == -1 for length in spec.shape[1:])
        self._datatype = spec.datatype
        self._pattern = spec.shape
        self._dtype = DATATYPES[spec.datatype]
        self._float = spec.datatype in FLOATS
        self._fitting: list[int] | None = None  # the shape that was found to fit last
        self._packed = _PACKED.get(spec.datatype)
        self._decode_flat = _data_decoder(spec.datatype, 1)

    def read(self, tensor: _ReadTensor | _FlatTensor[Any]) -> Array:
        if tensor.datatype != self._datatype:
            got = _shown(tensor.datatype)
            raise self._wrong(f"datatype {got} is not the model's '{self._datatype}'")
        shape = tensor.shape
        if shape != self._fitting:
            if not fits(shape, self._pattern):
                raise self._wrong(f"shape {show_shape(shape)} doesn't fit {show_shape(self._pattern)}")
            self._fitting = shape
        flat: list[Any]
        if isinstance(tensor, _ReadTensor):
            try:
                flat = self._decode_flat(tensor.data)
            except _DECODE_ERRORS as error:
                return self._read_nested(tensor, error)
        else:
            flat = tensor.data
        count = prod(shape)
        if len(flat) != count:
            raise self._wrong(f"shape {show_shape(shape)} needs {count} elements, data has {len(flat)}")
        if self._packed is None or count > PACKED_MAX:
            return self._array(flat).reshape(shape)
        array = np.empty(shape, self._dtype)
        try:
            struct.pack_into(f"={count}{self._packed}", array.data, 0, *flat)
        except OverflowError as error:
            raise self._out_of_range() from error
        return array

    def _read_nested(self, tensor: _ReadTensor, flat_error: Exception) -> Array:
        depth = _depth(tensor.data)
        rank = len(self._pattern)
        if depth <= 1:
            raise self._wrong(_readable(flat_error)) from flat_error
        if depth != rank:
            raise self._wrong(f"data is nested {depth} deep; 1 (flat) or {rank} is valid")
        try:
            nested = _data_decoder(self._datatype, depth)(tensor.data)
        except _DECODE_ERRORS as error:
            raise self._wrong(_readable(error)) from error
        try:
            array = self._array(nested)
        except ValueError as error:  # ragged
            raise self._wrong("nested data has rows of different lengths") from error
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
            if not is_finite(array):
                raise self._wrong("data has a value outside the range of BF16")
        return array

    def _out_of_range(self) -> InvalidArgument:
        return self._wrong(f"data has a value outside the range of {self._datatype}")

    def _wrong(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"input {_shown(self.spec.name)}: {what}")


_AT = re.compile(r" - at `\$([^`]*)`$")


def _readable(error: Exception) -> str:
    """A decoder's message with the place first: `data[3]: expected `float`, got `str``."""
    if isinstance(error, RecursionError):
        return "data is nested too deep"
    text = str(error)
    at = _AT.search(text)
    what = _AT.sub("", text)
    return f"data{at[1] if at else ''}: {what[:1].lower()}{what[1:]}"


class Codec:
    """Bodies of one model version. `batched`: dimension 0 of every tensor counts rows.

    The specs must have datatypes of `DATATYPES`; names are unique.
    """

    def __init__(
        self,
        app: str,
        version: int,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        batched: bool,
    ) -> None:
        self._app = app
        self._version = str(version)
        self._rules = {spec.name: _InputRule(spec) for spec in inputs}
        self._dynamic = [rule.spec.name for rule in self._rules.values() if rule.dynamic]
        self._outputs = {spec.name: spec.datatype for spec in outputs}
        self._batched = batched
        elements = {_ELEMENTS[spec.datatype] for spec in inputs}
        body = _FlatBody[elements.pop()] if len(elements) == 1 else _Body  # type: ignore[misc]
        self._decode_body: Callable[[Buffer], _Body | _FlatBody[Any]] = msgspec.json.Decoder(body).decode

    def decode(self, body: Buffer) -> Request:
        """The request in `body`. Raises `InvalidArgument`."""
        parsed: _Body | _FlatBody[Any]
        try:
            parsed = self._decode_body(body)
        except _DECODE_ERRORS:
            parsed = self._decode_raw(body)
        return self._request(parsed)

    def _decode_raw(self, body: Buffer) -> _Body:
        """Whatever the tensors' data may be."""
        try:
            return _decode_body(body)
        except _DECODE_ERRORS as error:
            if isinstance(error, RecursionError):
                what = "JSON is nested too deep"
            elif isinstance(error, msgspec.ValidationError):
                what = str(error)
            else:
                what = f"not valid JSON: {error}"
            raise InvalidArgument(f"request body: {what}") from error

    def _request(self, parsed: _Body | _FlatBody[Any]) -> Request:
        arrays: dict[str, Array] = {}
        for tensor in parsed.inputs:
            name = tensor.name
            rule = self._rules.get(name)
            if rule is None:
                raise InvalidArgument(f"input {_shown(name)}: unknown; the model has {self._input_names()}")
            if name in arrays:
                raise InvalidArgument(f"input {_shown(name)}: given twice")
            arrays[name] = rule.read(tensor)
        if len(arrays) != len(self._rules):
            missing = ", ".join(repr(name) for name in self._rules if name not in arrays)
            raise InvalidArgument(f"missing input: {missing}")
        key = tuple(arrays[name].shape[1:] for name in self._dynamic) if self._dynamic else ()
        requested = self._requested(parsed.outputs) if parsed.outputs else None
        return Request(arrays, self._rows(arrays) if self._batched else 1, key, parsed.id, requested)

    def encode(self, outputs: dict[str, Array], requests: Sequence[Request], rows: int) -> list[bytes]:
        """One response body for each of `requests`, which share `outputs` of `rows` rows in this order.

        Raises `ValueError` if a BYTES output is not valid UTF-8.
        """
        flat = {name: _flat_list(array) for name, array in outputs.items()}
        if len(requests) == 1:
            tensors = [
                _WrittenTensor(name, self._outputs[name], array.shape, flat[name])
                for name, array in outputs.items()
            ]
            return [self._body(tensors, requests[0])]
        bodies: list[bytes] = []
        start = 0
        widths = {name: len(values) // rows for name, values in flat.items()}
        for request in requests:
            end = start + request.rows
            tensors = []
            for name, array in outputs.items():
                width = widths[name]
                data = flat[name][start * width : end * width]
                tensors.append(
                    _WrittenTensor(name, self._outputs[name], (request.rows, *array.shape[1:]), data)
                )
            bodies.append(self._body(tensors, request))
            start = end
        return bodies

    def _body(self, tensors: list[_WrittenTensor], request: Request) -> bytes:
        if request.outputs is not None:
            tensors = [tensor for tensor in tensors if tensor.name in request.outputs]
        return _encode(_Response(self._app, self._version, tensors, request.id))

    def _rows(self, arrays: dict[str, Array]) -> int:
        rows = 0
        for name, array in arrays.items():
            if rows and len(array) != rows:
                first = next(iter(arrays))
                raise InvalidArgument(
                    f"input {_shown(name)}: has {len(array)} rows, input {_shown(first)} has {rows}"
                )
            rows = len(array)
        return rows

    def _requested(self, outputs: list[_RequestedOutput]) -> tuple[str, ...]:
        for output in outputs:
            if output.name not in self._outputs:
                known = ", ".join(repr(name) for name in self._outputs)
                raise InvalidArgument(f"output {_shown(output.name)}: unknown; the model has {known}")
        return tuple(output.name for output in outputs)

    def _input_names(self) -> str:
        return ", ".join(repr(name) for name in self._rules)


def encode_probe(probe: dict[str, Any] | None, inputs: tuple[TensorSpec, ...]) -> bytes:
    """`probe` as a request body; without one, zeros of the declared shapes."""
    if probe is not None:
        return _encode(probe)
    tensors = []
    for spec in inputs:
        array = zeros(spec)
        tensors.append(_WrittenTensor(spec.name, spec.datatype, array.shape, _flat_list(array)))
    return _encode({"inputs": tensors})


def _flat_list(array: Array) -> list[Any]:
    """Row-major elements as JSON values; bytes of a BYTES tensor become text."""
    values: list[Any] = array.ravel().tolist()
    if array.dtype.kind in "OS":
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    return values
