"""Which other files an ONNX file needs: weights that an exporter put beside it.

The file is walked as protobuf, for as much as leads to tensors: the package `onnx` is not needed, nor is
more of a large file read than the heads of what is skipped.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from understudy.wire.errors import ConfigError

# Fields of onnx.proto that lead to tensors: message -> field -> message.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
DEPTH_MAX = 100  # messages inside each other
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5


def data_files(model: Path) -> list[str]:
    """Relative paths of the files that `model` keeps weights in; none for what is no ONNX file.

    Raises `ConfigError` for one that is missing, or isn't below the model's own directory.
    """
    found: set[str] = set()
    if model.stat().st_size == 0:
        return []
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            found.update(_locations(content, 0, len(content), "model", 0))
        except (ValueError, IndexError):
            return []  # whoever loads it says what is wrong with it
    folder = model.parent.resolve()
    for name in found:
        path = (folder / name).resolve()
        if PurePosixPath(name).is_absolute() or not path.is_relative_to(folder):
            raise ConfigError(f"{model}: has external data in {name!r}, which is outside of its directory")
        if not path.is_file():
            raise ConfigError(f"{model}: has external data in {name!r}, and there is no such file beside it")
    return sorted(found)


def _locations(content: mmap.mmap, start: int, end: int, kind: str, depth: int) -> Iterator[str]:
    """Values of the key "location" in the external data of every tensor."""
    if depth > DEPTH_MAX:
        raise ValueError("nested too deep")
    inside = _INSIDE[kind]
    for field, first, last in _messages(content, start, end):
        inner = inside.get(field)
        if inner == "entry":
            parts = {number: content[a:b] for number, a, b in _messages(content, first, last)}
            if parts.get(1) == b"location":
                yield parts.get(2, b"").decode()
        elif inner is not None:
            yield from _locations(content, first, last, inner, depth + 1)


def _messages(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number, start and end of each part that carries its length. Raises ValueError, IndexError."""
    while at < end:
        key, at = _varint(content, at)
        wire_type = key & 7
        if wire_type == _LENGTH_DELIMITED:
            size, at = _varint(content, at)
            if at + size > end:
                raise ValueError("longer than what it is in")
            yield key >> 3, at, at + size
            at += size
        elif wire_type == _VARINT:
            _, at = _varint(content, at)
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type}")


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
