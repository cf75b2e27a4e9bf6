"""Values of ONNX that aren't NumPy tensors, as tensors: rows of maps, optional tensors, bfloat16."""

from __future__ import annotations

import ctypes
import re
from math import prod
from typing import Any

import msgspec
import numpy as np

from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import DATATYPES, Array, from_raw, to_raw

# Element types as ONNX Runtime prints them.
DATATYPE_OF = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "bfloat16": "BF16",
}
_TENSOR = re.compile(r"(?:optional\()?tensor\((\w+)\)\)?")
_MAP = re.compile(r"(?:seq\()?map\((?:int64|string),tensor\((\w+)\)\)\)?")
_BFLOAT16 = 16  # TensorProto.BFLOAT16


def tensor_spec(value: Any, *, optional: bool = False, output: bool = False) -> TensorSpec | None:
    """An input or output of a session; None if it isn't a tensor of a datatype that can be served.

    ONNX Runtime enforces the shapes of inputs, and only warns of outputs.
    """
    datatype = DATATYPE_OF.get(found[1]) if (found := _TENSOR.fullmatch(value.type)) else None
    if datatype is None:
        return None
    # A dimension without a fixed length is a name or None.
    shape = tuple(length if isinstance(length, int) and length >= 0 else -1 for length in value.shape)
    # ONNX Runtime shows an unknown rank as a scalar's shape, and enforces neither.
    optional = optional or value.type.startswith("optional(")
    return TensorSpec(value.name, datatype, shape, optional=optional, hint=output or not shape)


class Maps:
    """An output of one map per row (what ZipMap makes of probabilities), or of one map: a column per key."""

    def __init__(self, name: str, datatype: str, *, rows: bool) -> None:
        self.spec = TensorSpec(name, datatype, (-1, -1) if rows else (-1,), hint=True)
        self._rows = rows
        self._keys: list[Any] | None = None  # those of the first map that came, sorted as classes are

    def read(self, value: Any) -> Array:
        """Raises OUTPUT_INVALID for a map with other keys than the first one had."""
        maps = value if self._rows else [value]
        if self._keys is None and maps:
            self._keys = sorted(maps[0])
            shape = (-1, len(self._keys)) if self._rows else (len(self._keys),)
            labels = tuple(str(key) for key in self._keys)
            self.spec = msgspec.structs.replace(self.spec, shape=shape, labels=labels)
        keys = self._keys or []
        if any(len(one) != len(keys) or not all(key in one for key in keys) for one in maps):
            raise UnderstudyError(
                Code.OUTPUT_INVALID, f"output {self.spec.name!r} has a map with other keys than the first one"
            )
        table = np.empty((len(maps), len(keys)), DATATYPES[self.spec.datatype])
        for row, one in enumerate(maps):
            table[row] = [one[key] for key in keys]
        return table if self._rows else table[0]

    @property
    def note(self) -> str:
        each = "one map per row" if self._rows else "a map"
        return (
            f"output {self.spec.name!r} is {each}: served as a {self.spec.datatype} tensor with a column for "
            "each key, in their order"
        )


def maps_of(value: Any) -> Maps | None:
    """None if the output of a session isn't made of maps from a class to a number or text."""
    found = _MAP.fullmatch(value.type)
    if found is None or found[1] not in DATATYPE_OF:
        return None
    return Maps(value.name, DATATYPE_OF[found[1]], rows=value.type.startswith("seq("))


def from_bf16(ort: Any, array: Array) -> Any:
    """As ONNX Runtime takes it: NumPy has no such type."""
    bits = np.frombuffer(to_raw("BF16", array), np.uint16).reshape(array.shape)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)


def run_to_bf16(session: Any, ort: Any, names: list[str], inputs: dict[str, Any]) -> list[Any]:
    """As `session.run`, with bfloat16 among the outputs."""
    values = {
        name: ort.OrtValue.ortvalue_from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in inputs.items()
    }
    return [_array_of(value) for value in session.run_with_ort_values(names, values)]


def _array_of(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape = value.shape()
    raw = ctypes.string_at(value.data_ptr(), 2 * prod(shape))
    return from_raw("BF16", shape, raw, 0, len(raw))
