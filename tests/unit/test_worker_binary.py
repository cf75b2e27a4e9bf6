"""Bodies with binary tensors: what is accepted, what is said about the rest, what is copied."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.wire.errors import InvalidArgument
from understudy.wire.frames import FrameDecoder
from understudy.wire.messages import Infer, encode_message
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import DATATYPES, Array, to_raw
from understudy.worker.classification import best_classes
from understudy.worker.oip import Answer, Codec, Request

X = TensorSpec("x", "FP32", (-1, 3))
N = TensorSpec("n", "INT64", (-1,))
T = TensorSpec("t", "BYTES", (-1,))
ROW = struct.pack("<3f", 1, 2.5, 3)
TRITON_DTYPES = {**DATATYPES, "BF16": np.dtype(ml_dtypes.bfloat16)}


def codec(*specs: TensorSpec, outputs: Sequence[TensorSpec] = (), batched: bool = True) -> Codec:
    return Codec("app", 7, specs or (X,), tuple(outputs) or specs or (X,), batched=batched)


def raw(name: str = "x", datatype: str = "FP32", shape: Sequence[int] = (1, 3), size: Any = 12) -> Any:
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(shape),
        "parameters": {"binary_data_size": size},
    }


def body(*inputs: Any, content: bytes = b"", **more: Any) -> tuple[bytes, int]:
    head = json.dumps({"inputs": list(inputs), **more}).encode()
    return head + content, len(head)


def answer_of(codec: Codec, outputs: dict[str, Array], request: Request) -> tuple[Any, bytes]:
    """The JSON and what follows it."""
    (answer,) = codec.encode(outputs, [request], request.rows)
    assert isinstance(answer, Answer)
    if answer.json_bytes < 0:
        return json.loads(answer.body), b""
    return json.loads(answer.body[: answer.json_bytes]), answer.body[answer.json_bytes :]


def samples(datatype: str) -> Array:
    """As a client that knows NumPy has them."""
    dtype = TRITON_DTYPES[datatype]
    if datatype == "BYTES":
        return np.array([b"", "näh".encode(), b"\xff\x00"], dtype=object)
    if datatype == "BOOL":
        return np.array([True, False, True])
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        return np.array([limits.min, limits.max, 1], dtype)
    return np.array([0.5, -1.25, 240], dtype)


def sent(array: Array) -> bytes:
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(element)) + element for element in array)
    return array.tobytes()


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_in_and_out(datatype: str) -> None:
    echo = codec(TensorSpec("x", datatype, (-1,)))
    array = samples(datatype)
    content = sent(array)
    request = echo.decode(
        *body(
            raw(datatype=datatype, shape=(3,), size=len(content)),
            content=content,
            id="q",
            parameters={"binary_data_output": True},
        )
    )
    read = request.inputs["x"]
    assert read.dtype == DATATYPES[datatype]
    if datatype == "BYTES":
        assert read.tolist() == ["", "näh", b"\xff\x00"]
    else:
        assert read.tolist() == array.astype(DATATYPES[datatype]).tolist()
    written, tail = answer_of(echo, {"x": read}, request)
    assert tail == content
    assert written["id"] == "q"
    assert written["outputs"] == [
        {
            "name": "x",
            "datatype": datatype,
            "shape": [3],
            "parameters": {"binary_data_size": len(content)},
        }
    ]


def test_values_that_bf16_lacks_are_rounded_on_the_way_out() -> None:
    values = np.array([1.0 + 2**-9, 3.14159, -0.1], np.float32)
    assert to_raw("BF16", values) == values.astype(ml_dtypes.bfloat16).tobytes()


def test_arrays_are_written_in_row_major_order() -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert bytes(to_raw("INT16", array.T)) == array.T.tobytes()
    assert bytes(to_raw("FP16", np.float16(2.5).reshape(()))) == struct.pack("<e", 2.5)
    assert bytes(to_raw("FP32", np.empty((0, 4), np.float32))) == b""


def test_only_what_is_not_aligned_or_read_only_is_copied() -> None:
    image = np.random.default_rng(1).random((1, 3, 224, 224), np.float32)
    spec = TensorSpec("x", "FP32", (-1, 3, 224, 224))
    head = json.dumps({"inputs": [raw(shape=image.shape, size=image.nbytes)]}).encode()
    for padding in range(4):
        padded = head + b" " * ((padding - len(head)) % 4)
        for content in (padded + image.tobytes(), memoryview(bytearray(padded + image.tobytes()))):
            read = codec(spec).decode(content, len(padded)).inputs["x"]
            assert np.array_equal(read, image)
            assert read.flags.aligned
            assert read.flags.writeable
            shared = np.shares_memory(read, np.frombuffer(content, np.uint8))
            assert shared == (padding == 0 and isinstance(content, memoryview))
    written = to_raw("FP32", image)
    assert len(written) == image.nbytes
    assert np.shares_memory(np.frombuffer(written, np.uint8), image)


@pytest.mark.parametrize("timeout_us", [1, 1000, 10**6])
def test_an_image_is_read_where_the_link_put_it(timeout_us: int) -> None:
    """If the client pads its JSON with spaces to a multiple of the elements' size."""
    image = np.random.default_rng(1).random((1, 3, 224, 224), np.float32)
    head = json.dumps({"inputs": [raw(shape=image.shape, size=image.nbytes)]}).encode()
    head += b" " * (-len(head) % 8)
    wire = encode_message(Infer(timeout_us, len(head)), 1, head + image.tobytes())
    decoder = FrameDecoder()
    assert decoder.feed(wire[:1000]) == []
    (frame,) = decoder.feed(wire[1000:])
    spec = TensorSpec("x", "FP32", (-1, 3, 224, 224))
    read = codec(spec).decode(frame.payload, len(head)).inputs["x"]
    assert np.array_equal(read, image)
    assert np.shares_memory(read, np.frombuffer(frame.payload, np.uint8))


