"""Claims and meeting places: one at a time, ours alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.adapters.claims import check_owner, claim
from understudy.adapters.places import meeting_place
from understudy.cli.roles import run_role
from understudy.local.supervisor import Cluster
from understudy.wire.errors import ConfigError

HOLD = """
import sys, time
from pathlib import Path
from understudy.adapters.claims import check_owner, claim
held = claim(Path(sys.argv[1]), "taken")
if "leaving" in sys.argv:
    held.leave()
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextlib.contextmanager
def holder(folder: Path, seconds: float, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_one_at_a_time_and_the_second_is_told_whose_it_is(tmp_path: Path):
    with holder(tmp_path / "g1", 60) as process:
        with pytest.raises(ConfigError, match=f"taken: process {process.pid}, since 20"):
            claim(tmp_path / "g1", "taken")
        with contextlib.closing(claim(tmp_path / "g2", "taken")):
            pass


def test_a_data_directory_belongs_to_the_cluster_whose_name_it_holds(tmp_path: Path):
    for _ in range(2):
        check_owner(tmp_path / "data", "one")
    with pytest.raises(
        ConfigError, match=r"data belongs to cluster 'one', not to 'two'; set another data_dir"
    ):
        check_owner(tmp_path / "data", "two")
    (tmp_path / "data" / "cluster").unlink()  # the remedy for one that has a new name
    check_owner(tmp_path / "data", "two")


def test_nothing_of_a_cluster_starts_in_the_data_directory_of_another(tmp_path: Path):
    path = tmp_path / "CLUSTER.toml"
    path.write_text('name = "two"\n[[nodes]]\nname = "n1"\nmemory_mb = 100\n')
    with pytest.raises(ConfigError, match="no node named 'n9'"):
        run_role("agent", "n9", path, None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["CLUSTER.toml"]
    check_owner(tmp_path / "understudy-data", "one")
    with pytest.raises(ConfigError, match="belongs to cluster 'one'"):
        Cluster(path).start()
    with pytest.raises(ConfigError, match="belongs to cluster 'one'"):
        run_role("agent", "n1", path, None)
    assert [entry.name for entry in (tmp_path / "understudy-data").iterdir()] == ["cluster"]


def test_a_claim_ends_with_its_process_whatever_ends_it(tmp_path: Path):
    with holder(tmp_path, 60) as process:
        os.kill(process.pid, signal.SIGKILL)
        claim(tmp_path, "taken").close()


def test_who_is_leaving_is_waited_for(tmp_path: Path):
    with holder(tmp_path, 2.5, "leaving"):
        began_s = time.monotonic()
        claim(tmp_path, "taken").close()
        assert time.monotonic() - began_s > 1.5


def test_a_directory_is_claimed_itself_where_no_file_can_be_made(tmp_path: Path):
    (tmp_path / "lock").mkdir()  # as a read-only disk does, for a user who may do everything
    with contextlib.closing(claim(tmp_path, "taken")), pytest.raises(ConfigError, match="taken"):
        claim(tmp_path, "taken")


def test_a_meeting_place_is_made_for_us_alone(tmp_path: Path):
    meeting_place(tmp_path / "a" / "run")
    assert (tmp_path / "a" / "run").stat().st_mode & 0o777 == 0o700
    meeting_place(tmp_path / "a" / "run")


def test_a_place_that_others_could_use_is_refused(tmp_path: Path):
    ours = tmp_path / "ours"
    meeting_place(ours)
    (tmp_path / "link").symlink_to(ours)
    with pytest.raises(ConfigError, match="may not be a link"):
        meeting_place(tmp_path / "link")
    ours.chmod(0o777)
    with pytest.raises(ConfigError, match="others can write to it"):
        meeting_place(ours)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=r"file"):
            meeting_place(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_place_of_another_user_is_refused(tmp_path: Path):
    meeting_place(tmp_path / "run")
    os.chown(tmp_path / "run", 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        meeting_place(tmp_path / "run")
