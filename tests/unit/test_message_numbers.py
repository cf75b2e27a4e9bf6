"""Numbers that plans, limits and waits are made of are finite and not negative, whoever says them."""

from __future__ import annotations

import msgspec
import pytest

from understudy.wire.errors import ProtocolError
from understudy.wire.frames import Frame, FrameDecoder
from understudy.wire.messages import (
    Hello,
    Loaded,
    Measured,
    Message,
    Target,
    WorkerStats,
    decode_message,
    encode_message,
)
from understudy.wire.records import AppVersion, ArtifactRef, Device, Profile, Variant

ABSURD = (float("nan"), float("inf"), float("-inf"), -1.0, 1e300)
LOADED = Loaded(1.0, 1.0, 1.0, 40.0, 10.0, (), ())
HELLO = Hello("agent", "n1", memory_mb=1000.0, cores=4.0, devices=(Device("gpu", 100.0, 2.0),))
VARIANT = Variant(
    "full", "onnx", ArtifactRef("0" * 64, 1, "m.onnx"), 0.9, memory_limit_mb=1.0, load_timeout_s=1.0
)
TARGET = Target(1, (AppVersion("digits", 1, (VARIANT,), requests_per_s=1.0),))
SAID: list[tuple[Message, tuple[str | int, ...]]] = [
    (LOADED, ("load_ms",)),
    (LOADED, ("memory_mb",)),
    (LOADED, ("memory_per_byte",)),
    (Measured(Profile(40.0, 10.0, 20.0, 1.0), (), ()), ("profile", "base_mb")),
    (Measured(Profile(40.0, 10.0, 20.0, 1.0), (), ()), ("profile", "latency_ms")),
    (HELLO, ("memory_mb",)),
    (HELLO, ("cores",)),
    (HELLO, ("devices", 0, "memory_mb")),
    (HELLO, ("devices", 0, "cores")),
    (WorkerStats(1, "ready"), ("pss_mb",)),
    (TARGET, ("apps", 0, "deadline_ms")),
    (TARGET, ("apps", 0, "requests_per_s")),
    (TARGET, ("apps", 0, "variants", 0, "memory_limit_mb")),
    (TARGET, ("apps", 0, "variants", 0, "load_timeout_s")),
]


@pytest.mark.parametrize(("message", "path"), SAID, ids=lambda each: str(each)[:40])
@pytest.mark.parametrize("number", ABSURD)
def test_a_number_that_nothing_can_have_is_refused(
    message: Message, path: tuple[str | int, ...], number: float
) -> None:
    (frame,) = FrameDecoder().feed(encode_message(message))
    assert decode_message(frame) == message
    document = place = msgspec.to_builtins(message)
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = number
    with pytest.raises(ProtocolError, match=str(path[-1])):
        decode_message(Frame(frame.kind, 0, 0, msgspec.msgpack.encode(document), b""))
