"""A cluster of an ordinary user: other processes of that user can't look into those of its roles."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import write_cluster

DEADLINE_S = 60.0
SOMEBODY = 1234
SECRET = "s3cret-of-the-cluster"
# What it gets of each process that it is told of.
ATTACK = """
import ctypes, json, os, resource, sys

def tried(attack):
    try:
        attack()
    except OSError:
        return False
    return True

def trace(pid):
    if ctypes.CDLL(None).ptrace(0x4206, int(pid), None, None):  # PTRACE_SEIZE
        raise OSError

print(json.dumps({
    pid: {
        "mem": tried(lambda: open(f"/proc/{pid}/mem", "rb")),
        "environ": tried(lambda: open(f"/proc/{pid}/environ", "rb").read()),
        "maps": tried(lambda: open(f"/proc/{pid}/maps", "rb").read()),
        "descriptors": tried(lambda: os.listdir(f"/proc/{pid}/fd")),
        "trace": tried(lambda: trace(pid)),
        "core": resource.prlimit(int(pid), resource.RLIMIT_CORE)[0] != 0,
    }
    for pid in sys.argv[1:]
}))
"""

MEASURE = "import sys; from understudy.adapters.memory import pss_mb; print(pss_mb(int(sys.argv[1])))"


def become_somebody() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
        os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)


def attacked(*pids: int) -> dict[int, list[str]]:
    """What an ordinary process gets of each."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", ATTACK, *map(str, pids)],
        preexec_fn=become_somebody,
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    told = json.loads(done.stdout)
    return {pid: [what for what, came in told[str(pid)].items() if came] for pid in pids}


class Up(NamedTuple):
    pid: int
    said: str


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """`understudy up` as an ordinary user."""
    with tempfile.TemporaryDirectory(prefix="us-") as name:
        folder = Path(name)
        path, _ = write_cluster(folder, 1, {"n1": "a"}, "", 1000, processes=2)
        if os.geteuid() == 0:
            for each in (folder, *folder.rglob("*")):
                os.chown(each, SOMEBODY, SOMEBODY)
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "understudy", "up", str(path)],
            preexec_fn=become_somebody,
            env=os.environ | {"HOME": name, "KEY": SECRET},
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        ) as up:
            try:
                assert up.stdout is not None
                said = "".join(itertools.takewhile(lambda line: "Ctrl-C" not in line, up.stdout))
                yield Up(up.pid, said)
            finally:
                up.terminate()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.01)


def children_of(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, path.read_text().split()):
                yield child
                yield from children_of(child)


def title_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:  # it has ended
        return ""


def roles_of(up: int) -> dict[int, str]:
    titles = {pid: title_of(pid) for pid in children_of(up)}
    return {pid: title for pid, title in titles.items() if "zygote" not in title and "worker" not in title}


def test_no_process_of_its_user_looks_into_a_role(up: Up) -> None:
    with subprocess.Popen(["sleep", "60"], preexec_fn=become_somebody) as open_one:
        wait_until(lambda: "sleep" in title_of(open_one.pid))
        try:
            assert set(attacked(open_one.pid)[open_one.pid]) >= {"mem", "environ", "maps", "descriptors"}
        finally:
            open_one.kill()
    roles = roles_of(up.pid)
    for role in ("controller", "gateway", "agent"):
        assert any(role in title for title in roles.values()), roles
    assert sum("gateway" in title for title in roles.values()) == 3, "a parent and two that serve"
    came = attacked(up.pid, *roles)
    assert {roles.get(pid, "up"): got for pid, got in came.items() if got} == {}


def test_its_roles_may_have_all_the_descriptors_that_there_are_for_them(up: Up) -> None:
    """Those that models have sent and nobody received count against the limit of whoever sends one."""
    for pid, title in roles_of(up.pid).items():
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        soft, hard = next(line.split()[3:5] for line in limits if line.startswith("Max open files"))
        assert soft == hard or "controller" in title, title


def test_namespaces_are_made_by_who_is_closed_itself(up: Up) -> None:
    assert "sandbox  namespaces" in up.said, up.said
    wait_until(lambda: any("worker" in title_of(pid) for pid in children_of(up.pid)))


def test_what_is_closed_is_measured_by_what_it_has_of_its_own(up: Up) -> None:
    (agent,) = [pid for pid, title in roles_of(up.pid).items() if "agent" in title]
    measured = [
        subprocess.run(
            [sys.executable, "-P", "-c", MEASURE, str(agent)],
            preexec_fn=user,
            capture_output=True,
            check=True,
            cwd="/",
        ).stdout
        for user in (become_somebody, None)
    ]
    assert min(map(float, measured)) > 1.0
