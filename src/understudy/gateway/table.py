"""The last good route table on disk: with it a gateway starts and serves when no controller answers.

Format: SHA-256 of the rest, then the table as msgpack. Written to a temporary file, synced, renamed. A
file that doesn't check out is moved aside and treated as missing; it is never believed in part.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from understudy.wire.records import RouteTable

DIGEST_BYTES = 32


def save(path: Path, table: RouteTable) -> None:
    """Replace the stored table. Raises `OSError` with the old table intact."""
    content = msgspec.msgpack.encode(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(hashlib.sha256(content).digest() + content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path) -> RouteTable | None:
    """The stored table; None if there is none or it is damaged (then it lies beside, as `.damaged`)."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() == digest:
        try:
            return msgspec.msgpack.decode(content, type=RouteTable)
        except msgspec.MsgspecError:
            pass  # a table of a future version that this one can't read counts as damaged
    path.replace(path.with_suffix(".damaged"))
    return None
