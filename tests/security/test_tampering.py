"""What `make` fetches is what the locks say, or it isn't installed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.wheels import write_wheel

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("tampered", [False, True])
def test_a_package_that_was_tampered_with_is_not_installed(tmp_path: Path, tampered: bool) -> None:
    lock(tmp_path, write_wheel(tmp_path / "wheels", "harmless"))
    if tampered:
        write_wheel(tmp_path / "wheels", "harmless", files={"harmless.py": "VERSION = 'tampered with'\n"})
    complaints = make_setup(tmp_path)
    assert bool(installed(tmp_path, "harmless")) is not tampered, complaints
    assert ("DO NOT MATCH THE HASHES" in complaints) is tampered


def test_a_package_that_is_in_no_lock_is_not_installed(tmp_path: Path) -> None:
    """As what another needs."""
    write_wheel(tmp_path / "wheels", "sneaky")
    lock(tmp_path, write_wheel(tmp_path / "wheels", "harmless", needs=("sneaky",)))
    complaints = make_setup(tmp_path)
    assert not installed(tmp_path, "sneaky")
    assert re.search("must have their versions pinned.*\n.*sneaky", complaints)


def lock(folder: Path, wheel: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "locks").mkdir()
    (folder / "locks" / "dev.txt").write_text(f"harmless==1.0 \\\n    --hash=sha256:{digest}\n")


def make_setup(folder: Path) -> str:
    """What it complains of: at the latest that nothing there can build the project."""
    for file in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "wheels")}
    command, environment = ["make", "setup"], {**os.environ, **pip}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert not (folder / ".venv" / ".stamp-dev").exists()
    return done.stderr


def installed(folder: Path, module: str) -> list[Path]:
    return [*folder.glob(f".venv/lib/*/site-packages/{module}.py")]
