"""What others use of this machine, seen on real processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.adapters.neighbours import Neighbours

SPIN = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


@pytest.fixture
def neighbours() -> Iterator[Neighbours]:
    found = Neighbours()
    found.start()
    yield found
    found.stop()


def used_s(neighbours: Neighbours, seconds: float) -> float:
    """Processor seconds that are counted as ours in so much time, of one processor."""
    began = neighbours.ours_s()
    deadline_s = time.monotonic() + 30.0
    while neighbours.ours_s() - began < seconds and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return neighbours.ours_s() - began


def test_what_children_and_their_orphans_use_is_ours(neighbours: Neighbours) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', '''{SPIN}'''])",
        ],
        start_new_session=True,
    )
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    try:
        assert used_s(neighbours, 0.2) >= 0.2
        spinning = int(children.read_text().split()[0])
        parent.kill()
        parent.wait()
        assert used_s(neighbours, 0.2) >= 0.2, "it was known before its parent died"
    finally:
        parent.kill()
        subprocess.run(["kill", "-9", str(spinning)], check=False)


def test_a_share_is_a_part_of_the_whole(neighbours: Neighbours) -> None:
    began_s = time.monotonic()
    assert neighbours.share(began_s - 5.0, began_s - 4.0) == 0.0, "before the first look"
    subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)
    assert 0.0 <= neighbours.share(began_s, time.monotonic()) <= 1.0
