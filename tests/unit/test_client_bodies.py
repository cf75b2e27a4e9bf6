"""What callers give as tensors, and the bodies that they become and come from."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.client.arrays import named_inputs, to_tensor
from understudy.client.bodies import Body, Tensors, binary_body, decode, json_body, json_bytes_of
from understudy.client.errors import ClientError, InvalidInput, NotFound
from understudy.wire.errors import Code
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import DATATYPES, Array


def converted(value: Any, datatype: str, shape: tuple[int, ...] = (-1,)) -> Array:
    return to_tensor("x", value, TensorSpec("x", datatype, shape), None)[1]


@pytest.mark.parametrize(
    ("value", "datatype", "expected"),
    [
        ([1, 2], "FP32", [1.0, 2.0]),
        ([1.0, 2.0], "INT64", [1, 2]),
        (np.array([0.1]), "FP32", [np.float32(0.1)]),
        (np.array([1, 0], np.int8), "BOOL", [True, False]),
        ([True], "INT32", [1]),
        (np.array([1.0], ">f8"), "FP64", [1.0]),
        (np.array([1, 2.5], object), "FP64", [1.0, 2.5]),
        (np.array([np.nan]), "FP16", [np.nan]),
        ([np.inf], "FP32", [np.inf]),
        ([1.0039], "BF16", [1.0]),
        ([-(2**63)], "INT64", [-(2**63)]),
        ([2**64 - 1], "UINT64", [2**64 - 1]),
        (["a", "ü"], "BYTES", ["a", "ü"]),
        (np.array([b"\xff"], object), "BYTES", [b"\xff"]),
        (np.array(["a"], np.dtypes.StringDType()), "BYTES", ["a"]),
        ([2**64 - 1, 0], "UINT64", [2**64 - 1, 0]),
    ],
)
def test_values_that_stay_what_they_are(value: Any, datatype: str, expected: list[Any]):
    array = converted(value, datatype)
    assert array.dtype == DATATYPES[datatype]
    np.testing.assert_array_equal(array, np.array(expected, array.dtype))


@pytest.mark.parametrize(
    ("value", "datatype"),
    [
        ([1.5], "INT64"),
        ([np.nan], "INT64"),
        ([2**24 + 1], "FP32"),
        ([2**63 - 1], "FP64"),
        ([257], "BF16"),
        ([-1], "UINT64"),
        ([2**63], "INT64"),
        ([2.0**63], "INT64"),
        ([300], "UINT8"),
        ([2], "BOOL"),
        ([1e39], "FP32"),
        ([70000.0], "FP16"),
        ([70000], "FP16"),
        ([3.4e38], "BF16"),
        (["1"], "FP32"),
        ([None], "FP32"),
        ([1], "BYTES"),
        ([1j], "FP64"),
        (np.array(["2026-11-22"], "datetime64[s]"), "INT64"),
        (np.ma.masked_equal([1, 2], 2), "INT64"),
        ([[1], [2, 3]], "INT64"),
        ([2**64], "UINT64"),
    ],
)
def test_values_that_would_change_are_refused(value: Any, datatype: str):
    with pytest.raises(InvalidInput, match="input 'x'"):
        converted(value, datatype)


def test_a_column_of_values_is_a_column():
    assert converted([1, 2, 3], "INT64", (-1, 1)).shape == (3, 1)


def test_without_metadata_an_array_says_what_it_is():
    assert to_tensor("x", np.zeros(2), None, None)[0] == "FP64"
    assert to_tensor("x", ["a"], None, None)[0] == "BYTES"
    assert to_tensor("x", [1.0], None, "BF16")[0] == "BF16"
    with pytest.raises(InvalidInput, match="complex128"):
        to_tensor("x", [1j], None, None)
    with pytest.raises(InvalidInput, match="unknown datatype 'FP8'"):
        to_tensor("x", [1.0], None, "FP8")


class Frame:
    """As much of a data frame as is looked at."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = list(columns)
        self._columns = columns

    def __getitem__(self, name: str) -> list[Any]:
        return self._columns[name]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(list(self._columns.values())).T


def test_a_data_frame_is_columns_or_one_matrix():
    frame = Frame({"age": [30, 40], "name": ["a", "b"], "unused": [0, 0]})
    specs = {"age": TensorSpec("age", "INT64", (-1, 1)), "name": TensorSpec("name", "BYTES", (-1, 1))}
    named = named_inputs(frame, specs)
    assert named == {"age": [30, 40], "name": ["a", "b"]}
    matrix = Frame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    one = {"x": TensorSpec("x", "FP32", (-1, 2))}
    array = to_tensor("x", named_inputs(matrix, one)["x"], one["x"], None)[1]
    assert array.tolist() == [[1.0, 3.0], [2.0, 4.0]]


