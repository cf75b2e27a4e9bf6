"""Memory limits on a real process: the one that exceeds its limit fails, and it is known why."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from understudy.agent.limits import MemoryLimits

# Waits for a line, then takes the given number of MiB, page by page.
HOARDER = """
import sys
for line in sys.stdin:
    try:
        hoard = bytearray(int(line) << 20)
        hoard[::4096] = b"x" * len(hoard[::4096])
    except MemoryError:
        print("refused", flush=True)
    else:
        print("taken", flush=True)
"""


@contextlib.contextmanager
def hoarder() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOARDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process
        process.kill()


def take(process: subprocess.Popen[str], size_mb: int) -> str:
    """What became of it; empty if it died."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{size_mb}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_without_cgroups_allocations_beyond_the_limit_are_refused() -> None:
    limits = MemoryLimits(f"understudy-test-{os.getpid()}")
    limits.close()
    limits.directory = None
    assert limits.kind == "rlimit"
    with hoarder() as process:
        assert take(process, 1) == "taken"
        assert limits.path("w-1") == ""
        limits.admit("", process.pid)
        limits.limit("", process.pid, 64.0)
        assert take(process, 32) == "taken"
        assert take(process, 128) == "refused"
        assert not limits.exceeded("")
        assert limits.limit_mb("") is None
        assert limits.remove("")


def test_with_cgroups_the_kernel_ends_the_process_and_says_so() -> None:
    limits = MemoryLimits(f"understudy-test-{os.getpid()}")
    if limits.directory is None:
        pytest.skip("no cgroup with a memory controller may be made here")
    cgroup = limits.path("w-1")
    with hoarder() as process:
        assert take(process, 1) == "taken"
        limits.admit(cgroup, process.pid)
        limits.limit(cgroup, process.pid, 64.0)
        assert take(process, 16) == "taken"
        assert not limits.exceeded(cgroup)
        assert not limits.remove(cgroup), "a cgroup in use can't be removed"
        assert take(process, 128) == ""
        assert process.wait() == -signal.SIGKILL
        assert limits.exceeded(cgroup)
        assert limits.limit_mb(cgroup) == 64.0
        assert limits.remove(cgroup)
        assert limits.remove(cgroup), "twice does no harm"
    with hoarder() as left_behind:
        limits.admit(cgroup, left_behind.pid)
        limits.end_all(cgroup)
        assert left_behind.wait() == -signal.SIGKILL
    limits.end_all(limits.path("never-made"))
    assert limits.remove(cgroup)
    assert limits.close()
    assert not limits.directory.exists()
