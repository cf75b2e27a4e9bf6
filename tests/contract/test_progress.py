"""What a worker writes about its batches, and what can be read of a process that says nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from time import monotonic

from understudy.adapters.processes import is_frozen, process_stat
from understudy.adapters.progress import ProgressWriter, make_progress_file, progress_path, read_progress

HOLDS = """
import ctypes, sys, time
from understudy.adapters.progress import ProgressWriter, make_progress_file
writer = ProgressWriter()
writer.write_to(make_progress_file(sys.argv[1]))
writer.begin(3, time.monotonic(), 20.0)
ctypes.PyDLL(None).usleep(30_000_000)
"""


def writing_to(path: str) -> ProgressWriter:
    writer = ProgressWriter()
    writer.write_to(make_progress_file(path))
    return writer


def test_a_batch_can_be_followed_from_outside(tmp_path: Path) -> None:
    path = progress_path(str(tmp_path / "w-1.sock"))
    writer = writing_to(path)
    writer.end(proven=True)
    idle = read_progress(path)
    assert idle is not None
    assert idle.running_s is None
    assert idle.proven_ago_s is not None
    writer.begin(5, monotonic() - 2.0, 7.5)
    running = read_progress(path)
    assert running is not None
    assert running.running_s is not None
    assert 2.0 <= running.running_s < 3.0
    assert (running.rows, running.budget_s, running.ended) == (5, 7.5, idle.ended)
    writer.end(proven=False)
    after = read_progress(path)
    assert after is not None
    assert (after.running_s, after.ended) == (None, idle.ended + 1)
    assert after.proven_ago_s is not None
    assert after.proven_ago_s >= idle.proven_ago_s


def test_nothing_that_was_ever_succeeded_is_no_proof(tmp_path: Path) -> None:
    path = str(tmp_path / "w.progress")
    writing_to(path).end(proven=False)
    progress = read_progress(path)
    assert progress is not None
    assert progress.proven_ago_s is None


def test_a_file_that_is_missing_or_cut_is_no_progress(tmp_path: Path) -> None:
    assert read_progress(str(tmp_path / "none.progress")) is None
    (tmp_path / "cut.progress").write_bytes(b"123")
    assert read_progress(str(tmp_path / "cut.progress")) is None
    writing_to(str(tmp_path / "no" / "such" / "folder")).begin(1, 0.0, 0.0)


def test_a_process_that_holds_its_interpreters_lock_is_read_all_the_same(tmp_path: Path) -> None:
    path = str(tmp_path / "w.progress")
    with subprocess.Popen([sys.executable, "-c", HOLDS, path]) as child:
        try:
            due_s = monotonic() + 20.0
            while ((progress := read_progress(path)) is None or progress.running_s is None) and (
                monotonic() < due_s
            ):
                time.sleep(0.02)
            assert progress is not None
            assert (progress.rows, progress.budget_s) == (3, 20.0)
            stat = process_stat(child.pid)
            assert stat is not None
            assert not stat.stopped
            assert not is_frozen(child.pid)
            os.kill(child.pid, signal.SIGSTOP)
            while not ((stat := process_stat(child.pid)) and stat.stopped) and monotonic() < due_s:
                time.sleep(0.02)
            assert stat is not None
            assert stat.stopped
        finally:
            child.kill()
    assert process_stat(child.pid) is None