@pytest.mark.parametrize("given", [{"y": 1}, {}, {"x": 1, "y": 2}])
def test_names_of_inputs_are_checked(given: dict[str, Any]):
    with pytest.raises(InvalidInput, match="the model has 'x'"):
        named_inputs(given, {"x": TensorSpec("x", "FP32", (1,))})


VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "BYTES": ["", "grün"],
    "BF16": [1.0, -2.5],
    **{name: [0.5, -1.0] for name in ("FP16", "FP32", "FP64")},
    **{
        name: [0, 2 ** int(name.removeprefix("UINT")) - 1] for name in ("UINT8", "UINT16", "UINT32", "UINT64")
    },
    **{
        name: [-1, 2 ** (int(name.removeprefix("INT")) - 1) - 1]
        for name in ("INT8", "INT16", "INT32", "INT64")
    },
}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_what_is_written_can_be_read(datatype: str):
    array = converted(VALUES[datatype], datatype)
    tensors = Tensors({"x": (datatype, array)}, None, "id-1")
    for body in (json_body(tensors), binary_body(tensors)):
        wire = b"".join(body.parts)
        assert len(wire) == body.size_bytes
        outputs, id_ = decode(wire.replace(b'"inputs"', b'"outputs"'), _shifted(body.json_bytes))
        np.testing.assert_array_equal(outputs["x"], array)
        assert outputs["x"].dtype == array.dtype
        assert id_ == "id-1"


def _shifted(json_bytes: int | None) -> int | None:
    return None if json_bytes is None else json_bytes + len("outputs") - len("inputs")


def test_bytes_that_are_no_text_survive_in_binary_and_are_refused_in_json():
    array = converted(np.array([b"\xff\x00", "a"], object), "BYTES")
    tensors = Tensors({"x": ("BYTES", array)}, None, None)
    with pytest.raises(InvalidInput, match="not UTF-8"):
        json_body(tensors)
    body = binary_body(tensors)
    wire = b"".join(body.parts).replace(b'"inputs"', b'"outputs"')
    outputs, _ = decode(wire, _shifted(body.json_bytes))
    assert outputs["x"].tolist() == [b"\xff\x00", "a"]
    again = binary_body(Tensors({"x": ("BYTES", outputs["x"])}, None, None))
    assert again.parts[1] == body.parts[1]


@pytest.mark.parametrize("write", [json_body, binary_body])
def test_half_a_surrogate_is_no_text(write: Callable[[Tensors], Body]):
    with pytest.raises(InvalidInput, match="input 'x'"):
        write(Tensors({"x": ("BYTES", converted(["\ud800"], "BYTES"))}, None, None))


def answer(**tensor: Any) -> bytes:
    return json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], **tensor}]}).encode()


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        (answer(), b""),
        (answer(data=[1.0]), b""),
        (answer(data=["a", "b"]), b""),
        (answer(shape=[-2], data=[1.0, 2.0]), b""),
        (answer(datatype="FP8", data=[1.0, 2.0]), b""),
        (answer(parameters={"binary_data_size": 8}), b"\0" * 7),
        (answer(parameters={"binary_data_size": 7}), b"\0" * 7),
        (answer(parameters={"binary_data_size": -1}), b"\0" * 8),
        (answer(parameters={"binary_data_size": "8"}), b"\0" * 8),
        (answer(shape=[2**62], datatype="BYTES", parameters={"binary_data_size": 0}), b""),
        (answer(datatype="BYTES", parameters={"binary_data_size": 3}), b"\0" * 3),
        (answer(datatype="BYTES", parameters={"binary_data_size": 4}), struct.pack("<I", 9)),
        (answer(datatype="BYTES", parameters={"binary_data_size": 12}), b"\0" * 12),
    ],
)
def test_answers_that_lie_are_refused(head: bytes, tail: bytes):
    with pytest.raises(ValueError):  # noqa: PT011 - which one, the messages of several libraries say
        decode(head + tail, len(head))


@given(st.binary(max_size=200), st.none() | st.integers(-5, 250))
def test_no_answer_is_a_surprise(body: bytes, json_bytes: int | None):
    with pytest.raises(ValueError):  # noqa: PT011
        decode(body, json_bytes)


def test_errors_can_be_pickled():
    error = NotFound(Code.NOT_FOUND, "no model", request_id="r", gateway="http://a:1", status=404)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is NotFound
    assert str(copy) == str(error)
    assert (copy.code, copy.status, copy.retryable) == (Code.NOT_FOUND, 404, False)
    assert isinstance(copy, ClientError)


def test_importing_the_package_imports_no_client():
    code = (
        "import sys, understudy; assert not {'numpy', 'httptools', 'asyncio'} & sys.modules.keys(); "
        "assert understudy.Client.__name__ == 'Client'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("length", ["-1", "1_0", "+1", "", "ten", "\u00b2"])
def test_a_length_is_digits(length: str) -> None:
    assert json_bytes_of({"inference-header-content-length": "10"}) == 10
    with pytest.raises(ValueError, match="is not a length"):
        json_bytes_of({"inference-header-content-length": length})
