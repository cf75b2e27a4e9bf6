"""What a worker prints: read from outside, labelled, bounded, and never in its way."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from understudy.adapters.printing import CHUNK_BYTES, Printed
from understudy.agent.prints import Prints
from understudy.settings.places import LogSettings

PRINTER = """
import os, sys, time
from understudy.adapters.printing import capture
log = os.dup(2)
capture()
for line in sys.stdin:
    exec(line)
    os.write(log, b"done\\n")
"""


class Printer:
    """A process that prints as it is told."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRINTER], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.tell("pass")

    def tell(self, line: str) -> float:
        """Seconds that it took."""
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        began_s = time.monotonic()
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stderr.readline() == "done\n"
        return time.monotonic() - began_s


@contextmanager
def printing() -> Iterator[Printer]:
    printer = Printer()
    try:
        yield printer
    finally:
        printer.process.kill()
        printer.process.communicate()


def test_everything_that_is_printed_is_read_once_by_whoever_comes() -> None:
    with printing() as printer:
        printer.tell("print('from python'); os.write(1, b'from C\\n'); os.write(2, b'an error\\n')")
        printer.tell("os.system('echo from a child')")
        first = Printed(printer.process.pid)
        assert first.read() == (b"from python\nfrom C\nan error\nfrom a child\n", 0)
        assert first.read() == (b"", 0)
        first.close()
        printer.tell("print('nobody reads')")
        assert b"nobody reads" in Printed(printer.process.pid).read()[0], "another agent goes on"


def test_too_much_costs_the_oldest_and_neither_time_nor_memory() -> None:
    with printing() as printer:
        printed = Printed(printer.process.pid)
        took_s = printer.tell("[os.write(1, b'x' * 1000000) for _ in range(100)]")
        data, lost = printed.read()
        assert (len(data), lost) == (CHUNK_BYTES, 100_000_000 - CHUNK_BYTES)
        printer.tell("print('after'); print(os.fstat(1).st_size < 100, file=sys.stderr)")
        assert printed.read() == (b"after\nTrue\n", 0)
        assert took_s < 10


def test_a_process_whose_output_goes_elsewhere_is_not_read() -> None:
    with printing() as printer:
        printer.tell("os.dup2(os.open('/dev/null', os.O_WRONLY), 1)")
        with pytest.raises(OSError, match="not what a worker prints to"):
            Printed(printer.process.pid)
        printer.tell("print('and it may')")


def told(lines: str, settings: LogSettings, rounds: int = 1) -> list[dict[str, object]]:
    """What the log says of a worker that prints by each of `lines`, read `rounds` times."""

    async def follow() -> None:
        prints = Prints(settings)
        with printing() as printer:
            prints.follow("w1", printer.process.pid)
            prints.label("w1", "digits", 3, "full")
            for _ in range(rounds):
                printer.tell(lines)
                prints.read_all()
            prints.end("w1")

    with structlog.testing.capture_logs() as entries:
        asyncio.run(follow())
    return list(entries)


def test_lines_carry_who_printed_them() -> None:
    (entry,) = told("print('hello')", LogSettings())
    label = {"app": "digits", "version": 3, "variant": "full", "replica": "w1"}
    assert entry == {"event": "model.printed", "log_level": "info", "text": "hello", **label}


@pytest.mark.parametrize(
    ("printed", "texts"),
    [
        ("os.write(1, b'no end')", ["no end"]),
        ("os.write(1, b'\\xff\\xfe\\x00ok\\r\\n\\n  \\n')", ["\\xff\\xfe\\x00ok"]),
        ("print('y' * 3000); print('next')", ["y" * 1000, "next"]),
        ("os.write(1, b'z' * 3000)", ["z" * 1000]),
    ],
)
def test_every_kind_of_line_becomes_one(printed: str, texts: list[str]) -> None:
    entries = told(printed, LogSettings())
    assert [entry["text"] for entry in entries if entry["event"] == "model.printed"] == texts


def test_a_flood_is_counted_and_not_logged() -> None:
    settings = LogSettings(print_lines_per_s=4)
    entries = told("[print('line', n) for n in range(2000)]", settings, rounds=5)
    lines = [entry for entry in entries if entry["event"] == "model.printed"]
    dropped = [entry for entry in entries if entry["event"] == "model.print_dropped"]
    assert len(lines) <= 4 * 5 + 5, "a burst, and what is refilled"
    assert len(lines) + sum(int(str(entry["lines"])) for entry in dropped) == 10_000
    assert len(dropped) == 2, "told at first and at last"


def test_a_line_without_end_is_logged_as_far_as_it_goes_and_once() -> None:
    entries = told("os.write(1, b'x' * 40000)", LogSettings(), rounds=20)
    assert len([entry for entry in entries if entry["event"] == "model.printed"]) == 1


def test_last_words_are_kept() -> None:
    async def follow() -> str:
        prints = Prints(LogSettings(print_lines_per_s=1))
        with printing() as printer:
            prints.follow("w1", printer.process.pid)
            printer.tell("[print(n) for n in range(100)]; os.write(2, b'terminate called')")
            return prints.end("w1")

    assert asyncio.run(follow()) == "98 / 99 / terminate called"


FORGED = (
    b'{"process":"worker:w","event":"worker.started","level":"info","self":1,"exc_info":true,"stack_info":1}',
    b'{"process":"worker:w","event":["x"],"level":"info"}',
    b'{"process":"worker:w","event":{},"level":{}}',
    b'{"process":"worker:w","event":"worker.started","level":"critical"}',
    b'{"process":"worker:w","event":"worker.started","level":"info","a b":1,"x":{"y":[1]}}',
    b'{"process":"controller:c1","event":"node.lost","level":"error"}',
    b'{"process":"worker:w","event":"worker.started","level":"info","x":"\\u001b[2J"}',
    b'{"a":' + b"[" * 4000,
    b'{"' + b"\xff" * 100,
)


@pytest.mark.parametrize("line", FORGED, ids=range(len(FORGED)))
def test_a_forged_line_of_the_log_is_told_of_its_worker_and_ends_nothing(line: bytes) -> None:
    with printing() as printer:

        async def read() -> None:
            prints = Prints(LogSettings())
            prints.follow("w", printer.process.pid)
            printer.tell(f"os.write(1, {line + chr(10).encode()!r})")
            with structlog.testing.capture_logs() as logs:
                prints.read_all()
            assert all(each["log_level"] in ("info", "warning", "error") for each in logs)
            assert all(each.get("process", "worker:w") == "worker:w" for each in logs)
            assert "\x1b" not in repr(logs).replace("\\x1b", "")
            prints.end("w")

        asyncio.run(read())
