"""Where workers are reached, and what they are given of the disk."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from understudy.adapters.doors import DESCRIPTORS_MAX, Doorway, Entrance
from understudy.adapters.sandbox.walls import Tier, Walls
from understudy.agent.rooms import Rooms, tier_here
from understudy.config import load_cluster
from understudy.wire.errors import ConfigError


@contextmanager
def entrance_of(door: Doorway) -> Iterator[Entrance]:
    theirs = Entrance(tuple(map(os.dup, door.descriptors)))
    door.handed_over()
    try:
        yield theirs
    finally:
        for each in (theirs.line, *theirs.listeners):
            each.close()
        os.close(theirs.progress)
        door.close()


def test_a_socket_that_is_gone_is_made_again_and_sent_after_the_first(tmp_path: Path) -> None:
    door = Doorway.open(str(tmp_path / "w.sock"))
    with entrance_of(door) as theirs:
        assert door.restore() == ""
        assert theirs.renewed() is None
        (tmp_path / "w.sock").unlink()
        assert "it is there again" in door.restore()
        renewed = theirs.renewed()
        assert renewed is not None
        listener, progress = renewed
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "w.sock"))
            listener.accept()[0].close()
        os.close(progress)
        listener.close()
        door.close()
        with pytest.raises(EOFError):
            theirs.renewed()
        assert list(tmp_path.iterdir()) == []


def test_a_worker_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    door = Doorway.open(str(tmp_path / "w.sock"))
    with entrance_of(door):
        said = []
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(1000):
            (tmp_path / "w.sock").unlink()
            said.append(door.restore())
        assert any("can't be made again" in each for each in said)
        assert len(os.listdir("/proc/self/fd")) == before
        door.close()


def test_descriptors_that_are_none_of_a_door_are_closed(tmp_path: Path) -> None:
    door = Doorway.open(str(tmp_path / "w.sock"))
    with entrance_of(door) as theirs:
        assert door.line is not None
        before = len(os.listdir("/proc/self/fd"))
        for count in (0, 1, DESCRIPTORS_MAX):
            socket.send_fds(door.line, [b"anew"], [0] * count)
            assert theirs.renewed() is None
        assert len(os.listdir("/proc/self/fd")) == before
        door.close()


def test_a_door_that_was_found_says_once_that_it_is_gone(tmp_path: Path) -> None:
    (tmp_path / "w.sock").touch()
    door = Doorway.found(str(tmp_path / "w.sock"))
    assert door.restore() == ""
    (tmp_path / "w.sock").unlink()
    assert "can't be made again" in door.restore()
    assert door.restore() == ""


def test_two_cannot_have_one_door(tmp_path: Path) -> None:
    door = Doorway.open(str(tmp_path / "w.sock"), "127.0.0.1")
    assert door.tcp_address.startswith("tcp:127.0.0.1:")
    with pytest.raises(ConfigError, match="another process listens"):
        Doorway.open(str(tmp_path / "w.sock"))
    with pytest.raises(ConfigError, match="can't listen"):
        Doorway.open(str(tmp_path / "other.sock"), "no-such-host.invalid")
    assert not (tmp_path / "other.sock").exists()
    door.close()


def test_what_a_worker_had_of_the_disk_is_cleared_also_by_an_agent_that_only_found_it(tmp_path: Path) -> None:
    rooms = Rooms(tmp_path, Walls(Tier.LANDLOCK), Tier.LANDLOCK)
    for pool in ("", "+network", "digest", "digest+network"):
        walls = rooms.walls("w1", pool)
        assert walls.network == pool.endswith("network")
        assert Path(walls.folder) == rooms.folder("w1")
        (Path(walls.folder) / "model").touch()
        (Path(walls.scratch) / "cache").touch()
        Rooms(tmp_path, Walls()).clear("w1")
        assert not list(tmp_path.glob("*/*/w1"))


CLUSTER = """
data_dir = "data"
nodes = [{{ name = "n1", memory_mb = 1000 }}]
[agent.sandbox]
tier = "{tier}"
readable = ["sets", "none"]
writable = ["kept"]
"""


def test_paths_for_models_are_those_of_the_cluster_file_and_mistakes_are_told(tmp_path: Path) -> None:
    (tmp_path / "CLUSTER.toml").write_text(CLUSTER.format(tier="best"))
    for name, mode in (("sets", 0o755), ("kept", 0o700)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    config = load_cluster(tmp_path / "CLUSTER.toml")
    assert config.agent.sandbox.readable == (str(tmp_path / "sets"), str(tmp_path / "none"))
    told = "; ".join(tier_here(config, "n1").lacking)
    assert f"agent.sandbox.readable: {tmp_path / 'none'}: No such file or directory" in told
    assert str(tmp_path / "sets") not in told
    if os.geteuid() == 0 and tier_here(config, "n1").tier is Tier.NAMESPACES:
        assert f"agent.sandbox.writable: {tmp_path / 'kept'} is closed to other users" in told


def test_none_is_what_may_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "CLUSTER.toml").write_text(CLUSTER.format(tier="none"))
    found = tier_here(load_cluster(tmp_path / "CLUSTER.toml"), "n1")
    assert (found.tier, found.of_environments) == (Tier.NONE, Tier.NONE)
