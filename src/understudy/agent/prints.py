"""What models print, as labelled lines of the agent's log: so many a second of each replica, so long each.

A worker's own log comes the same way, for it has no other file: its lines are told as they are, longer ones
too, but they count as all others do. A model can forge them, of its own worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field

import msgspec
import structlog

from understudy.adapters.printing import Printed
from understudy.registry import EVENTS
from understudy.settings.places import LogSettings
from understudy.wire.errors import presentable

READ_INTERVAL_S = 0.25
TELL_INTERVAL_S = 10.0  # between two notes of what was left out
BURST_S = 5.0  # lines of so long may come at once
LAST_LINES = 3
LAST_CHARS_MAX = 400
LOG_LINE_BYTES_MAX = 16 * 1024
_LOG_LINE = b'{"'
_LEVELS = ("info", "warning", "error")
_RESERVED = frozenset({"self", "timestamp", "exc_info", "stack_info", "stack"})
_decode = msgspec.json.Decoder(dict[str, str | int | float | bool | None]).decode


@dataclass(slots=True, eq=False)
class _Reader:
    printed: Printed
    label: dict[str, object]
    lines_left: float
    partial: bytes = b""
    cut: bool = False  # the line that is being read has been told already, as far as it is to be
    lines_dropped: int = 0
    bytes_dropped: int = 0
    told_s: float = 0.0
    last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))


class Prints:
    """Of all workers of a node."""

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._log = structlog.get_logger()
        self._readers: dict[str, _Reader] = {}

    def follow(self, worker: str, pid: int) -> None:
        """From now on. Nothing happens if it can't be read."""
        if worker not in self._readers:
            with contextlib.suppress(OSError):
                label: dict[str, object] = {"replica": worker}
                self._readers[worker] = _Reader(Printed(pid), label, self._burst)

    def label(self, worker: str, app: str, version: int, variant: str) -> None:
        if worker in self._readers:
            self._readers[worker].label = {
                "app": app, "version": version, "variant": variant, "replica": worker
            }  # fmt: skip

    def end(self, worker: str) -> str:
        """Its last words, in one line; empty if it said nothing."""
        reader = self._readers.pop(worker, None)
        if reader is None:
            return ""
        self._read(reader)
        if reader.partial:
            self._line(reader, b"")
        reader.told_s = 0.0
        self._tell_dropped(reader)
        reader.printed.close()
        return " / ".join(reader.last)[-LAST_CHARS_MAX:]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(READ_INTERVAL_S)
            self.read_all()

    def read_all(self) -> None:
        """To be called every `READ_INTERVAL_S`."""
        for reader in self._readers.values():
            refill = self._settings.print_lines_per_s * READ_INTERVAL_S
            reader.lines_left = min(reader.lines_left + refill, self._burst)
            self._read(reader)
            self._tell_dropped(reader)

    @property
    def _burst(self) -> float:
        return self._settings.print_lines_per_s * BURST_S

    def _read(self, reader: _Reader) -> None:
        data, lost = reader.printed.read()
        if lost:
            reader.bytes_dropped += lost + len(reader.partial)
            reader.partial, reader.cut = b"", True  # what comes now begins within a line
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._line(reader, line)
        reader.partial += rest
        if len(reader.partial) > self._bytes_max(reader.partial):
            self._line(reader, b"")
            reader.cut = True

    def _line(self, reader: _Reader, end: bytes) -> None:
        line, cut = reader.partial + end, reader.cut
        reader.partial, reader.cut = b"", False
        bytes_max = self._bytes_max(line)
        if cut:
            reader.bytes_dropped += len(line)
            return
        fields = _log_fields(line, reader.label["replica"])
        text = "" if fields else presentable(line[:bytes_max].decode(errors="backslashreplace").rstrip("\r"))
        if text.strip():
            reader.last.append(text)
        elif not fields:
            return
        reader.bytes_dropped += max(len(line) - bytes_max, 0)
        if reader.lines_left < 1:
            reader.lines_dropped += 1
            return
        reader.lines_left -= 1
        if fields:
            getattr(self._log, str(fields.pop("level")))(**fields)
        else:
            self._log.info("model.printed", **reader.label, text=text)

    def _bytes_max(self, line: bytes) -> int:
        bytes_max = self._settings.print_line_bytes_max
        return max(bytes_max, LOG_LINE_BYTES_MAX) if line.startswith(_LOG_LINE) else bytes_max

    def _tell_dropped(self, reader: _Reader) -> None:
        now = self._loop.time()
        if not (reader.lines_dropped or reader.bytes_dropped) or now < reader.told_s + TELL_INTERVAL_S:
            return
        reader.told_s = now
        self._log.warning(
            "model.print_dropped", **reader.label, lines=reader.lines_dropped, bytes=reader.bytes_dropped
        )
        reader.lines_dropped = reader.bytes_dropped = 0


def _log_fields(line: bytes, worker: object) -> dict[str, str | int | float | bool | None]:
    """Of a line of the worker's own log, which its model may have written; empty for any other."""
    if not line.startswith(_LOG_LINE):
        return {}
    try:
        fields = _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    ours = fields.get("process") == f"worker:{worker}" and fields.get("event") in EVENTS
    if not ours or fields.get("level") not in _LEVELS:
        return {}
    return {
        name: presentable(value) if isinstance(value, str) else value
        for name, value in fields.items()
        if name.isidentifier() and name not in _RESERVED
    }