def test_json_and_binary_inputs_in_one_body() -> None:
    both = codec(N, X, T)
    json_n = {"name": "n", "datatype": "INT64", "shape": [1], "data": [5]}
    text = sent(np.array([b"ab"], dtype=object))
    request = both.decode(
        *body(raw("t", "BYTES", (1,), len(text)), json_n, raw(), content=text + ROW, outputs=[{"name": "n"}])
    )
    assert request.inputs["t"].tolist() == ["ab"]
    assert request.inputs["n"].tolist() == [5]
    assert request.inputs["x"].tolist() == [[1, 2.5, 3]]
    assert request.rows == 1


FORMS = {
    "nothing said": ({}, [], [False, False]),
    "all": ({"parameters": {"binary_data_output": True}}, [], [True, True]),
    "none": ({"parameters": {"binary_data_output": False}}, [], [False, False]),
    "one": ({}, [{"name": "x", "parameters": {"binary_data": True}}, {"name": "n"}], [True, False]),
    "one over all": (
        {"parameters": {"binary_data_output": True}},
        [{"name": "n", "parameters": {"binary_data": False}}, {"name": "x"}],
        [False, True],
    ),
}


@pytest.mark.parametrize("case", FORMS)
def test_the_form_of_outputs(case: str) -> None:
    more, outputs, forms = FORMS[case]
    both = codec(X, N)
    number = {"name": "n", "datatype": "INT64", "shape": [1], "data": [5]}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2.5, 3]}
    content = json.dumps({"inputs": [tensor, number], "outputs": outputs, **more}).encode()
    request = both.decode(content)
    assert [output.binary for output in request.outputs] == forms
    written, tail = answer_of(both, request.inputs, request)
    assert [output["name"] for output in written["outputs"]] == [output.name for output in request.outputs]
    sizes = [output.get("parameters", {}).get("binary_data_size") for output in written["outputs"]]
    assert [size is not None for size in sizes] == forms
    assert len(tail) == sum(size or 0 for size in sizes)


