"""What an agent remembers across its own death: its newest target and the activations in progress."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from understudy.core.agent.events import Saved

_DIGEST_BYTES = 32


class Stored(msgspec.Struct, frozen=True):
    incarnation: int = 0
    saved: Saved = Saved()


class StateFile:
    """One file: SHA-256 of the rest, then msgpack. A torn or damaged one counts as none."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> tuple[Stored, str]:
        """The stored state, and what was wrong with it (empty when all is well or nothing was stored)."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return Stored(), ""
        except OSError as error:
            return Stored(), f"{self._path}: {error.strerror}"
        digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            return Stored(), f"{self._path}: damaged, ignored"
        try:
            return msgspec.msgpack.decode(body, type=Stored), ""
        except msgspec.MsgspecError as error:
            return Stored(), f"{self._path}: not readable by this version, ignored: {error}"

    def save(self, stored: Stored) -> None:
        """Replace the file, durably. Blocks; raises OSError."""
        body = msgspec.msgpack.encode(stored)
        partial = self._path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(hashlib.sha256(body).digest() + body)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._path)
