"""What a process remembers across its own death: one file, which is believed whole or not at all.

SHA-256 of the rest, then msgpack. Written to a temporary file, synced, renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")
DIGEST_BYTES = 32


class StateFile(Generic[T]):
    def __init__(self, path: Path, type_: type[T]) -> None:
        self.path = path
        self._type = type_

    def load(self) -> tuple[T | None, str]:
        """What is stored, None if that is nothing; and what was wrong with it, empty if all is well.

        A file that can't be believed is moved aside, to `.damaged`.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"{self.path}: {error.strerror}"
        digest, body = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            problem = "damaged, ignored"
        else:
            try:
                return msgspec.msgpack.decode(body, type=self._type), ""
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                problem = f"not readable by this version, ignored: {error}"
        with contextlib.suppress(OSError):  # on a read-only disk it stays where it is
            self.path.replace(self.path.with_suffix(".damaged"))
        return None, f"{self.path}: {problem}"

    def save(self, value: T) -> None:
        """Replace what is stored, durably. Blocks; raises `OSError` with the former file intact."""
        body = msgspec.msgpack.encode(value)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(hashlib.sha256(body).digest() + body)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
        sync_directory(self.path.parent)


def sync_directory(path: Path) -> None:
    """Make what was renamed in it survive a loss of power."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
