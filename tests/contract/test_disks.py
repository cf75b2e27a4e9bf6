"""What a small disk makes of copies, stores and logs; and what is whose fault."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import sys
import tarfile
import time
from pathlib import Path

import pytest
from small_disks import fill, small_disk

from understudy.adapters.archives import unpack
from understudy.adapters.artifacts import DirectoryStore, LocalArtifacts
from understudy.adapters.disks import DiskRoom, DiskWatch, is_place_trouble
from understudy.controller.uploads import Uploads
from understudy.local.processes import RoleProcess
from understudy.settings.controller import ControllerTuning
from understudy.settings.places import DiskSettings, LogSettings
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import ArtifactRef

MIB = 1024 * 1024


def put(store: DirectoryStore, number: int, size_bytes: int = 2 * MIB) -> ArtifactRef:
    content = bytes([number]) * size_bytes
    digest = hashlib.sha256(content).hexdigest()
    store.put(digest, io.BytesIO(content))
    return ArtifactRef(digest, size_bytes, f"{number}.onnx")


def test_copies_that_nobody_wants_go_when_the_disk_is_short_the_longest_unused_first(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    refs = [put(store, number) for number in range(8)]
    with small_disk(tmp_path / "disk", 10) as disk:
        local = LocalArtifacts(disk, store, 2**40)
        wanted = refs[0].digest
        gone = [local.stage(ref, {wanted, ref.digest}) for ref in refs[:3]]
        local.verify(refs[1].digest)  # used again
        gone += [local.stage(ref, {wanted, ref.digest}) for ref in refs[3:]]
        assert gone[3:6] == [[], [refs[2].digest], [refs[1].digest]]
        assert {wanted, refs[7].digest} < set(local.digests())
        assert not DiskRoom.of(disk).lacks_bytes(DiskSettings()), "some room is left"


def test_a_disk_full_of_what_is_wanted_is_the_places_trouble_and_loses_nothing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    refs = [put(store, number) for number in range(3)]
    with small_disk(tmp_path / "disk", 5) as disk:
        local = LocalArtifacts(disk, store, 2**40)
        keep = {ref.digest for ref in refs}
        for ref in refs[:2]:
            local.stage(ref, keep)
        with pytest.raises(UnderstudyError) as caught:
            local.stage(refs[2], keep)
        assert caught.value.code is Code.UNAVAILABLE
        assert "No space left" in caught.value.message
        assert local.digests() == sorted(ref.digest for ref in refs[:2])
        assert len(list(disk.iterdir())) == 2, "nothing half-written is left"


def test_what_a_full_disk_keeps_from_being_unpacked_is_no_fault_of_the_artifact(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    (tmp_path / "model.py").write_bytes(bytes(300_000))
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "model.py", "model.py")
    with small_disk(tmp_path / "disk", 1) as disk:
        fill(disk)
        with pytest.raises(UnderstudyError) as caught:
            unpack(archive, disk / "replica")
        assert caught.value.code is Code.UNAVAILABLE


def test_a_disk_is_told_of_before_it_is_full_and_when_it_is_well_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 10) as disk:
        watch = DiskWatch(disk, DiskSettings(free_fraction=0.3))
        assert watch.look() is None
        (disk / "half").write_bytes(bytes(8 * MIB))
        told = watch.look()
        assert told is not None
        assert (told[0], watch.trouble) == ("disk.filling", "")
        assert "2 of 10 MB free" in told[1]
        assert watch.look() is None, "told once"
        junk = fill(disk)
        assert watch.look() is None
        assert "is full" in watch.trouble
        junk.unlink()
        (disk / "half").unlink()
        told = watch.look()
        assert told is not None
        assert (told[0], watch.problem, watch.trouble) == ("disk.cleared", "", "")


def test_much_room_is_enough_however_large_the_disk() -> None:
    room = DiskRoom("/data", 10_000_000 * MIB, 3000 * MIB)
    assert not room.lacks_bytes(DiskSettings(free_mb=2048))
    assert room.lacks_bytes(DiskSettings(free_mb=4096)) == 1096 * MIB


@pytest.mark.parametrize(
    ("number", "place"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, True), (errno.EROFS, True), (errno.EMFILE, True),
     (errno.ENOMEM, True), (errno.ENOENT, False), (errno.ENAMETOOLONG, False)],
)  # fmt: skip
def test_which_errors_are_the_places(number: int, place: bool) -> None:
    error = OSError(number, os.strerror(number))
    assert is_place_trouble(error) is place
    wrapped = UnderstudyError(Code.LOAD_FAILED, "the model raised")
    wrapped.__cause__ = error
    assert is_place_trouble(wrapped) is place, "also where a model wrapped it"


def test_what_nothing_needs_is_collected_after_a_while(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    needed, asked_for, old, fresh = (put(store, number, 1000) for number in range(4))
    partial = store.path(old.digest).parent / ".partial-abc"
    stranger = store.path(old.digest).parent / "README"
    for path in (partial, stranger):
        path.write_bytes(b"x" * 10)
    long_ago = time.time() - 1000
    for path in (tmp_path / "store").glob("*/*"):
        if path.name != fresh.digest:
            os.utime(path, (long_ago, long_ago))
    store.touch(asked_for.digest)
    assert store.collect({needed.digest}, time.time() - 500) == (2, 1010)
    assert [store.has(ref.digest) for ref in (needed, asked_for, old, fresh)] == [True, True, False, True]
    assert not partial.exists()
    assert stranger.exists(), "not ours"
    store.touch(old.digest)
    assert not store.has(old.digest)


def test_uploads_beyond_the_quota_or_the_disk_are_refused_at_once(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4) as disk:
        store = DirectoryStore(disk / "store")
        put(store, 1, MIB)
        for quota_bytes, code, words in (
            (2 * MIB, Code.TOO_LARGE, "raise controller.artifacts_bytes_max"),
            (2**40, Code.UNAVAILABLE, "no room"),
        ):
            uploads = Uploads(store, ControllerTuning(artifacts_bytes_max=quota_bytes))
            with pytest.raises(UnderstudyError) as caught:
                uploads.check_room(5 * MIB)
            assert caught.value.code is code
            assert words in caught.value.message


def test_a_log_is_bounded_while_it_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "agent-n1.log"
    role = RoleProcess("agent", "n1", [sys.executable], path, LogSettings(bytes_max=1000, file_count=3))
    with path.open("ab", buffering=0) as writer:  # as a role holds it, for all of its life
        for number in range(40):
            writer.write(f"{number:03} {'x' * 95}\n".encode())
            role.rotate_log()
        writer.write(b"last\n")
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes.keys() == {"agent-n1.log", "agent-n1.log.1", "agent-n1.log.2"}
    assert max(sizes.values()) <= 1100
    assert path.read_text().endswith("last\n")
    newest = [int(line[:3]) for file in sorted(tmp_path.iterdir(), reverse=True)
              for line in file.read_text().splitlines() if line[:3].isdigit()]  # fmt: skip
    assert newest == sorted(newest), "older lines are in older files"


def test_a_log_on_a_full_disk_is_cut_off_rather_than_kept(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        path = disk / "agent-n1.log"
        role = RoleProcess("agent", "n1", [sys.executable], path, LogSettings(bytes_max=1000))
        path.write_bytes(b"x" * 500_000)
        fill(disk)
        role.rotate_log()
        assert path.stat().st_size == 0
