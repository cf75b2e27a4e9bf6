"""A library that is older than our metadata demands is named before a role starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.adapters.libraries import first_outdated

CLUSTER = """name = "c"
data_dir = "data"
[[controllers]]
name = "c1"
[[nodes]]
name = "n1"
memory_mb = 100
"""


def install(folder: Path, name: str, version: str) -> None:
    """Whatever is imported goes on being the other one."""
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_what_is_installed_here_is_new_enough() -> None:
    assert first_outdated("onnx", "controller", "auth", "grpc") is None


@pytest.mark.parametrize(
    ("name", "version", "told"),
    [
        ("msgspec", "0.9.2", "msgspec is 0.9.2 here, and Understudy needs 0.21.1 or newer"),
        ("litestar", "2.9", "litestar is 2.9 here, and Understudy needs 2.23 or newer"),
    ],
)
@pytest.mark.parametrize("command", [["up"], ["controller", "c1", "--cluster"]], ids=["up", "role"])
def test_an_old_library_ends_the_start(
    tmp_path: Path, name: str, version: str, told: str, command: list[str]
) -> None:
    install(tmp_path / "old", name, version)
    file = tmp_path / "CLUSTER.toml"
    file.write_text(CLUSTER)
    done = subprocess.run(
        [sys.executable, "-m", "understudy", *command, str(file)],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "old")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    least = told.split()[-3]
    assert f"-m pip install '{name}>={least}'" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("extra", "found"), [("auth", ("pyjwt", "2.3", "2.15")), ("grpc", None)])
def test_what_nobody_uses_may_be_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str, found: tuple[str, str, str] | None
) -> None:
    install(tmp_path, "pyjwt", "2.3")
    monkeypatch.syspath_prepend(tmp_path)
    assert first_outdated(extra) == found


def test_releases_are_compared_as_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "uvloop", "0.100.0+local1")
    monkeypatch.syspath_prepend(tmp_path)
    assert first_outdated() is None
