"""What becomes of tests that fail while others use the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = """
import sys
sys.path.insert(0, {root!r})
from tests import busy_machine

class Neighbours:
    def start(self): pass
    def stop(self): pass
    def share(self, start_s, end_s): return {share}

busy_machine.Neighbours = Neighbours

def pytest_configure(config):
    config.pluginmanager.register(busy_machine.BusyMachine(("integration",), may_skip={may_skip}))
"""
TESTS = """
from pathlib import Path

import pytest

TRIES = Path(__file__).with_name("tries")

@pytest.fixture(scope="module")
def cluster():
    with TRIES.open("a") as file:
        file.write("cluster\\n")
    yield

def test_that_passes_the_third_time(cluster):
    assert TRIES.read_text().count("cluster") == 3

def test_that_never_passes(cluster):
    assert False
"""


@pytest.mark.parametrize(
    ("share", "may_skip", "summary"),
    [
        (0.6, True, "1 passed, 1 skipped"),
        (0.6, False, "1 failed, 1 passed"),
        (0.4, True, "2 failed"),
    ],
)
def test_a_failure_counts_unless_the_machine_was_busy(
    tmp_path: Path, share: float, may_skip: bool, summary: str
) -> None:
    folder = tmp_path / "integration"
    folder.mkdir()
    (tmp_path / "conftest.py").write_text(CONFTEST.format(root=str(ROOT), share=share, may_skip=may_skip))
    (folder / "test_it.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
    ]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert summary in done.stdout.splitlines()[-1], done.stdout + done.stderr
    if share >= 0.5:
        assert "too busy to tell" in done.stdout
