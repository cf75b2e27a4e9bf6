"""What is remembered across a death: whole or not at all, and what was wrong is said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from understudy.adapters.state_file import StateFile


class Memory(msgspec.Struct):
    number: int


def test_what_was_saved_last_is_loaded(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "new" / "state", Memory)
    assert file.load() == (None, "")
    file.save(Memory(1))
    file.save(Memory(2))
    assert file.load() == (Memory(2), "")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["state"]


def test_file_and_directory_are_synced_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    StateFile(tmp_path / "state", Memory).save(Memory(1))
    assert synced == ["state.partial", tmp_path.name]


@pytest.mark.parametrize("damage", [lambda data: data[:-1] + b"?", lambda data: data[:40], lambda data: b""])
def test_a_damaged_file_is_moved_aside_and_said_so(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = StateFile(tmp_path / "state", Memory)
    file.save(Memory(1))
    file.path.write_bytes(damage(file.path.read_bytes()))
    value, problem = file.load()
    assert value is None
    assert "damaged" in problem
    assert file.load() == (None, "")
    assert (tmp_path / "state.damaged").exists()


def test_what_another_version_wrote_is_moved_aside_and_said_so(tmp_path: Path) -> None:
    StateFile(tmp_path / "state", str).save("of a future version")
    value, problem = StateFile(tmp_path / "state", Memory).load()
    assert value is None
    assert "not readable by this version" in problem
