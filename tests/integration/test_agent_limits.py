"""Groups of real processes: one that exceeds a limit fails alone, it is known why, and none outlives it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from understudy.agent.limits import CONTROLLERS, Groups, Paths

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


TASKS_MAX = 20
# Starts processes until it may not, and says how many there were; they burn in sessions of their own.
BOMB = """
import os, sys, time
sys.stdin.readline()
count = 0
try:
    while count < 60:
        if os.fork() == 0:
            os.setsid()
            while True:
                pass
        count += 1
except BlockingIOError:
    pass
print(count, flush=True)
time.sleep(600)
"""
BURNER_S = 0.2
# Says when it has used as much processor time.
BURNER = f"""
import sys, time
sys.stdin.readline()
until_s = time.process_time() + {BURNER_S}
while time.process_time() < until_s:
    pass
print(flush=True)
"""


@contextlib.contextmanager
def groups_with(*needed: str, controllers: Collection[str] = tuple(CONTROLLERS)) -> Iterator[Groups]:
    groups = Groups(f"understudy-test-{os.getpid()}", TASKS_MAX, controllers=controllers)
    if lacking := [each for each in needed if each not in groups.held]:
        pytest.skip(f"no cgroup with {lacking} may be made here")
    try:
        yield groups
    finally:
        assert groups.sweep()


@contextlib.contextmanager
def process_of(code: str) -> Iterator[subprocess.Popen[str]]:
    """Waits for a line, outside of the session of who runs the tests: sessions are weighed, too."""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def members(group: Paths) -> list[int]:
    return [int(pid) for pid in (Path(group[0]) / "cgroup.procs").read_text().split()]


def burnt_s(group: Paths) -> float:
    """Processor time of all that live there."""
    ticks = 0
    for pid in members(group):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def test_without_cgroups_allocations_beyond_the_limit_are_refused() -> None:
    with groups_with(controllers=("pids", "cpu")) as groups, hoarder() as process:
        group = groups.of("w-1")
        assert take(process, 1) == "taken"
        groups.admit(group, process.pid)
        groups.limit(group, process.pid, 64.0)
        assert take(process, 32) == "taken"
        assert take(process, 128) == "refused"
        assert not groups.exceeded(group)
        assert groups.limit_mb(group) is None


def test_what_is_missing_is_said() -> None:
    with groups_with(controllers=()) as groups:
        assert groups.held == "rlimit"
        assert groups.of("w-1") == ()
        assert groups.make(()) == ()
        assert groups.lacking == ("no cgroup bounds its memory, processes, share of processor time",)
        assert groups.end(())
    with groups_with("memory", "pids", "cpu") as groups:
        assert groups.lacking == ()


def test_with_cgroups_the_kernel_ends_the_process_and_says_so() -> None:
    with groups_with("memory") as groups:
        group = groups.of("w-1")
        with hoarder() as process:
            assert take(process, 1) == "taken"
            groups.admit(group, process.pid)
            groups.limit(group, process.pid, 64.0)
            assert take(process, 16) == "taken"
            assert not groups.exceeded(group)
            assert take(process, 128) == ""
            assert process.wait() == -signal.SIGKILL
            assert groups.exceeded(group)
            assert groups.limit_mb(group) == 64.0
        assert groups.end(group)
        assert groups.end(group), "twice does no harm"
        assert not any(map(os.path.exists, group))


def test_processes_are_bounded_and_all_of_them_end() -> None:
    with groups_with("pids") as groups:
        group, other = groups.of("w-1"), groups.of("w-2")
        with process_of(BOMB) as process, hoarder() as bystander:
            groups.admit(group, process.pid)
            groups.admit(other, bystander.pid)
            assert int(said(process)) == TASKS_MAX - 1
            assert take(bystander, 1) == "taken"
            bombs = members(group)
            assert len(bombs) == TASKS_MAX
            assert groups.sweep(spared=other)
            assert process.wait() == -signal.SIGKILL
            assert not any(Path(f"/proc/{pid}/exe").is_file() for pid in bombs)
            assert take(bystander, 1) == "taken", "spared"
        groups.kill(groups.of("never-made"))


@pytest.mark.parametrize("grouped", [True, False])
def test_a_group_of_burning_processes_weighs_like_two(grouped: bool) -> None:
    """Beside it on one processor, a process gets half as much as all of them; else as much as each."""
    cores = os.sched_getaffinity(0)
    controllers = ("pids", "cpu") if grouped else ("pids",)
    with groups_with(*controllers, controllers=controllers) as groups:
        group = groups.of("w-1")
        os.sched_setaffinity(0, {min(cores)})
        try:
            with process_of(BOMB) as bomb, process_of(BURNER) as process:
                groups.admit(group, bomb.pid)
                said(bomb)
                before_s = burnt_s(group)
                said(process)
                times = (burnt_s(group) - before_s) / BURNER_S
        finally:
            os.sched_setaffinity(0, cores)
    assert times < 5.0 if grouped else times > 10.0
