"""The free-form parts of a manifest: what JSON and MessagePack can't carry is refused with its place."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest

from understudy.wire.documents import DEPTH_MAX, INT_MAX, INT_MIN, check_document
from understudy.wire.errors import InvalidArgument


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": [1, 10**30]}, "options.a[1]: the number doesn't fit into 64 bits"),
        ({"a": INT_MAX + 1}, "64 bits"),
        ({"a": INT_MIN - 1}, "64 bits"),
        ({"a": 10**5000}, "64 bits"),
        ({"a": float("inf")}, "options.a: inf can't be sent"),
        ({"a": float("nan")}, "options.a: nan can't be sent"),
        ({"a": datetime.date(2020, 1, 2)}, "options.a: a date can't be sent"),
        ({"a": datetime.datetime(2020, 1, 2)}, "options.a: a datetime can't be sent"),
        ({"a": datetime.time(1, 2)}, "options.a: a time can't be sent"),
        ({"a": "\ud800"}, "options.a: has a lone surrogate"),
        ({"\ud800": 1}, "options: has a lone surrogate"),
        ({5: 1}, "options: a key has to be text"),
        ({"a": b"x"}, "options.a: a bytes can't be sent"),
        ({"a": nested(100_000)}, f"options: nested deeper than {DEPTH_MAX}"),
        ({"a": "x" * 2000}, "options: has 2008 bytes as JSON; 1000 is the limit"),
    ],
)
def test_what_cant_be_sent_on_is_refused(value: Any, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_document("options", value, 1000)
    assert says in caught.value.message
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"a": [1, -0.0, True, None, "\0é", {"b": ()}]},
        {"a": [INT_MAX, INT_MIN]},
        nested(DEPTH_MAX - 1),
    ],
)
def test_what_is_let_through_can_be_sent(value: Any) -> None:
    check_document("options", value, 1000)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value)) is not ...
    assert msgspec.json.decode(msgspec.json.encode(value)) is not ...
