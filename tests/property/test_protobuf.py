"""The walk over a message's fields, for every input: it ends, stays inside, and agrees with the library."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from understudy.wire.errors import InvalidArgument
from understudy.wire.inference import ModelInferRequest, ModelInferResponse
from understudy.wire.protobuf import (
    FIELDS_MAX,
    length_delimited,
    read_infer_head,
    without_field,
)

RAW = 7

names = st.text(max_size=20)
tensors = st.builds(
    lambda name, shape: {"name": name, "datatype": "FP32", "shape": shape},
    names,
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
)
requests = st.builds(
    lambda name, version, id_, inputs, raw: ModelInferRequest(
        model_name=name, model_version=version, id=id_, inputs=inputs, raw_input_contents=raw
    ),
    names,
    names,
    names,
    st.lists(tensors, max_size=4),
    st.lists(st.binary(max_size=300), max_size=4),
)


@given(requests)
def test_the_head_is_what_was_written(request: Any) -> None:
    head = read_infer_head(request.SerializeToString())
    assert head == (request.model_name, request.model_version, request.id.encode())


@given(st.lists(requests, min_size=2, max_size=3))
def test_of_concatenated_messages_the_last_word_counts(parts: list[Any]) -> None:
    message = b"".join(part.SerializeToString() for part in parts)
    merged = ModelInferRequest.FromString(message)
    assert read_infer_head(message)[:2] == (merged.model_name, merged.model_version)


def assert_agrees(message: bytes) -> None:
    try:
        head = read_infer_head(message)
    except InvalidArgument:
        return
    try:
        parsed = ModelInferRequest.FromString(message)
    except DecodeError:
        return  # what is wrong lies deeper than the walk looks
    assert head[:2] == (parsed.model_name, parsed.model_version)


@given(st.binary(max_size=400))
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x80" * 20)
@example(b"\x0a\x02\xff\xfe")
@example(b"\x00")
def test_garbage_is_refused_or_read_as_the_library_does(message: bytes) -> None:
    assert_agrees(message)


@given(requests, st.data())
def test_what_is_cut_or_changed_is_refused_or_read_as_the_library_does(
    request: Any, data: st.DataObject
) -> None:
    message = bytearray(request.SerializeToString())
    if message:
        at = data.draw(st.integers(0, len(message) - 1))
        message[at] = data.draw(st.integers(0, 255))
        del message[data.draw(st.integers(0, len(message))) :]
    assert_agrees(bytes(message))


@given(requests)
def test_raw_contents_are_found_where_they_lie(request: Any) -> None:
    message = request.SerializeToString()
    rest, spans = without_field(message, RAW)
    assert [message[start:end] for start, end in spans] == list(request.raw_input_contents)
    del request.raw_input_contents[:]
    assert ModelInferRequest.FromString(rest) == request


@given(requests, st.binary(max_size=40))
def test_spans_stay_inside_the_message(request: Any, tail: bytes) -> None:
    message = request.SerializeToString() + tail
    try:
        rest, spans = without_field(message, RAW)
    except InvalidArgument:
        return
    assert all(0 <= start <= end <= len(message) for start, end in spans)
    assert len(rest) <= len(message)


def test_a_message_of_very_many_fields_is_refused() -> None:
    field = length_delimited(5, b"")
    assert read_infer_head(field * FIELDS_MAX).model_name == ""
    with pytest.raises(InvalidArgument, match="too many fields"):
        read_infer_head(field * (FIELDS_MAX + 1))


@given(st.integers(1, 15), st.binary(max_size=300))
def test_a_field_written_by_hand_is_read_by_the_library(number: int, content: bytes) -> None:
    _, [(start, end)] = without_field(length_delimited(number, content), number)
    assert length_delimited(number, content)[start:end] == content


@given(names, st.binary(max_size=50))
def test_parameters_can_be_added_to_a_finished_response(name: str, content: bytes) -> None:
    response = ModelInferResponse(model_name=name, raw_output_contents=[content])
    response.parameters["own"].int64_param = 7
    added = ModelInferResponse()
    added.parameters["variant"].string_param = name
    merged = ModelInferResponse.FromString(response.SerializeToString() + added.SerializeToString())
    assert {key: value.WhichOneof("parameter_choice") for key, value in merged.parameters.items()} == {
        "own": "int64_param",
        "variant": "string_param",
    }
    assert (merged.model_name, list(merged.raw_output_contents)) == (name, [content])
