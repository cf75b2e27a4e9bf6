"""Static answers: what is refused, and in which forms the rest is given."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from understudy.core.gateway.statics import Statics, usable
from understudy.gateway.static_answers import READ_BYTES_MAX, as_http
from understudy.wire.errors import InvalidArgument
from understudy.wire.records import AppVersion, ArtifactRef, RouteTable, TensorSpec, Variant
from understudy.wire.statics import check_static, read_static
from understudy.wire.tensors import from_raw
from understudy.worker.classification import best_classes

Y = TensorSpec("y", "FP32", (-1, 2))
LABEL = TensorSpec("label", "BYTES", (-1,))


def tensor(name: str = "y", datatype: str = "FP32", shape: Any = (1, 2), data: Any = (0.5, 1.5)) -> Any:
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": list(data)}


def static(*outputs: Any, **more: Any) -> dict[str, Any]:
    return {"outputs": list(outputs), **more}


def app(declared: Any, outputs: tuple[TensorSpec, ...] = (Y,)) -> AppVersion:
    variant = Variant("v", "onnx", ArtifactRef("0" * 64, 1, "m.onnx"), 0.9)
    return AppVersion(
        "a", 3, (variant,), inputs=(TensorSpec("x", "FP32", (-1, 2)),), outputs=outputs, static=declared
    )


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        (
            static(tensor("z", "INT64", [3], ["not", "numbers"])),
            "static.outputs[0]: the app has no output 'z' (it has y FP32[-1,2])",
        ),
        (
            static(tensor(datatype="INT64", shape=[1], data=["not"])),
            "static.outputs[0].data[0]: 'not' is no INT64",
        ),
        (static(tensor(shape=[3, 2])), "static.outputs[0].data: shape [3,2] needs 6 values, not 2"),
        (static(tensor(datatype="FP64")), "static.outputs[0].datatype: the app's output is y FP32[-1,2]"),
        (
            static(tensor(shape=[2], data=[1.0, 2.0])),
            "static.outputs[0].shape: [2] doesn't fit the app's y FP32[-1,2]",
        ),
        (static(tensor(shape=[1, 3], data=[1, 2, 3])), "static.outputs[0].shape: [1,3] doesn't fit"),
        (static(tensor(), tensor()), "static.outputs[1].name: 'y' is used twice"),
        (static(), "static.outputs: a list with at least one tensor is needed"),
        (static(tensor(), outputz=1), "static.outputz: unknown field; did you mean 'outputs'?"),
        (static({**tensor(), "dtype": "FP32"}), "static.outputs[0].dtype: unknown field"),
        (static({"name": "y"}), "static.outputs[0]: a tensor needs data, datatype, shape"),
        (static(tensor(datatype="FP99")), "static.outputs[0].datatype: 'FP99' is none; known: BOOL, UINT8"),
        (static(tensor(shape=[-1, 2])), "static.outputs[0].shape: has to be a list of lengths"),
        (static(tensor(data=[True, False])), "static.outputs[0].data[0]: True is no FP32"),
        (static(tensor(data=[float("nan"), 0])), "static.outputs[0].data[0]: nan is no FP32"),
        (static(tensor(data=[1e39, 0])), "static.outputs[0].data: has a value outside the range of FP32"),
        (static(tensor(datatype="UINT8", data=[256, 0])), "has a value outside the range of UINT8"),
        (
            static(tensor(shape=[2, 2], data=[[1, 2], [3]])),
            "static.outputs[0].data[1]: has 1 elements, the shape says 2",
        ),
        (
            static(tensor(data=[[[0.5, 1.5]]])),
            "static.outputs[0].data[0]: is nested deeper than the shape says",
        ),
        ({}, "static: needs outputs"),
        (5, "static: has to be a table"),
    ],
)
def test_a_static_answer_is_refused_by_the_name_of_what_is_wrong(declared: Any, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_static(declared, (Y,))
    assert says in caught.value.message


def test_all_outputs_are_needed_since_clients_must_not_notice_who_answers() -> None:
    with pytest.raises(InvalidArgument, match=r"static.outputs: label BYTES\[-1\] is missing"):
        check_static(static(tensor()), (Y, LABEL))


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT8", [-128, 127]),
        ("FP16", [0.5, -2.0]),
        ("FP32", [1, -0.0]),
        ("FP64", [1e300, 2.0]),
        ("BF16", [1.0, -3.5]),
        ("BYTES", ["", "häß"]),
    ],
)
def test_the_bytes_are_those_that_a_replica_would_send(datatype: str, data: list[Any]) -> None:
    for shape, given in (([2], data), ([2, 1], [[each] for each in data])):
        (read,) = read_static(static(tensor("y", datatype, shape, given)), strict=True)
        assert read.values == data
        assert from_raw(datatype, shape, bytearray(read.raw), 0, len(read.raw)).ravel().tolist() == data


DECLARED = static(tensor(shape=[2, 2], data=[0.25, 4, 1, 2]), tensor("label", "BYTES", [2], ["a", "b"]))
SPEC = app(DECLARED, (Y, LABEL))


def answered(request: Any) -> tuple[Any, bytes]:
    body, json_bytes = as_http(SPEC, read_static(DECLARED), json.dumps(request).encode(), -1)
    end = len(body) if json_bytes < 0 else json_bytes
    return json.loads(body[:end]), body[end:]


def test_the_answer_is_as_declared_however_many_rows_are_asked_about() -> None:
    answer, rest = answered(
        {"id": "7", "inputs": [{"name": "x", "shape": [5, 2], "datatype": "FP32", "data": [0] * 10}]}
    )
    assert (answer["model_name"], answer["model_version"], answer["id"], rest) == ("a", "3", "7", b"")
    assert [(o["name"], o["shape"], o["data"]) for o in answer["outputs"]] == [
        ("y", [2, 2], [0.25, 4, 1, 2]),
        ("label", [2], ["a", "b"]),
    ]


def test_only_what_is_asked_for_is_given() -> None:
    answer, _ = answered({"inputs": [], "outputs": [{"name": "label"}]})
    assert [output["name"] for output in answer["outputs"]] == ["label"]
    for outputs, says in (
        ([{"name": "q"}], "output 'q': unknown; the model has 'y', 'label'"),
        ([{"name": "y"}, {"name": "y"}], "asked for twice"),
        ([{"name": "label", "parameters": {"classification": 1}}], "no best classes"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            answered({"inputs": [], "outputs": outputs})
    with pytest.raises(InvalidArgument, match="request body"):
        as_http(SPEC, read_static(DECLARED), b"{", -1)


def test_binary_forms_are_given_where_they_are_asked_for() -> None:
    answer, rest = answered({"inputs": [], "parameters": {"binary_data_output": True}})
    sizes = [output["parameters"]["binary_data_size"] for output in answer["outputs"]]
    assert (sizes, len(rest)) == ([16, 10], 26)
    outputs = [{"name": "label"}, {"name": "y", "parameters": {"binary_data": True}}]
    answer, rest = answered({"inputs": [], "outputs": outputs})
    assert answer["outputs"][0]["data"] == ["a", "b"]
    assert np.frombuffer(rest, np.float32).tolist() == [0.25, 4, 1, 2]
    body, json_bytes = as_http(SPEC, read_static(DECLARED), b"raw bytes of the only input", 0)
    assert len(body) - json_bytes == 26


def test_what_takes_long_to_read_isnt_read() -> None:
    """Other clients would wait for it; it is answered all the same."""
    asked = b'{"inputs":[' + b"1," * (READ_BYTES_MAX // 2) + b'1],"outputs":[{"name":"label"}]}'
    body, json_bytes = as_http(SPEC, read_static(DECLARED), asked, -1)
    assert json_bytes == -1
    assert [output["name"] for output in json.loads(body)["outputs"]] == ["y", "label"]
    binary = b'{"inputs":[],"outputs":[{"name":"label"}]}'
    body, _ = as_http(SPEC, read_static(DECLARED), binary + bytes(READ_BYTES_MAX), len(binary))
    assert [output["name"] for output in json.loads(body)["outputs"]] == ["label"]


def test_best_classes_are_those_of_a_replica() -> None:
    asked = {"name": "y", "parameters": {"classification": 1}}
    answer, _ = answered({"inputs": [], "outputs": [asked]})
    values = np.array([[0.25, 4], [1, 2]], np.float32)
    expected = best_classes(values, 1, batched=True)
    assert answer["outputs"][0]["data"] == expected.ravel().tolist()
    assert (answer["outputs"][0]["datatype"], answer["outputs"][0]["shape"]) == ("BYTES", [2, 1])


def test_one_that_was_stored_before_anybody_checked_is_as_good_as_none() -> None:
    bad, good = app(static(tensor("z", "INT64", [3], ["not", "numbers"]))), app(static(tensor()))
    assert Statics().get(bad) is None
    assert Statics().get(good) is not None
    table = RouteTable(1, apps=(bad,))
    apps, mistakes = usable(table, RouteTable(0))
    assert (apps[0].static, list(mistakes)) == (None, ["a"])
    assert usable(table, table)[1] == {}, "it is told once"
    assert usable(RouteTable(1, apps=(good,)), RouteTable(0)) == ((good,), {})
