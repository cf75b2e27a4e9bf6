"""Who did what and when: a line of JSON for each action and each refusal, in files of bounded size.

It is kept apart from the event log, so that neither can push the other out. A refusal costs whoever causes it
nothing, so only so many a second are written, and the next one says how many were left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, time

import msgspec
import structlog

from understudy.settings.places import LogSettings
from understudy.wire.errors import presentable

FILE_NAME = "audit.log"
REFUSALS_PER_S, REFUSALS_BURST = 10.0, 100.0
CHARS_MAX = 300  # of each field

log = structlog.get_logger()
_encode = msgspec.json.Encoder().encode


class AuditRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    at_unix_ms: int
    who: str  # "operator", or "" for somebody who didn't say, or wasn't believed
    origin: str  # the address that it came from
    action: str  # "DELETE /v1/apps/digits"
    status: int  # of the answer
    why: str = ""  # it was refused
    left_out: int = 0  # refusals just before this one


class AuditLog:
    """Appended to by one process. What can't be written is told in the process's log, and stops nothing."""

    def __init__(self, folder: Path, settings: LogSettings) -> None:
        self._path = folder / FILE_NAME
        self._settings = settings
        self._refusals_left = REFUSALS_BURST
        self._refilled_s = monotonic()
        self._left_out = 0
        self._failing = False

    def acted(self, who: str, origin: str, action: str, status: int) -> None:
        self._write(AuditRecord(_now_ms(), who, origin, _cut(action), status))

    def refused(self, who: str, origin: str, action: str, status: int, why: str) -> None:
        now = monotonic()
        refill = (now - self._refilled_s) * REFUSALS_PER_S
        self._refusals_left, self._refilled_s = min(REFUSALS_BURST, self._refusals_left + refill), now
        if self._refusals_left < 1.0:
            self._left_out += 1
            return
        self._refusals_left -= 1.0
        left_out, self._left_out = self._left_out, 0
        self._write(AuditRecord(_now_ms(), who, origin, _cut(action), status, _cut(why), left_out))

    def newest(self, limit: int) -> list[AuditRecord]:
        """The last `limit`, oldest first. Lines that are none are passed over."""
        found: list[AuditRecord] = []
        for path in self._paths():
            lines = _lines_backwards(path)
            for line in lines:
                try:
                    found.append(msgspec.json.decode(line, type=AuditRecord))
                except msgspec.MsgspecError:
                    continue
                if len(found) == limit:
                    return found[::-1]
        return found[::-1]

    def _paths(self) -> list[Path]:
        """The newest first."""
        older = [self._path.with_name(f"{FILE_NAME}.{n}") for n in range(1, self._settings.file_count)]
        return [self._path, *older]

    def _write(self, record: AuditRecord) -> None:
        line = _encode(record) + b"\n"
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(file).st_size + len(line) > self._settings.bytes_max:
                    self._set_aside()
                    os.close(file)
                    file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                os.write(file, line)
            finally:
                os.close(file)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.error("audit.unwritten", reason=str(error))
            self._failing = True
            log.warning("audit.record", **msgspec.to_builtins(record))

    def _set_aside(self) -> None:
        paths = self._paths()
        for newer, older in zip(paths[-2::-1], paths[:0:-1], strict=True):
            if newer.exists():
                newer.replace(older)
        if len(paths) == 1:
            self._path.unlink()


def _lines_backwards(path: Path) -> Iterator[bytes]:
    try:
        content = path.read_bytes()
    except OSError:
        return
    yield from reversed(content.splitlines())


def _now_ms() -> int:
    return int(time() * 1000)


def _cut(text: str) -> str:
    return presentable(text if len(text) <= CHARS_MAX else text[:CHARS_MAX] + "…")
