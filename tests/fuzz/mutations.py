"""Bytes made worse: what transport errors, careless programs and attackers do to a valid message."""

from __future__ import annotations

from random import Random

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
TOKENS = (
    b"\r\n\r\n", b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b",", b'"', b"[", b"{", b"}", b"]", b"-", b"1e999",
    b"null", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"9" * 20, b"0x10", b"\x93", b"\xdf\xff\xff\xff\xff",
    b"\x80" * 11,
)  # fmt: skip


def mutated(rng: Random, data: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """`data` after one to four changes; `others` are messages to splice parts of in."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        data = rng.choice(_CHANGES)(rng, data, others)
    return data


def cut(rng: Random, data: bytes) -> list[bytes]:
    """`data` as reads may deliver it: whole, in a few pieces, or byte by byte."""
    how = rng.random()
    if how < 0.4 or len(data) < 2:
        return [data]
    if how < 0.43 and len(data) < 600:
        return [data[at : at + 1] for at in range(len(data))]
    places = sorted({rng.randrange(1, len(data)) for _ in range(rng.choice((1, 1, 2, 3, 6)))})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def _flip(rng: Random, data: bytes, others: tuple[bytes, ...]) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _truncate(rng: Random, data: bytes, others: tuple[bytes, ...]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _remove(rng: Random, data: bytes, others: tuple[bytes, ...]) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _repeat(rng: Random, data: bytes, others: tuple[bytes, ...]) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 2, 7)) + data[end:]


def _insert(rng: Random, data: bytes, others: tuple[bytes, ...]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(TOKENS) + data[at:]


def _overwrite(rng: Random, data: bytes, others: tuple[bytes, ...]) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(NUMBERS) & (1 << 8 * size) - 1
    at = rng.randrange(len(data) + 1)
    return data[:at] + number.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]


def _renumber(rng: Random, data: bytes, others: tuple[bytes, ...]) -> bytes:
    """Another decimal number in the place of one: lengths, shapes, versions."""
    digits = [at for at, byte in enumerate(data[:2000]) if 48 <= byte <= 57]
    if not digits:
        return data
    at = rng.choice(digits)
    number = b"%d" % rng.choice((*NUMBERS, -1, data[at] - 47, data[at] - 49))
    return data[:at] + number + data[at + 1 :]


def _splice(rng: Random, data: bytes, others: tuple[bytes, ...]) -> bytes:
    other = rng.choice(others) if others else rng.randbytes(rng.randrange(20))
    start, end = _span(rng, other)
    at = rng.randrange(len(data) + 1)
    return data[:at] + other[start:end] + data[at:]


def _span(rng: Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(start + rng.choice((1, 2, 4, 16, 64, 1000)), len(data))


_CHANGES = (_flip, _flip, _truncate, _remove, _repeat, _insert, _overwrite, _renumber, _splice)
