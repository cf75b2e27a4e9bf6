"""Static answers: what a manifest declares for when nothing else answers, checked and made ready to be sent.

Without NumPy, which gateways don't import: a static answer is short and written by hand.
"""

from __future__ import annotations

import difflib
import struct
from collections.abc import Iterator, Sequence
from math import isfinite, prod
from typing import Any, NamedTuple, Protocol

from understudy.wire.documents import shown
from understudy.wire.errors import InvalidArgument

FIELDS = ("name", "datatype", "shape", "data")
RANK_MAX = 32
LENGTH_MAX = 2**31 - 1
_INTEGERS = {
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
}  # fmt: skip
_FLOATS = {"FP16": "e", "FP32": "f", "FP64": "d", "BF16": "f"}
_DATATYPES = ("BOOL", *_INTEGERS, *_FLOATS, "BYTES")


class Spec(Protocol):
    """What is declared of an output, in a manifest or a record."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class StaticTensor(NamedTuple):
    """One output. `values` are its elements in row-major order, `raw` the same as the protocol's bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: list[Any]
    raw: bytes


Static = tuple[StaticTensor, ...]  # all outputs


def read_static(static: Any, *, strict: bool = False) -> Static:
    """The outputs of a static answer. Raises `InvalidArgument` naming what can't be sent.

    `strict`: unknown fields are refused too, and there has to be an output.
    """
    if not isinstance(static, dict):
        raise InvalidArgument("static: has to be a table with outputs")
    _check_fields("static", static, ("outputs",), strict=strict)
    outputs = static["outputs"]
    if not isinstance(outputs, list) or (strict and not outputs):
        raise InvalidArgument("static.outputs: a list with at least one tensor is needed")
    tensors: dict[str, StaticTensor] = {}
    for index, output in enumerate(outputs):
        tensor = _read_tensor(f"static.outputs[{index}]", output, strict=strict)
        if tensor.name in tensors:
            raise InvalidArgument(f"static.outputs[{index}].name: {shown(tensor.name)} is used twice")
        tensors[tensor.name] = tensor
    return tuple(tensors.values())


def check_static(static: Any, outputs: Sequence[Spec]) -> None:
    """Raises `InvalidArgument` unless a client could take `static` for an answer of an app with `outputs`."""
    specs = {spec.name: spec for spec in outputs}
    has = ", ".join(show_spec(spec) for spec in outputs)
    declared = static.get("outputs") if isinstance(static, dict) else None
    for index, output in enumerate(declared if isinstance(declared, list) else ()):
        name = output.get("name") if isinstance(output, dict) else None
        if isinstance(name, str) and name not in specs:  # said first: the rest may be about another app
            field = f"static.outputs[{index}]"
            raise InvalidArgument(f"{field}: the app has no output {shown(name)} (it has {has})")
    tensors = read_static(static, strict=True)
    for index, tensor in enumerate(tensors):
        field = f"static.outputs[{index}]"
        spec = specs[tensor.name]
        if tensor.datatype != spec.datatype:
            raise InvalidArgument(f"{field}.datatype: the app's output is {show_spec(spec)}")
        if len(tensor.shape) != len(spec.shape) or any(
            wanted not in (-1, length) for length, wanted in zip(tensor.shape, spec.shape, strict=True)
        ):
            shape = ",".join(map(str, tensor.shape))
            raise InvalidArgument(f"{field}.shape: [{shape}] doesn't fit the app's {show_spec(spec)}")
    missing = specs.keys() - {tensor.name for tensor in tensors}
    if missing:
        listed = ", ".join(show_spec(spec) for spec in outputs if spec.name in missing)
        raise InvalidArgument(f"static.outputs: {listed} is missing; the app has {has}")


def show_spec(spec: Spec) -> str:
    return f"{spec.name} {spec.datatype}[{','.join(map(str, spec.shape))}]"


def _read_tensor(field: str, tensor: Any, *, strict: bool) -> StaticTensor:
    if not isinstance(tensor, dict):
        raise InvalidArgument(f"{field}: a tensor needs {', '.join(sorted(FIELDS))}")
    _check_fields(field, tensor, FIELDS, strict=strict)
    name, datatype, shape, data = (tensor[part] for part in FIELDS)
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"{field}.name: has to be text, not {shown(name)}")
    if datatype not in _DATATYPES:
        raise InvalidArgument(f"{field}.datatype: {shown(datatype)} is none; known: {', '.join(_DATATYPES)}")
    if (
        not isinstance(shape, list | tuple)
        or len(shape) > RANK_MAX
        or not all(type(length) is int and 0 <= length <= LENGTH_MAX for length in shape)
    ):
        raise InvalidArgument(f"{field}.shape: has to be a list of lengths, not {shown(shape)}")
    if not isinstance(data, list | tuple):
        raise InvalidArgument(f"{field}.data: has to be a list, not {shown(data)}")
    values = list(_elements(f"{field}.data", data, tuple(shape)))
    if len(values) != prod(shape):
        lengths = ",".join(map(str, shape))
        needed = f"shape [{lengths}] needs {prod(shape)} values"
        raise InvalidArgument(f"{field}.data: {needed}, not {len(values)}")
    try:
        raw = _pack(datatype, values, f"{field}.data")
    except (struct.error, OverflowError):
        raise InvalidArgument(f"{field}.data: has a value outside the range of {datatype}") from None
    return StaticTensor(name, datatype, tuple(shape), values, raw)


def _check_fields(field: str, table: dict[str, Any], known: tuple[str, ...], *, strict: bool) -> None:
    missing = set(known) - set(table)
    if missing:
        what = "a tensor needs" if known == FIELDS else "needs"
        raise InvalidArgument(f"{field}: {what} {', '.join(sorted(missing))}")
    for name in table:
        if strict and name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InvalidArgument(f"{field}.{name}: unknown field; {hint}")


def _elements(field: str, data: Any, shape: tuple[int, ...]) -> Iterator[Any]:
    """In row-major order, of data that is flat or nested as `shape` says."""
    if not any(isinstance(each, list | tuple) for each in data):
        yield from data
        return
    if len(shape) < 2 or len(data) != shape[0] or not all(isinstance(each, list | tuple) for each in data):
        raise InvalidArgument(f"{field}: is neither flat nor nested as the shape says")
    for index, each in enumerate(data):
        if len(shape) == 2 and any(isinstance(value, list | tuple) for value in each):
            raise InvalidArgument(f"{field}[{index}]: is nested deeper than the shape says")
        if len(each) != shape[1]:
            raise InvalidArgument(f"{field}[{index}]: has {len(each)} elements, the shape says {shape[1]}")
        yield from _elements(f"{field}[{index}]", each, shape[1:])


def _pack(datatype: str, values: list[Any], field: str) -> bytes:
    for index, value in enumerate(values):
        if not _is(datatype, value):
            raise InvalidArgument(f"{field}[{index}]: {shown(value)} is no {datatype}")
    if datatype == "BYTES":
        texts = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    if datatype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)  # cut, not rounded
    form = "?" if datatype == "BOOL" else _INTEGERS.get(datatype) or _FLOATS[datatype]
    return struct.pack(f"<{len(values)}{form}", *values)


def _is(datatype: str, value: Any) -> bool:
    if datatype == "BYTES":
        return isinstance(value, str)
    if datatype == "BOOL":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if datatype in _INTEGERS:
        return isinstance(value, int)
    return isinstance(value, int) or (isinstance(value, float) and isfinite(value))
