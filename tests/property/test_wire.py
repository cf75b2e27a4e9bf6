"""Whatever bytes arrive, the codec gives frames and messages or its own error, and holds little."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from understudy.wire.errors import Code, ProtocolError, UnderstudyError, presentable
from understudy.wire.frames import PREFIX, PREFIX_BYTES, Frame, FrameDecoder, encode_frame
from understudy.wire.messages import (
    KINDS,
    TYPES,
    Failure,
    Hello,
    Infer,
    Kind,
    Loaded,
    Message,
    decode_message,
    encode_message,
)
from understudy.wire.records import TensorSpec

FRAME_BYTES_MAX = 4096
SAMPLES = Path(__file__).resolve().parents[1] / "data" / "wire-samples-v1.json"

frames = st.builds(
    Frame,
    kind=st.integers(0, 255),
    stream=st.integers(0, 0xFFFFFFFF),
    flags=st.integers(0, 255),
    header=st.binary(max_size=200),
    payload=st.binary(max_size=1000),
)


def encode(frame: Frame) -> bytes:
    return encode_frame(frame.kind, frame.stream, frame.header, frame.payload, frame.flags)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(frames, max_size=8), st.lists(st.integers(min_value=0), max_size=30))
def test_frames_survive_any_chunking(sent: list[Frame], places: list[int]) -> None:
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    received = []
    for chunk in cut(b"".join(map(encode, sent)), places):
        received += decoder.feed(chunk)
    assert received == sent
    assert decoder.buffered_bytes == 0


@given(st.lists(frames, max_size=8), st.lists(st.integers(min_value=0), max_size=30), st.integers(1, 400))
def test_large_frames_are_read_into_their_place(sent: list[Frame], places: list[int], large: int) -> None:
    """As a link reads: straight into the gap as long as there is one."""
    decoder = FrameDecoder(FRAME_BYTES_MAX, large_bytes=large)
    stream = b"".join(map(encode, sent))
    received = []
    for chunk in cut(stream, places):
        data = chunk
        while data:
            gap = decoder.gap
            if gap is None:
                received += decoder.feed(data)
                break
            count = min(len(gap), len(data))
            gap[:count] = data[:count]
            received += decoder.filled(count)
            data = data[count:]
    assert received == sent
    assert decoder.buffered_bytes == 0
    assert decoder.gap is None


@given(st.lists(frames, max_size=8), st.lists(st.integers(min_value=0), max_size=30), st.integers(1, 400))
def test_large_frames_may_be_fed_too(sent: list[Frame], places: list[int], large: int) -> None:
    decoder = FrameDecoder(FRAME_BYTES_MAX, large_bytes=large)
    received = []
    for chunk in cut(b"".join(map(encode, sent)), places):
        received += decoder.feed(chunk)
    assert received == sent


@given(st.lists(frames, min_size=1, max_size=4), st.data())
def test_a_truncated_stream_gives_the_whole_frames_only(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(map(encode, sent))
    kept = data.draw(st.integers(0, len(stream) - 1))
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    received = decoder.feed(stream[:kept])
    assert received == sent[: len(received)]
    assert len(received) < len(sent)
    assert decoder.buffered_bytes == kept - sum(len(encode(frame)) for frame in received)


@given(st.lists(st.binary(max_size=3000), max_size=12))
def test_garbage_is_refused_or_harmless(chunks: list[bytes]) -> None:
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    for chunk in chunks:
        try:
            decoder.feed(chunk)
        except ProtocolError:
            break
        assert decoder.buffered_bytes < PREFIX_BYTES + FRAME_BYTES_MAX
    else:
        return
    assert decoder.buffered_bytes < PREFIX_BYTES + FRAME_BYTES_MAX
    with pytest.raises(ProtocolError):  # the place where the next frame starts is lost for good
        decoder.feed(encode_frame(Kind.PING, 1, b""))


@given(st.integers(FRAME_BYTES_MAX + 1, 0xFFFFFFFF), st.integers(0, 0xFFFF))
def test_an_oversize_frame_is_refused_by_its_prefix(body_bytes: int, header_bytes: int) -> None:
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    with pytest.raises(ProtocolError):
        decoder.feed(PREFIX.pack(body_bytes, 1, Kind.INFER, 0, header_bytes))
    assert decoder.buffered_bytes == 0


@given(st.integers(0, FRAME_BYTES_MAX - 1), st.data())
def test_a_header_longer_than_its_body_is_refused(body_bytes: int, data: st.DataObject) -> None:
    header_bytes = data.draw(st.integers(body_bytes + 1, 0xFFFF))
    with pytest.raises(ProtocolError):
        FrameDecoder(FRAME_BYTES_MAX).feed(PREFIX.pack(body_bytes, 1, Kind.INFER, 0, header_bytes))


def test_a_frame_of_the_permitted_size_passes() -> None:
    header, payload = b"h" * 96, b"p" * (FRAME_BYTES_MAX - 96)
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    assert decoder.feed(encode_frame(1, 2, header, payload)) == [Frame(1, 2, 0, header, payload)]


def test_encoding_refuses_what_no_prefix_can_tell() -> None:
    with pytest.raises(ProtocolError):
        encode_frame(Kind.INFER, 1, b"h" * 0x10000)


# Messages: every struct, with every field drawn from its type.

numbers = st.floats(allow_nan=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def values(info: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    match info:
        case msgspec.inspect.AnyType():
            return plain
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.IntType():
            return st.integers(-(2**63), 2**64 - 1)
        case msgspec.inspect.FloatType(gt=None, ge=None, le=None):
            return numbers
        case msgspec.inspect.FloatType(gt=above, ge=least, le=most):
            return st.floats(
                above if least is None else least, most, exclude_min=least is None, allow_nan=False
            )
        case msgspec.inspect.StrType():
            return st.text(max_size=12)
        case msgspec.inspect.BytesType():
            return st.binary(max_size=12)
        case msgspec.inspect.EnumType(cls=cls):
            return st.sampled_from(cls)
        case msgspec.inspect.UnionType(types=types):
            return st.one_of(*(values(t) for t in types))
        case msgspec.inspect.TupleType(item_types=items):
            return st.tuples(*(values(item) for item in items))
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(values(item), max_size=2).map(tuple)
        case msgspec.inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=2)
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: values(field.type) for field in fields})
    raise TypeError(f"no values for {info}")


messages = st.one_of(*(values(msgspec.inspect.type_info(type_)) for type_ in TYPES.values()))


def test_every_kind_has_one_message() -> None:
    assert set(TYPES) == set(Kind)
    assert len(KINDS) == len(TYPES)


@given(messages, st.integers(0, 0xFFFFFFFF))
def test_every_message_survives_the_trip(message: Message, stream: int) -> None:
    (frame,) = FrameDecoder().feed(encode_message(message, stream))
    assert decode_message(frame) == message
    assert frame.stream == stream


def test_a_message_that_outgrows_its_header_travels_as_payload() -> None:
    names = tuple(TensorSpec(f"{i:0100}", "FP32", (-1,)) for i in range(1000))
    for specs in (names[:3], names):
        loaded = Loaded(1.0, 1.0, 1.0, 1.0, 1.0, specs, specs)
        (frame,) = FrameDecoder().feed(encode_message(loaded, 5))
        assert bool(frame.header) == (len(specs) == 3)
        assert decode_message(frame) == loaded


@given(st.builds(Infer, st.integers(0, 2**40), st.integers(-1, 2**40)), st.binary(max_size=1000))
def test_a_body_travels_beside_its_header(infer: Infer, body: bytes) -> None:
    (frame,) = FrameDecoder().feed(encode_message(infer, 7, body))
    assert decode_message(frame) == infer
    assert frame.payload == body


@given(st.sampled_from(list(Kind)), st.binary(max_size=300))
def test_arbitrary_content_is_a_message_or_a_protocol_error(kind: Kind, content: bytes) -> None:
    _decode_or_refuse(Frame(kind, 1, 0, content, content))


@given(st.sampled_from(list(Kind)), plain)
def test_well_formed_content_of_a_wrong_shape_is_refused_cleanly(kind: Kind, content: Any) -> None:
    encoded = msgspec.msgpack.encode(content)
    _decode_or_refuse(Frame(kind, 1, 0, encoded, encoded))


@given(messages, st.lists(st.tuples(st.integers(min_value=0), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_message_is_refused_cleanly(message: Message, damages: list[tuple[int, int]]) -> None:
    encoded = bytearray(encode_message(message))
    for place, change in damages:
        encoded[place % len(encoded)] ^= change
    try:
        received = FrameDecoder().feed(bytes(encoded))
    except ProtocolError:
        return
    for frame in received:
        _decode_or_refuse(frame)


def _decode_or_refuse(frame: Frame) -> Message | None:
    try:
        message = decode_message(frame)
    except ProtocolError:
        return None
    assert message is None or type(message) is TYPES[Kind(frame.kind)]
    return message


@given(st.integers(0, 255), st.binary(max_size=50))
def test_unknown_kinds_are_ignored(kind: int, content: bytes) -> None:
    if kind not in set(Kind):
        assert decode_message(Frame(kind, 0, 0, content, content)) is None


def test_nesting_without_end_is_refused() -> None:
    bottomless = b"\x83\xa4code\xa4busy\xa7message\xa0\xa7context\x81\xa1a" + b"\x91" * 100_000
    with pytest.raises(ProtocolError):
        decode_message(Frame(Kind.FAILURE, 1, 0, b"", bottomless))


@given(st.text(max_size=200_000 // 4), st.dictionaries(st.text(max_size=10), plain, max_size=5))
@example("a word", {"code": 1, "message": "m", "self": None})
def test_a_failure_says_the_same_on_the_other_side(message: str, context: dict[str, Any]) -> None:
    """Whatever a model's exception said, however long: the far side raises it, not a fault of its own."""
    (frame,) = FrameDecoder().feed(encode_message(Failure(Code.MODEL_FAILED, message, context)))
    failure = decode_message(frame)
    assert isinstance(failure, Failure)
    error = failure.error()
    assert isinstance(error, UnderstudyError)
    assert error.code is Code.MODEL_FAILED
    assert error.message == presentable(message)
    assert error.context.keys() == context.keys()


