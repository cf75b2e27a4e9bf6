"""The frame codec and the messages in frames: two decoders must agree, whatever arrives and however cut."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from random import Random

from mutations import cut, mutated

from understudy.wire.errors import ProtocolError
from understudy.wire.frames import PREFIX, PREFIX_BYTES, Frame, FrameDecoder
from understudy.wire.messages import Kind, decode_answer, decode_message, encode_message

SAMPLES = Path(__file__).resolve().parents[1] / "data" / "wire-samples-v1.json"
FRAME_BYTES_MAX = 8192
LARGE_BYTES = 64  # so that most frames take the way of large ones


class FramesTarget:
    name = "frames"

    def __init__(self) -> None:
        samples = json.loads(SAMPLES.read_bytes())
        self._frames = tuple(bytes.fromhex(sample["frame"]) for sample in samples.values())

    def generate(self, rng: Random) -> list[bytes]:
        frames = [self._frame(rng) for _ in range(rng.choice((1, 1, 2, 3, 8)))]
        data = b"".join(frames)
        if rng.random() < 0.7:
            data = mutated(rng, data, self._frames)
        return cut(rng, data)

    def _frame(self, rng: Random) -> bytes:
        how = rng.random()
        if how < 0.6:
            return rng.choice(self._frames)
        if how < 0.8:  # a sound frame around unsound content
            sample = rng.choice(self._frames)
            _, stream, kind, flags, header_bytes = PREFIX.unpack_from(sample)
            body = mutated(rng, sample[PREFIX_BYTES:], self._frames)
            return PREFIX.pack(len(body), stream, kind, flags, min(header_bytes, len(body))) + body
        body = rng.randbytes(rng.choice((0, 1, 60, 64, 65, 300, 3000)))
        header_bytes = rng.randrange(len(body) + 1)
        return PREFIX.pack(len(body), rng.getrandbits(32), rng.choice(list(Kind)), 0, header_bytes) + body

    def check(self, pieces: list[bytes]) -> str:
        expected, refused = _decoded_whole(b"".join(pieces))
        for filling in (False, True):
            decoder = FrameDecoder(FRAME_BYTES_MAX, LARGE_BYTES)
            frames: list[Frame] = []
            assert _decode(decoder, pieces, frames, filling) == refused, "the cuts made a difference"
            wanted = expected[: len(frames)] if refused else expected  # a refusal takes its read with it
            assert [_fields(frame) for frame in frames] == [_fields(frame) for frame in wanted]
            assert decoder.buffered_bytes <= PREFIX_BYTES + FRAME_BYTES_MAX + max(map(len, pieces))
            if refused:
                _assert_spent(decoder)
        messages = sum(map(_check_message, expected))
        return "refused" if refused else f"{min(messages, 2)} messages read"


def _decoded_whole(data: bytes) -> tuple[list[Frame], bool]:
    """What a decoder in its simplest use makes of `data`: one frame at a time."""
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    frames: list[Frame] = []
    at = 0
    while at < len(data):
        end = len(data)
        if end - at >= PREFIX_BYTES:
            end = min(end, at + PREFIX_BYTES + PREFIX.unpack_from(data, at)[0])
        if not _feed(decoder, data[at:end], frames):
            return frames, True
        at = end
    return frames, False


def _decode(decoder: FrameDecoder, pieces: list[bytes], frames: list[Frame], filling: bool) -> bool:
    """As a link does; `filling`: it reads into the gap of a large frame. Whether anything was refused."""
    for piece in pieces:
        rest = piece
        while filling and rest and (gap := decoder.gap) is not None:
            count = min(len(gap), len(rest))
            gap[:count] = rest[:count]
            frames += decoder.filled(count)
            rest = rest[count:]
        if rest and not _feed(decoder, rest, frames):
            return True
    return False


def _feed(decoder: FrameDecoder, data: bytes, frames: list[Frame]) -> bool:
    try:
        frames += decoder.feed(data)
    except ProtocolError:
        return False
    return True


def _assert_spent(decoder: FrameDecoder) -> None:
    try:
        decoder.feed(b"")
    except ProtocolError:
        return
    raise AssertionError("a decoder that failed decodes on")


def _fields(frame: Frame) -> tuple[int, int, int, bytes, bytes]:
    return frame.kind, frame.stream, frame.flags, frame.header, bytes(frame.payload)


def _check_message(frame: Frame) -> bool:
    """Whether there is one in it. What can be read can be written, and is read again as the same."""
    with contextlib.suppress(ProtocolError):
        decode_answer(frame)
    try:
        message = decode_message(frame)
    except ProtocolError:
        return False
    if message is None:
        return False
    again = FrameDecoder().feed(encode_message(message, frame.stream))
    assert repr(decode_message(again[0])) == repr(message)  # NaN equals nothing, not even itself
    return True