def test_requests_of_one_batch_may_want_different_forms() -> None:
    both = codec(X, outputs=(X, T))
    wanted = [{"parameters": {"binary_data_output": True}}, {}, {"outputs": [{"name": "x"}]}]
    requests = [both.decode(*body(raw(), content=ROW, **more)) for more in wanted]
    outputs = {
        "x": np.arange(9, dtype=np.float32).reshape(3, 3),
        "t": np.array([b"\xff", b"\xff", b"\xff"], dtype=object),
    }
    first, second, third = both.encode(outputs, requests, 3)
    assert isinstance(first, Answer)
    assert first.body[first.json_bytes :] == struct.pack("<3f", 0, 1, 2) + b"\x01\0\0\0\xff"
    assert isinstance(second, InvalidArgument)  # its output has no JSON form; the others don't suffer
    assert "output 't': has an element that is not UTF-8 text" in second.message
    assert isinstance(third, Answer)
    assert json.loads(third.body)["outputs"][0]["data"] == [6, 7, 8]


# All of the body is the only input


def test_a_body_without_json() -> None:
    request = codec().decode(ROW * 2, 0)
    assert request.inputs["x"].tolist() == [[1, 2.5, 3]] * 2
    assert request.rows == 2
    written, tail = answer_of(codec(), request.inputs, request)
    assert tail == ROW * 2
    assert "id" not in written
    assert codec(T).decode(b"whole", 0).inputs["t"].tolist() == ["whole"]
    dynamic = codec(TensorSpec("x", "UINT8", (-1, 2, -1)))
    assert dynamic.decode(bytes(6), 0).inputs["x"].shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("specs", "content", "message"),
    [
        ((X, N), ROW, "a body without JSON is for a model with one input; the model has 'x', 'n'"),
        ((X,), ROW[:-1], "input 'x': shape [0,3] doesn't fit [-1,3]"),
        ((X,), ROW + b"1", "input 'x': binary data: FP32 of this shape takes 12 bytes, not 13"),
        ((X,), b"", "input 'x': shape [0,3] doesn't fit [-1,3]"),
        ((TensorSpec("t", "BYTES", (2,)),), b"a", "input 't': shape [2] is not that of one element"),
    ],
)
def test_a_body_that_is_not_the_only_input(specs: Any, content: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        codec(*specs, batched=False).decode(content, 0)
    assert caught.value.message == message


# Wrong bodies

NUMBER = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
WRONG = {
    "short": (body(raw(), content=ROW[:-1]), "binary_data_size is 12, 11 bytes are left behind the JSON"),
    "long": (body(raw(), content=ROW + b"1"), "1 bytes are left after the last input's binary data"),
    "size": (body(raw(size=8), content=ROW[:8]), "FP32 of this shape takes 12 bytes, not 8"),
    "text": (body(raw(size="12"), content=ROW), "binary_data_size is a number of bytes, not '12'"),
    "true": (body(raw(size=True), content=ROW), "binary_data_size is a number of bytes, not True"),
    "minus": (body(raw(size=-1), content=ROW), "binary_data_size is a number of bytes, not -1"),
    "both": (body({**NUMBER, **raw()}, content=ROW), "has both data and binary_data_size"),
    "neither": (
        body({"name": "x", "datatype": "FP32", "shape": [1, 3]}, content=ROW),
        "has neither data nor the parameter binary_data_size",
    ),
    "datatype": (body(raw(datatype="FP64"), content=ROW), "datatype 'FP64' is not the model's 'FP32'"),
    "shape": (body(raw(shape=(1, 4)), content=ROW), "shape [1,4] doesn't fit [-1,3]"),
    "huge": (body(raw(shape=(2**31 - 1, 3)), content=ROW), "takes 25769803764 bytes, not 12"),
    "announced": ((b"{}", 3), "has 2 bytes, 3 of JSON were announced"),
    "shared": (
        body({**NUMBER, "parameters": {"shared_memory_region": "r"}}),
        "shared memory is not offered",
    ),
    "flag": (body(NUMBER, parameters={"binary_data_output": 1}), "binary_data_output is true or false"),
    "output flag": (
        body(NUMBER, outputs=[{"name": "x", "parameters": {"binary_data": "yes"}}]),
        "binary_data is true or false, not 'yes'",
    ),
    "output twice": (body(NUMBER, outputs=[{"name": "x"}] * 2), "output 'x': asked for twice"),
    "classes": (
        body(NUMBER, outputs=[{"name": "x", "parameters": {"classification": "3"}}]),
        "classification is a number of classes, not '3'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case: str) -> None:
    content, message = WRONG[case]
    with pytest.raises(InvalidArgument) as caught:
        codec().decode(*content)
    assert message in caught.value.message


def test_binary_data_in_a_body_that_is_all_json() -> None:
    with pytest.raises(InvalidArgument, match="0 bytes are left behind the JSON"):
        codec().decode(body(raw())[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x01\0\0\0a\x05\0\0\0b", "BYTES element 1 is longer than what is left"),
        (b"\x01\0\0\0a\0\0\0", "the bytes end before BYTES element 1 of 2"),
        (b"\0\0\0\0\0\0\0\0\0", "1 bytes are left after the last of 2 BYTES elements"),
        (b"\0\0\0\0", "2 BYTES elements take more than 4 bytes"),
    ],
)
def test_lengths_of_bytes_elements_must_add_up(content: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        codec(T).decode(*body(raw("t", "BYTES", (2,), len(content)), content=content))


def test_a_shape_alone_reserves_no_memory() -> None:
    tensor = raw("t", "BYTES", (2**31 - 1,), 8)
    with pytest.raises(InvalidArgument, match="take more than 8 bytes"):
        codec(T).decode(*body(tensor, content=bytes(8)))


def test_a_bool_is_0_or_1() -> None:
    flags = codec(TensorSpec("b", "BOOL", (-1,)))
    with pytest.raises(InvalidArgument, match="a BOOL is a byte of 0 or 1"):
        flags.decode(*body(raw("b", "BOOL", (2,), 2), content=b"\x01\x02"))


@given(st.binary(max_size=60), st.integers(0, 60), st.sampled_from(list(DATATYPES)))
def test_any_bytes_are_decoded_or_refused(content: bytes, size: int, datatype: str) -> None:
    any_type = codec(TensorSpec("x", datatype, (-1, 2)))
    try:
        request = any_type.decode(*body(raw(datatype=datatype, shape=(2, 2), size=size), content=content))
    except InvalidArgument:
        return
    assert request.inputs["x"].shape == (2, 2)
    if datatype != "BF16" or not np.isnan(request.inputs["x"]).any():
        assert bytes(to_raw(datatype, request.inputs["x"])) == content


@given(st.binary(max_size=80), st.integers(-1, 90))
def test_any_body_is_decoded_or_refused(content: bytes, json_bytes: int) -> None:
    try:
        codec(X).decode(content, json_bytes)
    except InvalidArgument:
        return
    assert json_bytes == 0


# The best classes


def test_the_best_classes_of_each_row() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [5, 5, -1]], np.float32)
    best = best_classes(scores, 2, batched=True)
    assert best.tolist() == [["0.700000:1", "0.200000:2"], ["5.000000:0", "5.000000:1"]]
    assert best_classes(scores, 9, batched=False).shape == (6,)
    assert best_classes(np.array([[1, 255, 0]], np.uint8), 1, batched=True).tolist() == [["255:1"]]


def test_classes_are_bytes_in_either_form() -> None:
    wanted = [
        {"name": "x", "parameters": {"classification": 1, "binary_data": flag}} for flag in (False, True)
    ]
    for output in wanted:
        request = codec().decode(*body(NUMBER, outputs=[output]))
        written, tail = answer_of(codec(), request.inputs, request)
        (tensor,) = written["outputs"]
        assert (tensor["datatype"], tensor["shape"]) == ("BYTES", [1, 1])
        assert tail == (sent(np.array([b"3.000000:2"], dtype=object)) if tail else b"")
        assert tensor.get("data", ["3.000000:2"]) == ["3.000000:2"]
