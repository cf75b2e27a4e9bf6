"""A static answer in the form that a request asks for: JSON, binary tensors or protobuf.

As a replica would, it gives the outputs that are asked for, their best classes where those are, and the
request's id. The values and shapes are the declared ones, however many rows the request has. Off the fast
path: it is written when nothing else answers. A request that takes long to read gets all outputs, as values.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from understudy.wire.documents import shown
from understudy.wire.errors import InvalidArgument
from understudy.wire.frames import Buffer
from understudy.wire.records import AppVersion
from understudy.wire.statics import Static, StaticTensor

READ_BYTES_MAX = 4 * 1024 * 1024  # of a request; to pass over so many takes milliseconds


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Body(msgspec.Struct):
    """What an answer depends on; the inputs are passed over."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


class WantedOutput(NamedTuple):
    """One output and its form; `classes`: the best so many instead of the values."""

    tensor: StaticTensor
    binary: bool
    classes: int


_decode = msgspec.json.Decoder(_Body).decode
_encode = msgspec.json.Encoder().encode


def as_http(spec: AppVersion, static: Static, body: Buffer, json_bytes: int) -> tuple[bytes, int]:
    """The answer to the request in `body`, and how much of it is JSON (-1: all). Raises `InvalidArgument`."""
    if json_bytes == 0:  # all of the body is the only input, and so goes the answer
        asked = _Body(parameters={"binary_data_output": True})
    elif (json_bytes if json_bytes > 0 else len(body)) > READ_BYTES_MAX:
        asked = _Body()
    else:
        try:
            asked = _decode(memoryview(body)[:json_bytes] if json_bytes > 0 else body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidArgument(f"request body: {error}") from error
    binary = (asked.parameters or {}).get("binary_data_output") is True
    wishes = [(output.name, output.parameters or {}) for output in asked.outputs or ()]
    outputs: list[dict[str, Any]] = []
    contents: list[bytes] = []
    for wanted in _wanted(static, wishes, binary=binary):
        tensor = _in_form(spec, wanted)
        written: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if wanted.binary:
            written["parameters"] = {"binary_data_size": len(tensor.raw)}
            contents.append(tensor.raw)
        else:
            written["data"] = tensor.values
        outputs.append(written)
    answer: dict[str, Any] = {"model_name": spec.app, "model_version": str(spec.version), "outputs": outputs}
    if asked.id is not None:
        answer["id"] = asked.id
    json = _encode(answer)
    return b"".join((json, *contents)), len(json) if contents else -1


def for_outputs(
    spec: AppVersion, static: Static, wishes: Sequence[tuple[str, Mapping[str, Any]]]
) -> Sequence[StaticTensor]:
    """The outputs with the names and parameters of `wishes`; all if it is empty. Raises `InvalidArgument`."""
    return [_in_form(spec, wanted) for wanted in _wanted(static, wishes, binary=True)]


def _wanted(
    static: Static, wishes: Sequence[tuple[str, Mapping[str, Any]]], *, binary: bool
) -> Sequence[WantedOutput]:
    if not wishes:
        return [WantedOutput(tensor, binary, 0) for tensor in static]
    by_name = {tensor.name: tensor for tensor in static}
    wanted: dict[str, WantedOutput] = {}
    for name, parameters in wishes:
        if name not in by_name:
            known = ", ".join(map(repr, by_name))
            raise InvalidArgument(f"output {shown(name)}: unknown; the model has {known}")
        if name in wanted:
            raise InvalidArgument(f"output {shown(name)}: asked for twice")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise InvalidArgument(f"output {shown(name)}: classification is a number of classes")
        if classes and by_name[name].datatype == "BYTES":
            raise InvalidArgument(f"output {shown(name)}: has no best classes: it is BYTES")
        wanted[name] = WantedOutput(by_name[name], parameters.get("binary_data", binary) is True, classes)
    return list(wanted.values())


def _in_form(spec: AppVersion, wanted: WantedOutput) -> StaticTensor:
    """The tensor, or its best classes as BYTES elements `value:index`, as replicas write them."""
    tensor = wanted.tensor
    if not wanted.classes:
        return tensor
    batched = bool(tensor.shape) and all(each.shape[:1] == (-1,) for each in spec.inputs + spec.outputs)
    rows = tensor.shape[0] if batched else 1
    width = len(tensor.values) // rows if rows else 0
    form = "{:f}:{}" if tensor.datatype in ("FP16", "FP32", "FP64", "BF16") else "{:d}:{}"
    texts: list[str] = []
    for row in range(rows):
        values = tensor.values[row * width : (row + 1) * width]
        best = sorted(range(width), key=lambda index: (-values[index], index))[: wanted.classes]
        texts += [form.format(values[index], index) for index in best]
    count = min(wanted.classes, width)
    raw = b"".join(struct.pack("<I", len(text)) + text.encode() for text in texts)
    return StaticTensor(tensor.name, "BYTES", (rows, count) if batched else (count,), texts, raw)