# Versions. The samples are frames as version 1 sent them, with what they said. They are never changed; a
# new kind of message gets a sample of its own.


def _samples() -> dict[str, dict[str, Any]]:
    return dict(json.loads(SAMPLES.read_text()))


def test_every_kind_has_a_sample() -> None:
    assert {kind.name for kind in Kind} <= _samples().keys()


@pytest.mark.parametrize("name", sorted(_samples()))
def test_what_was_sent_once_is_understood_for_ever(name: str) -> None:
    sample = _samples()[name]
    (frame,) = FrameDecoder().feed(bytes.fromhex(sample["frame"]))
    message = decode_message(frame)
    assert type(message) is TYPES[Kind[name]]
    assert frame.stream == sample["stream"]
    _assert_says(message, sample["fields"])


@pytest.mark.parametrize("name", sorted(_samples()))
def test_fields_of_a_newer_version_are_ignored(name: str) -> None:
    (frame,) = FrameDecoder().feed(bytes.fromhex(_samples()[name]["frame"]))
    in_payload = bool(frame.payload) and not frame.header
    content = msgspec.msgpack.decode(frame.payload if in_payload else frame.header)
    if isinstance(content, dict):
        content["field_of_tomorrow"] = {"a": [1]}
    else:
        content.append("field of tomorrow")
    newer = msgspec.msgpack.encode(content)
    newer_frame = replace(frame, payload=newer) if in_payload else replace(frame, header=newer)
    assert decode_message(newer_frame) == decode_message(frame)


def test_fields_that_an_older_version_lacked_get_defaults() -> None:
    oldest = msgspec.msgpack.encode({"role": "agent", "name": "n1"})
    assert decode_message(Frame(Kind.HELLO, 0, 0, oldest, b"")) == Hello("agent", "n1")


def _assert_says(value: Any, expected: Any) -> None:
    """`value` has everything that `expected`, plain JSON, has; it may have more."""
    if isinstance(value, msgspec.Struct):
        for name, inner in expected.items():
            _assert_says(getattr(value, name), inner)
    elif isinstance(value, bytes):
        assert value == base64.b64decode(expected)
    elif isinstance(value, tuple | list):
        assert len(value) == len(expected)
        for item, inner in zip(value, expected, strict=True):
            _assert_says(item, inner)
    elif isinstance(value, dict):
        assert value.keys() == expected.keys()
        for key, inner in expected.items():
            _assert_says(value[key], inner)
    else:
        assert value == expected
