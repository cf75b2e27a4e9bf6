"""Protobuf bodies: the same rules and answers as in JSON, in one batch with JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from understudy.wire.errors import Code, InvalidArgument, UnderstudyError
from understudy.wire.inference import ModelInferRequest, ModelInferResponse
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import DATATYPES
from understudy.worker import oip
from understudy.worker.oip import Answer
from understudy.worker.protobuf import Codec

X = TensorSpec("x", "FP32", (-1, 3))
N = TensorSpec("n", "INT64", (-1,))
Y = TensorSpec("y", "FP32", (-1, 2))
LABEL = TensorSpec("label", "BYTES", (-1,))


def codec(inputs: Sequence[TensorSpec] = (X,), outputs: Sequence[TensorSpec] = (Y,)) -> Codec:
    return Codec("app", 7, tuple(inputs), tuple(outputs), batched=True)


def tensor(
    name: str = "x", datatype: str = "FP32", shape: Sequence[int] = (1, 3), **contents: Any
) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    return {**made, "contents": contents} if contents else made


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def message(*inputs: dict[str, Any], raw: Sequence[bytes] = (), **more: Any) -> bytes:
    request = ModelInferRequest(model_name="app", inputs=inputs or [tensor()], raw_input_contents=raw, **more)
    encoded: bytes = request.SerializeToString()
    return encoded


def response(answer: Answer | InvalidArgument) -> Any:
    assert isinstance(answer, Answer)
    return ModelInferResponse.FromString(answer.body)


def test_parameters_are_kept_for_a_model_that_asks_for_them_as_in_json() -> None:
    given = {"count": 3, "ratio": 0.5, "text": "é", "on": True, "binary_data_output": True}
    values = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    parameters = {name: {values[type(value)]: value} for name, value in given.items()}
    body = message(raw=[floats(1, 2, 3)], parameters=parameters)
    assert codec().decode_protobuf(body).parameters is None
    asking = codec()
    asking.keeps_parameters = True
    request = asking.decode_protobuf(body)
    assert request.parameters == {"count": 3, "ratio": 0.5, "text": "é", "on": True}
    as_json = json.dumps({"inputs": [{**tensor(), "data": [1, 2, 3]}], "parameters": given}).encode()
    same = asking.decode(as_json)
    assert (same.parameters, same.key) == (request.parameters, request.key)
    assert asking.decode_protobuf(message(raw=[floats(1, 2, 3)])).key != request.key


def test_raw_and_typed_contents_are_the_same() -> None:
    raw = codec().decode_protobuf(message(raw=[floats(1, 2.5, 3)], id="q"))
    typed = codec().decode_protobuf(message(tensor(fp32_contents=[1, 2.5, 3]), id="q"))
    for request in (raw, typed):
        assert (request.rows, request.id, request.protobuf) == (1, "q", True)
        assert request.inputs["x"].tolist() == [[1, 2.5, 3]]
        assert request.inputs["x"].dtype == np.float32


@pytest.mark.parametrize("id_bytes", range(4))
def test_aligned_raw_contents_of_writable_bodies_are_not_copied(id_bytes: int) -> None:
    body = bytearray(message(raw=[floats(1, 2, 3)], id="i" * id_bytes))
    content = np.frombuffer(body, np.uint8)
    aligned = (content.ctypes.data + body.index(floats(1, 2, 3))) % 4 == 0
    array = codec().decode_protobuf(memoryview(body)).inputs["x"]
    assert array.tolist() == [[1, 2, 3]]
    assert np.shares_memory(array, content) == aligned


TYPED: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False]),
    **{f"UINT{bits}": ("uint_contents", [0, 2**bits - 1]) for bits in (8, 16, 32)},
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    **{f"INT{bits}": ("int_contents", [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]) for bits in (8, 16, 32)},
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "FP32": ("fp32_contents", [0.5, -1.5]),
    "FP64": ("fp64_contents", [0.1, -1.7e308]),
    "BYTES": ("bytes_contents", [b"", "näh".encode()]),
}


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_of_every_datatype_that_has_them(datatype: str) -> None:
    field, values = TYPED[datatype]
    spec = TensorSpec("x", datatype, (-1,))
    body = message(tensor("x", datatype, [2], **{field: values}))
    array = codec([spec]).decode_protobuf(body).inputs["x"]
    assert array.dtype == DATATYPES[datatype]
    assert array.tolist() == ["", "näh"] if datatype == "BYTES" else values


@pytest.mark.parametrize("datatype", TYPED)
def test_who_asks_in_contents_is_answered_in_contents(datatype: str) -> None:
    field, values = TYPED[datatype]
    spec = TensorSpec("x", datatype, (-1,))
    echo = codec([spec], [spec])
    asked = echo.decode_protobuf(message(tensor("x", datatype, [2], **{field: values})))
    (answer,) = echo.encode(asked.inputs, [asked], 2)
    said = response(answer)
    assert list(getattr(said.outputs[0].contents, field)) == values
    assert not said.raw_output_contents


def test_an_answer_with_halves_is_raw_whoever_asks() -> None:
    mixed = codec([X], [Y, TensorSpec("h", "FP16", (-1,))])
    asked = mixed.decode_protobuf(message(tensor(fp32_contents=[1, 2, 3])))
    outputs = {"y": np.zeros((1, 2), np.float32), "h": np.zeros(1, np.float16)}
    (answer,) = mixed.encode(outputs, [asked], 1)
    assert len(response(answer).raw_output_contents) == 2


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_halves_travel_raw_only(datatype: str) -> None:
    body = message(tensor("x", datatype, [1], fp32_contents=[1.0]))
    with pytest.raises(InvalidArgument, match="raw_input_contents only"):
        codec([TensorSpec("x", datatype, (-1,))]).decode_protobuf(body)


RAW = [floats(1, 2, 3)]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"\xff\xff\xff", "not a protobuf message"),
        (b"\x2a\x03\x0a\x09x", "not a valid inference.ModelInferRequest"),
        (message(tensor("z"), raw=RAW), "'z': unknown; the model has 'x'"),
        (message(tensor(), tensor(), raw=RAW * 2), "'x': given twice"),
        (b"", "missing input: 'x'"),
        (message(tensor(datatype="INT8"), raw=RAW), "datatype 'INT8' is not the model's 'FP32'"),
        (message(tensor(shape=[1, 4]), raw=RAW), r"shape \[1,4\] doesn't fit \[-1,3\]"),
        (message(tensor(shape=[-1, 3]), raw=RAW), r"shape \[-1,3\] doesn't fit"),
        (message(tensor(shape=[2, 3]), raw=RAW), "takes 24 bytes, not 12"),
        (message(tensor(shape=[2**62, 3]), raw=RAW), "bytes, not 12"),
        (message(raw=RAW * 2), "raw_input_contents has 2 items for 1 inputs"),
        (message(tensor(fp32_contents=[1.0]), raw=RAW), "both contents and raw_input_contents"),
        (message(tensor(fp32_contents=[1.0])), "needs 3 elements, data has 1"),
        (message(tensor(int_contents=[1, 2, 3])), "FP32 travels in fp32_contents, not in int_contents"),
        (message(tensor(int_contents=[1], fp32_contents=[1.0])), "int_contents and fp32_contents; one kind"),
        (message(), "needs 3 elements, data has 0"),
        (message(raw=RAW, outputs=[{"name": "w"}]), "output 'w': unknown; the model has 'y'"),
        (
            message({**tensor(), "parameters": {"shared_memory_region": {"string_param": "r"}}}),
            "shared memory is not offered",
        ),
    ],
)
def test_what_is_wrong_is_said(body: bytes, what: str) -> None:
    with pytest.raises(InvalidArgument, match=what):
        codec().decode_protobuf(body)


def test_integers_out_of_range_are_refused() -> None:
    body = message(tensor("x", "INT8", [1], int_contents=[128]))
    with pytest.raises(InvalidArgument, match="outside the range of INT8"):
        codec([TensorSpec("x", "INT8", (-1,))]).decode_protobuf(body)


def test_requests_in_json_and_protobuf_share_a_batch() -> None:
    both = codec()
    first = both.decode_protobuf(message(raw=RAW, id="p"))
    tensors = [{"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [0] * 6}]
    second = both.decode(json.dumps({"inputs": tensors, "id": "j"}).encode())
    y = np.arange(6, dtype=np.float32).reshape(3, 2)
    in_protobuf, in_json = both.encode({"y": y}, [first, second], 3)
    answer = response(in_protobuf)
    assert (answer.model_name, answer.model_version, answer.id) == ("app", "7", "p")
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [("y", "FP32", [1, 2])]
    assert list(answer.raw_output_contents) == [floats(0, 1)]
    assert isinstance(in_json, Answer)
    assert json.loads(in_json.body)["outputs"][0]["data"] == [2, 3, 4, 5]


def test_outputs_are_those_asked_for_in_their_order() -> None:
    both = codec(outputs=[Y, LABEL])
    body = message(raw=RAW, outputs=[{"name": "label"}, {"name": "y"}])
    outputs = {"y": np.zeros((1, 2), np.float32), "label": np.array(["näh"], dtype=object)}
    (encoded,) = both.encode(outputs, [both.decode_protobuf(body)], 1)
    answer = response(encoded)
    assert [output.name for output in answer.outputs] == ["label", "y"]
    assert list(answer.raw_output_contents) == [b"\x04\0\0\0" + "näh".encode(), floats(0, 0)]


def test_the_best_classes_can_be_asked_for() -> None:
    both = codec()
    body = message(raw=RAW, outputs=[{"name": "y", "parameters": {"classification": {"int64_param": 1}}}])
    (encoded,) = both.encode({"y": np.array([[1, 5]], np.float32)}, [both.decode_protobuf(body)], 1)
    assert [(o.datatype, list(o.shape)) for o in response(encoded).outputs] == [("BYTES", [1, 1])]


def test_a_worker_without_the_library_says_so() -> None:
    plain = oip.Codec("app", 7, (X,), (Y,), batched=True)
    with pytest.raises(UnderstudyError, match=r"understudy\[grpc\]") as caught:
        plain.decode_protobuf(message(raw=RAW))
    assert caught.value.code is Code.CONFIG
