"""Bodies of the Open Inference Protocol, as a client writes and reads them: JSON, and with binary tensors.

In the binary form a body is JSON and then the tensors' elements, little-endian, in the order of their
names in the JSON; `Inference-Header-Content-Length` says where they begin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from understudy.client.arrays import holds_non_finite, wrong
from understudy.wire.frames import Buffer
from understudy.wire.tensors import DATATYPES, Array, from_raw, to_raw

_encode = msgspec.json.Encoder().encode


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class _Response(msgspec.Struct):
    outputs: list[_Tensor]
    id: str | None = None


_decode_response = msgspec.json.Decoder(_Response).decode


class Tensors(msgspec.Struct, frozen=True):
    """What a request asks: tensors by name with their datatypes, and which outputs (None: all)."""

    inputs: dict[str, tuple[str, Array]]
    outputs: tuple[str, ...] | None
    id: str | None


class Body(msgspec.Struct, frozen=True):
    """`json_bytes` is the length of the JSON before binary tensors; None: there are none."""

    parts: tuple[Buffer, ...]
    json_bytes: int | None

    @property
    def size_bytes(self) -> int:
        return sum(len(part) for part in self.parts)


def json_body(tensors: Tensors) -> Body:
    """Raises `InvalidInput` for what JSON can't say: NaN, infinities, bytes that are no UTF-8."""
    inputs = []
    for name, (datatype, array) in tensors.inputs.items():
        if holds_non_finite(datatype, array):
            raise wrong(
                name, "NaN or infinite, which JSON can't say, and the gateway takes no binary tensors"
            )
        data = array.ravel().tolist()
        if datatype == "BYTES":
            data = [_json_text(name, value) for value in data]
        inputs.append({"name": name, "datatype": datatype, "shape": array.shape, "data": data})
    return Body((_encode(_request(tensors, inputs)),), None)


def _json_text(name: str, value: str | bytes) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else value.encode().decode()
    except UnicodeError as error:
        raise wrong(name, f"not UTF-8, and the gateway takes no binary tensors: {error}") from error


def binary_body(tensors: Tensors) -> Body:
    inputs, parts = [], []
    for name, (datatype, array) in tensors.inputs.items():
        try:
            part = to_raw(datatype, array)
        except UnicodeEncodeError as error:
            raise wrong(name, f"a text that UTF-8 can't say: {error}") from error
        parameters = {"binary_data_size": len(part)}
        inputs.append({"name": name, "datatype": datatype, "shape": array.shape, "parameters": parameters})
        parts.append(part)
    head = _encode(_request(tensors, inputs) | {"parameters": {"binary_data_output": True}})
    return Body((head, *parts), len(head))


def _request(tensors: Tensors, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    request: dict[str, Any] = {"inputs": inputs}
    if tensors.outputs is not None:
        request["outputs"] = [{"name": name} for name in tensors.outputs]
    if tensors.id is not None:
        request["id"] = tensors.id
    return request


def decode(body: bytes, json_bytes: int | None) -> tuple[dict[str, Array], str | None]:
    """Outputs by name, and the id. Raises `ValueError` if `body` is no answer to an inference.

    Elements of BYTES are `str`, or `bytes` where they are no UTF-8, just as models see them.
    """
    if json_bytes is not None and not 0 <= json_bytes <= len(body):
        raise ValueError(f"the JSON's length, {json_bytes}, is not in the body of {len(body)} bytes")
    try:
        response = _decode_response(body if json_bytes is None else memoryview(body)[:json_bytes])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    at = len(body) if json_bytes is None else json_bytes
    outputs: dict[str, Array] = {}
    for tensor in response.outputs:
        if tensor.datatype not in DATATYPES or any(length < 0 for length in tensor.shape):
            raise ValueError(f"output {tensor.name!r}: {tensor.datatype} of shape {tensor.shape}")
        if tensor.data is not None:
            outputs[tensor.name] = _from_json(tensor, tensor.data)
            continue
        size = tensor.parameters.get("binary_data_size")
        if not isinstance(size, int) or not 0 <= size <= len(body) - at:
            raise ValueError(f"output {tensor.name!r}: neither data nor a binary_data_size that fits")
        try:
            outputs[tensor.name] = from_raw(tensor.datatype, tensor.shape, body, at, size)
        except ValueError as error:
            raise ValueError(f"output {tensor.name!r}: {error}") from error
        at += size
    return outputs, response.id


def _from_json(tensor: _Tensor, data: Sequence[Any]) -> Array:
    try:
        array = np.array(data, DATATYPES[tensor.datatype])  # flat or nested
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"output {tensor.name!r}: {error}") from error
    return array.reshape(tensor.shape)


def json_bytes_of(headers: Mapping[str, str]) -> int | None:
    """Where binary tensors begin in an answer with these (lower-case) headers. Raises `ValueError`."""
    length = headers.get("inference-header-content-length")
    if length is not None and not (length.isascii() and length.isdecimal()):  # `int` takes more: -1, 1_0
        raise ValueError(f"{length[:40]!r} is not a length")
    return None if length is None else int(length)
