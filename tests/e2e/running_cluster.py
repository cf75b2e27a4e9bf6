"""`understudy up` as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOP_TIMEOUT_S = 60


@contextmanager
def running(file: Path) -> Iterator[None]:
    """The cluster of `file`, once it says that all is up; ended as by Ctrl-C."""
    argv = [sys.executable, "-m", "understudy", "up", str(file), "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = ""
            while line != "}\n":
                line = process.stdout.readline()
                assert line, process.stderr.read() if process.stderr else ""
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=STOP_TIMEOUT_S)
