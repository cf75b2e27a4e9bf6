"""A disk of its own for a folder: small, and full when a test wants that."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[Path]:
    """Mount it at `folder`. Where mounting isn't permitted the test is skipped, but never in CI."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "understudy-test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        refusal = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        refusal = str(error)
    if refusal:
        assert not os.environ.get("CI"), f"a small disk can't be mounted: {refusal}"
        pytest.skip(f"mounting a small disk needs root: {refusal}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all of the disk's room; delete the file to give it back."""
    junk = folder / "junk"
    with contextlib.suppress(OSError), junk.open("wb", buffering=0) as file:
        while file.write(bytes(65536)) == 65536:
            pass
    return junk
