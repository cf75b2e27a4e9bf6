"""What a cluster writes is for its user alone, and so are the places where its processes meet."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from attacked import Attacked

from understudy.wire.messages import Ping, encode_message

USERS = {"ours": 0, "a stranger": 65534}
SHOWN_INSIDE = {"artifacts", "replicas"}  # of an agent's directory
ASKING = """
import os, socket, sys
if int(sys.argv[1]):
    os.setgroups([])
    os.setgid(int(sys.argv[1]))
    os.setuid(int(sys.argv[1]))
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[2])
link.settimeout(2)
try:
    link.sendall(bytes.fromhex(sys.argv[3]))
    print(len(link.recv(1)))
except OSError:
    print(0)
"""


def test_files_and_folders_of_a_cluster_are_closed_to_others(attacked: Attacked) -> None:
    config = attacked.harness.cluster.config
    open_to_others = []
    shown = [path for path in Path(config.data_dir).glob("agent/*/*") if path.name in SHOWN_INSIDE]
    assert {path.name for path in shown} == SHOWN_INSIDE
    for folder in (Path(config.data_dir), Path(config.run_dir)):
        for path in folder.rglob("*"):
            mode = path.lstat().st_mode
            if shown_to_models(path, shown):
                continue
            if not stat.S_ISLNK(mode) and stat.S_IMODE(mode) & 0o077:
                open_to_others.append(f"{path.relative_to(folder)}: {stat.S_IMODE(mode):o}")
    assert open_to_others == []


def shown_to_models(path: Path, shown: list[Path]) -> bool:
    """As root, models are users of their own, to whom some of what is in these closed folders is shown."""
    return any(folder in path.parents for folder in shown)


def test_another_user_is_heard_by_nobody_even_where_a_socket_can_be_reached(attacked: Attacked) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    run_dir = Path(attacked.harness.cluster.config.run_dir)
    sockets = [path for path in run_dir.rglob("*.sock") if _streams(path)]
    # As a careless mount would lay them open: modes of folders don't guard them any more.
    opened = [*sockets, run_dir, *(path for path in run_dir.parents if path != Path("/"))]
    modes = {path: path.stat().st_mode for path in opened}
    try:
        for path in opened:
            path.chmod(0o777)
        answered = {
            name: {path.name: _answered(path, user) for path in sockets} for name, user in USERS.items()
        }
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert any(answered["ours"].values()), "the test asks nothing that is ever answered"
    assert not any(answered["a stranger"].values()), answered


def _streams(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _answered(path: Path, user: int) -> bool:
    command = [
        sys.executable,
        "-I",
        "-c",
        ASKING,
        str(user),
        str(path),
        bytes(encode_message(Ping(), 1)).hex(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    return int(done.stdout) > 0
