"""What models leave behind: it goes, whatever it is."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.adapters.own_files import remove_tree

LEVELS = 3000
DESCRIPTORS = 64
SOMEBODY = 1234  # a user without any right
CLOSED = """
import os, sys
from pathlib import Path
from understudy.adapters.own_files import remove_tree
tree = Path(sys.argv[1]) / "tree"
(tree / "blind").mkdir(parents=True)
(tree / "blind" / "file").touch()
(tree / "shut").mkdir()
os.chmod(tree / "blind", 0o300)
os.chmod(tree / "shut", 0)
remove_tree(tree)
print(tree.exists())
"""


def dig(path: Path) -> None:
    """As deep as no path is long."""
    path.mkdir()
    here = os.open(path, os.O_RDONLY)
    for _ in range(LEVELS):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + DESCRIPTORS, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_descriptors")
def test_a_deep_tree_is_removed_without_a_descriptor_for_each_level(tmp_path: Path) -> None:
    dig(tmp_path / "tree")
    try:
        remove_tree(tmp_path / "tree")
        assert not (tmp_path / "tree").exists()
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "tree")], check=True)


def test_directories_that_are_closed_to_us_are_removed() -> None:
    with tempfile.TemporaryDirectory() as folder:
        user = {}
        if os.geteuid() == 0:  # to whom nothing is closed
            os.chown(folder, SOMEBODY, SOMEBODY)
            user = {"user": SOMEBODY, "group": SOMEBODY}
        command = [sys.executable, "-P", "-c", CLOSED, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True, **user)  # type: ignore[call-overload]
        assert done.stdout == "False\n"


def test_of_a_link_the_link_is_removed(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "link").symlink_to("others")
    remove_tree(tmp_path / "link")
    assert os.listdir(tmp_path) == ["others"]


def test_without_programs_it_is_removed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no more processes may be made, say: the agent must not end by it."""
    (tmp_path / "tree" / "below").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
