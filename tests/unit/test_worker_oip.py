"""JSON bodies of the Open Inference Protocol: what is accepted, what is said about the rest."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.wire.errors import InvalidArgument
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import DATATYPES, Array
from understudy.worker.oip import Answer, Codec, Request
from understudy.worker.rehearsal.probes import probes

X = TensorSpec("x", "FP32", (-1, 3))
N = TensorSpec("n", "INT64", (-1,))
Y = TensorSpec("y", "FP32", (-1, 2))
LABEL = TensorSpec("label", "BYTES", (-1,))
Specs = Sequence[TensorSpec]


def codec(inputs: Specs = (X,), outputs: Specs = (Y,), batched: bool = True) -> Codec:
    return Codec("app", 7, tuple(inputs), tuple(outputs), batched=batched)


def tensor(
    name: str = "x",
    datatype: str = "FP32",
    shape: Sequence[Any] = (1, 3),
    data: Any = (1, 2.5, 3),
    **more: Any,
) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data, **more}


def body(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs or [tensor()]), **more}).encode()


def bodies(
    codec: Codec, outputs: dict[str, Array], requests: Sequence[Request], rows: int
) -> Iterator[bytes]:
    """Answers that are all JSON."""
    for answer in codec.encode(outputs, requests, rows):
        assert isinstance(answer, Answer)
        assert answer.json_bytes == -1
        yield answer.body


def test_flat_and_nested_data_are_the_same() -> None:
    flat = codec().decode(body(tensor(shape=(2, 3), data=[1, 2, 3, 4, 5, 6])))
    nested = codec().decode(body(tensor(shape=(2, 3), data=[[1, 2, 3], [4, 5, 6]])))
    for request in (flat, nested):
        assert request.rows == 2
        assert request.inputs["x"].dtype == np.float32
        assert request.inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_id_parameters_and_unknown_fields() -> None:
    more = {"id": "q1", "parameters": {"a": 1, "b": "t", "c": True, "d": 0.5}, "later": [1]}
    request = codec().decode(body(tensor(parameters={"k": 1}), **more))
    assert request.id == "q1"
    assert [(output.name, output.binary) for output in request.outputs] == [("y", False)]


SAMPLES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    **{f"UINT{bits}": [0, 2**bits - 1] for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] for bits in (8, 16, 32, 64)},
    "FP16": [0.5, -65504.0],
    "FP32": [0.5, 3.0e38],
    "FP64": [0.1, -1.7e308],
    "BYTES": ["", "näh"],
    "BF16": [0.5, -3.0e38],
}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_in_and_out(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (-1,))
    both = codec([spec], [spec])
    request = both.decode(body(tensor(datatype=datatype, shape=(2,), data=SAMPLES[datatype])))
    array = request.inputs["x"]
    assert array.dtype == DATATYPES[datatype]
    (answer,) = bodies(both, {"x": array}, [request], 2)
    (written,) = json.loads(answer)["outputs"]
    assert written == {"name": "x", "datatype": datatype, "shape": [2], "data": array.tolist()}
    if datatype not in ("FP32", "BF16"):  # decimal fractions are rounded there
        assert written["data"] == SAMPLES[datatype]


OUT_OF_RANGE = {
    **{f"UINT{bits}": [-1, 2**bits] for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": [-(2 ** (bits - 1)) - 1, 2 ** (bits - 1)] for bits in (8, 16, 32, 64)},
    "FP16": [65520.0],
    "FP32": [3.5e38],
    "BF16": [3.4e38],
}


@pytest.mark.parametrize("datatype", OUT_OF_RANGE)
def test_values_out_of_range_are_refused(datatype: str) -> None:
    rejecting = codec([TensorSpec("x", datatype, (-1,))])
    for value in OUT_OF_RANGE[datatype]:
        with pytest.raises(InvalidArgument, match=r"^input 'x': data"):
            rejecting.decode(body(tensor(datatype=datatype, shape=(1,), data=[value])))


WRONG = {
    "not json": (b"{", "request body: "),
    "empty": (b"", "request body: "),
    "not utf-8": (b'{"inputs": [], "id": "\xff"}', "request body: "),
    "array": (b"[]", "request body: Expected `object`, got `array`"),
    "no inputs": (b"{}", "request body: Object missing required field `inputs`"),
    "too deep": (b'{"inputs":' + b"[" * 100_000, "request body: "),
    "no data": (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3]}]}',
        "input 'x': has neither data nor the parameter binary_data_size",
    ),
    "id": (body(id=5), "request body: Expected `str | null`, got `int` - at `$.id`"),
    "parameter": (body(parameters={"a": [1]}), "at `$.parameters[...]`"),
    "shape of text": (body(tensor(shape=["a"])), "at `$.inputs[0].shape[0]`"),
    "missing": (body(tensor(), tensor("n", "INT64", (1,), [1])), "input 'n': unknown; the model has 'x'"),
    "none": (b'{"inputs":[]}', "missing input: 'x'"),
    "twice": (body(tensor(), tensor()), "input 'x': given twice"),
    "datatype": (body(tensor(datatype="FP64")), "input 'x': datatype 'FP64' is not the model's 'FP32'"),
    "shape": (body(tensor(shape=(1, 4))), "input 'x': shape [1,4] doesn't fit [-1,3]"),
    "rank": (body(tensor(shape=(3,))), "input 'x': shape [3] doesn't fit [-1,3]"),
    "negative": (body(tensor(shape=(-1, 3))), "input 'x': shape [-1,3] doesn't fit [-1,3]"),
    "huge": (body(tensor(shape=(2**31 - 1, 3))), "needs 6442450941 elements, data has 3"),
    "enormous": (body(tensor(shape=(10**400, 3))), "request body: "),
    "too few": (body(tensor(data=[1, 2])), "input 'x': shape [1,3] needs 3 elements, data has 2"),
    "text": (body(tensor(data=[1, "2", 3])), "input 'x': data[1]: expected `float`, got `str`"),
    "null": (body(tensor(data=[1, None, 3])), "input 'x': data[1]: expected `float`, got `null`"),
    "nan": (body(tensor(data=[1, float("nan"), 3])), "request body: JSON has no NaN and no Infinity"),
    "1e999": (body().replace(b"2.5", b"1e999"), "input 'x': data[1]: number out of range"),
    "scalar": (body(tensor(data=1)), "input 'x': data: expected `array`, got `int`"),
    "object": (body(tensor(data={})), "input 'x': data: expected `array`, got `object`"),
    "ragged": (
        body(tensor(shape=(2, 3), data=[[1, 2, 3], [4]])),
        "input 'x': nested data has rows of different lengths",
    ),
    "depth": (body(tensor(data=[[[1, 2, 3]]])), "input 'x': data is nested 3 deep; 1 (flat) or 2 is valid"),
    "uneven": (body(tensor(data=[[1, 2, 3], 4])), "input 'x': data[1]: expected `array`, got `int`"),
    "other shape": (
        body(tensor(shape=(1, 3), data=[[1, 2, 3], [4, 5, 6]])),
        "input 'x': nested data has shape [2,3], not [1,3]",
    ),
    "output": (body(outputs=[{"name": "z"}]), "output 'z': unknown; the model has 'y'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case: str) -> None:
    content, message = WRONG[case]
    with pytest.raises(InvalidArgument) as caught:
        codec().decode(content)
    assert message in caught.value.message
    assert len(caught.value.message) < 300


def test_long_names_are_cut_in_messages() -> None:
    with pytest.raises(InvalidArgument) as caught:
        codec().decode(body(tensor("x" * 10_000)))
    assert len(caught.value.message) < 200


def test_inputs_must_agree_on_rows() -> None:
    two = codec([X, N])
    assert two.decode(body(tensor(), tensor("n", "INT64", (1,), [5]))).rows == 1
    with pytest.raises(InvalidArgument, match="input 'n': has 2 rows, input 'x' has 1"):
        two.decode(body(tensor(), tensor("n", "INT64", (2,), [5, 6])))


def test_missing_inputs_are_named() -> None:
    with pytest.raises(InvalidArgument, match="missing input: 'n'"):
        codec([X, N]).decode(body())


def test_optional_inputs_may_be_left_out_and_then_share_no_batch_with_others() -> None:
    bias = TensorSpec("b", "FP32", (-1,), optional=True)
    one = codec((X, bias))
    given, without = tensor("b", "FP32", [1], [1.0]), tensor(shape=[1, 3], data=[1, 2, 3])
    both, alone = one.decode(body(without, given)), one.decode(body(without))
    assert (sorted(both.inputs), sorted(alone.inputs)) == (["b", "x"], ["x"])
    assert both.key != alone.key
    assert alone.key == one.decode(body(without)).key
    with pytest.raises(InvalidArgument, match="missing input: 'x'"):
        one.decode(body(given))
    assert sorted(one.decode(next(probes(None, (X, bias))).body).inputs) == ["x"]


def test_a_request_may_leave_out_everything_if_all_is_optional() -> None:
    one = codec((TensorSpec("b", "FP32", (-1,), optional=True),))
    nothing, something = one.decode(b'{"inputs":[]}'), one.decode(body(tensor("b", "FP32", [1], [1.0])))
    assert (nothing.inputs, nothing.rows) == ({}, 1)
    assert nothing.key != something.key


def test_only_requests_of_equal_trailing_shape_share_a_key() -> None:
    text = codec([TensorSpec("t", "INT64", (-1, -1)), N])
    keys = [
        text.decode(body(tensor("t", "INT64", (1, n), [0] * n), tensor("n", "INT64", (1,), [0]))).key
        for n in (2, 3, 2)
    ]
    assert keys[0] == keys[2] != keys[1]


def test_a_model_without_batch_dimension_has_one_row() -> None:
    fixed = codec([TensorSpec("x", "FP32", (3,))], [TensorSpec("y", "FP32", ())], batched=False)
    request = fixed.decode(body(tensor(shape=(3,))))
    assert request.rows == 1
    (answer,) = bodies(fixed, {"y": np.array(4.0, np.float32)}, [request], 1)
    assert json.loads(answer)["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [], "data": [4.0]}]


def test_answers_carry_name_version_and_id() -> None:
    request = codec().decode(body(id="q1"))
    (answer,) = bodies(codec(), {"y": np.ones((1, 2), np.float32)}, [request], 1)
    assert json.loads(answer) == {
        "model_name": "app",
        "model_version": "7",
        "id": "q1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 1.0]}],
    }
    (answer,) = bodies(codec(), {"y": np.ones((1, 2), np.float32)}, [codec().decode(body())], 1)
    assert b'"id"' not in answer


def test_a_batch_is_split_by_rows_and_requested_outputs() -> None:
    both = codec(outputs=(Y, LABEL))
    requests = [
        both.decode(body(id="a")),
        both.decode(body(tensor(shape=(2, 3), data=[0] * 6), id="b", outputs=[{"name": "label"}])),
        both.decode(body(id="c", outputs=[{"name": "y"}])),
    ]
    outputs = {
        "y": np.arange(8, dtype=np.float32).reshape(4, 2),
        "label": np.array(["p", b"q", "r", "s"], dtype=object),
    }
    answers = [json.loads(answer) for answer in bodies(both, outputs, requests, 4)]
    assert [answer["id"] for answer in answers] == ["a", "b", "c"]
    assert [[(o["name"], o["shape"], o["data"]) for o in answer["outputs"]] for answer in answers] == [
        [("y", [1, 2], [0.0, 1.0]), ("label", [1], ["p"])],
        [("label", [2], ["q", "r"])],
        [("y", [1, 2], [6.0, 7.0])],
    ]


FORMS: list[dict[str, Any]] = [
    {},
    {"id": "a"},
    {"outputs": [{"name": "y"}]},
    {"outputs": [{"name": "z"}, {"name": "y", "parameters": {"classification": 1}}]},
    {"parameters": {"binary_data_output": True}},
]


@given(
    st.sampled_from(sorted(set(DATATYPES) - {"BYTES"})),
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from(FORMS)), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), max_size=2),
    st.sampled_from([2**31, 130]),
)
def test_who_shares_a_batch_gets_what_they_would_get_alone(
    datatype: str, asked: list[tuple[int, dict[str, Any]]], trailing: list[int], bytes_max: int
) -> None:
    outputs = TensorSpec("y", datatype, (-1, *trailing)), TensorSpec("z", "FP32", (-1,))
    one = codec(outputs=outputs)
    one.bodies.bytes_max = bytes_max
    requests = [one.decode(body(tensor(shape=(n, 3), data=[0] * 3 * n), **form)) for n, form in asked]
    rows = sum(request.rows for request in requests)
    y = np.arange(rows * prod(trailing)).reshape(rows, *trailing).astype(DATATYPES[datatype])
    arrays = {"y": y, "z": np.linspace(-1, 1, rows, dtype=np.float32)}
    starts = itertools.accumulate([request.rows for request in requests], initial=0)
    alone = [
        one.encode(
            {name: array[start : start + request.rows] for name, array in arrays.items()},
            [request],
            request.rows,
        )[0]
        for start, request in zip(starts, requests, strict=False)
    ]
    for together, single in zip(one.encode(arrays, requests, rows), alone, strict=True):
        assert type(together) is type(single)
        assert str(together) == str(single)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_the_default_probe_is_a_valid_request(datatype: str) -> None:
    specs = (TensorSpec("x", datatype, (-1, 2, -1)), TensorSpec("s", datatype, (4,)))
    request = codec(specs, batched=False).decode(next(probes(None, specs)).body)
    assert request.inputs["x"].shape == (1, 2, 1)
    assert request.inputs["x"].dtype == DATATYPES[datatype]
    assert not any(request.inputs["x"].ravel().tolist())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ALMOST = st.fixed_dictionaries(
    {"inputs": st.lists(st.fixed_dictionaries({
        "name": st.sampled_from(["x", "n", ""]),
        "datatype": st.sampled_from([*DATATYPES, "FP128"]),
        "shape": st.lists(st.integers(-2, 4), max_size=3) | JSON,
        "data": st.lists(st.integers() | st.floats(), max_size=4) | JSON,
    }), max_size=3)},
    optional={"id": JSON, "outputs": JSON, "parameters": JSON},
)  # fmt: skip


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_decoded_or_refused(content: bytes) -> None:
    with pytest.raises(InvalidArgument):
        codec([X, N]).decode(content)


@given(ALMOST)
def test_almost_valid_bodies_are_decoded_or_refused(value: Any) -> None:
    try:
        request = codec([X, N]).decode(json.dumps(value).encode())
    except InvalidArgument:
        return
    assert request.inputs["x"].shape == (request.rows, 3)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_single_precision_survives_the_round_trip(values: list[float]) -> None:
    spec = TensorSpec("x", "FP32", (-1,))
    echo = codec([spec], [spec])
    content = msgspec.json.encode({"inputs": [tensor(shape=(len(values),), data=values)]})
    request = echo.decode(content)
    (answer,) = bodies(echo, {"x": request.inputs["x"]}, [request], request.rows)
    assert json.loads(answer)["outputs"][0]["data"] == values


# JSON as other programs write it


def test_parameters_that_are_null_say_nothing() -> None:
    plain = codec()
    plain.keeps_parameters = True
    request = plain.decode(
        body(
            tensor(parameters={"binary_data_size": None}),
            parameters={"a": None, "binary_data_output": None},
            outputs=[{"name": "y", "parameters": {"classification": None, "binary_data": None}}],
        )
    )
    assert request.parameters is None
    assert request.key == plain.decode(body()).key


def test_a_mark_before_the_json_is_passed_over() -> None:
    assert codec().decode(b"\xef\xbb\xbf" + body()).inputs["x"].tolist() == [[1, 2.5, 3]]
    content = b"\xef\xbb\xbf" + json.dumps({"inputs": [_binary()]}).encode()
    request = codec().decode(content + np.ones(3, "<f4").tobytes(), len(content))
    assert request.inputs["x"].tolist() == [[1, 1, 1]]


def _binary() -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}


MISSING = {
    "flat": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2,3],"data":[1,null,3,NaN,5,6]}]}',
    "nested": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2,3],"data":[[1,null,3],[ NaN,5,6]]}]}',
    "named so": b'{"id":"NaN \\" NaN","inputs":[{"name":"x","datatype":"FP32","shape":[2,3],'
    b'"data":[1,null,3,NaN,5,6]}]}',
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_values_are_nan_where_the_app_allows_them(name: str) -> None:
    allowing = codec()
    allowing.allow_missing()
    request = allowing.decode(MISSING[name])
    np.testing.assert_array_equal(request.inputs["x"], [[1, np.nan, 3], [np.nan, 5, 6]])
    assert request.id == ('NaN " NaN' if name == "named so" else None)
    with pytest.raises(InvalidArgument, match='missing = "nan"'):
        codec().decode(MISSING[name])


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP64"])
def test_any_float_may_be_missing_and_nothing_else(datatype: str) -> None:
    allowing = codec([TensorSpec("x", datatype, (-1,)), N])
    allowing.allow_missing()
    n = tensor("n", "INT64", [2], [1, 2])
    array = allowing.decode(body(tensor("x", datatype, [2], [None, 1.5]), n)).inputs["x"]
    np.testing.assert_array_equal(array, np.array([np.nan, 1.5], array.dtype))
    with pytest.raises(InvalidArgument, match="INT64 has no missing values"):
        allowing.decode(body(tensor("x", datatype, [2], [1, 2]), {**n, "data": [1, None]}))


def test_infinity_is_no_missing_value() -> None:
    allowing = codec()
    allowing.allow_missing()
    with pytest.raises(InvalidArgument, match="-Infinity is no missing value"):
        allowing.decode(body(tensor(data=[1, 2, float("-inf")])))


def test_half_a_surrogate_pair_is_named() -> None:
    texts = codec([LABEL])
    with pytest.raises(InvalidArgument, match=r"half a surrogate pair \(\\ud800\)"):
        texts.decode(b'{"inputs":[{"name":"label","datatype":"BYTES","shape":[1],"data":["\\ud800"]}]}')
    whole = b'{"inputs":[{"name":"label","datatype":"BYTES","shape":[1],"data":["\\ud83d\\ude00"]}]}'
    assert texts.decode(whole).inputs["label"].tolist() == ["😀"]
