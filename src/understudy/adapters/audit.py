"""Who did what and when: a line of JSON for each action and each refusal, in files of bounded size.

It is kept apart from the event log, so that neither can push the other out. A refusal costs whoever causes it
nothing, so only so many a second are written, and the next one says how many were left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic, time

import msgspec
import structlog

from understudy.adapters.own_files import for_us_alone, make_way
from understudy.core.gateway.clients import ClientBuckets
from understudy.settings.places import LogSettings
from understudy.wire.errors import cut, presentable
from understudy.wire.records import ClientRate

FILE_NAME = "audit.log"
REFUSALS = ClientRate(requests_per_s=10.0, burst=100)  # of all together
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
        self._refusals = ClientBuckets(REFUSALS, clients_max=1)
        self._left_out = 0
        self._failing = False

    def acted(self, who: str, origin: str, action: str, status: int) -> None:
        self._write(AuditRecord(_now_ms(), who, origin, _cut(action), status))

    def refused(self, who: str, origin: str, action: str, status: int, why: str) -> None:
        if self._refusals.take("", monotonic()):
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        self._write(AuditRecord(_now_ms(), who, origin, _cut(action), status, _cut(why), left_out))

    def newest(self, limit: int) -> list[AuditRecord]:
        """The last `limit`, oldest first. Lines that are none are passed over."""
        found: list[AuditRecord] = []
        for path in self._paths():
            for line in _lines_backwards(path):
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
            self._make_room(len(line))
            with open(self._path, "ab", opener=for_us_alone) as file:
                file.write(line)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.error("audit.unwritten", reason=str(error))
            self._failing = True
            log.warning("audit.record", **msgspec.to_builtins(record))

    def _make_room(self, size_bytes: int) -> None:
        if not self._path.exists() or self._path.stat().st_size + size_bytes <= self._settings.bytes_max:
            return
        aside = make_way(self._path, self._settings.file_count)
        if aside is not None:
            self._path.replace(aside)
        else:
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
    return presentable(cut(text, CHARS_MAX))
