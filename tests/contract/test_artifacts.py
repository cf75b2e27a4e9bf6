"""The artifact store and a node's local copies: nothing appears under a name that it doesn't hash to."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest

from understudy.adapters import artifacts
from understudy.adapters.artifacts import DirectoryStore, LocalArtifacts
from understudy.wire.errors import Code, InvalidArgument, UnderstudyError
from understudy.wire.records import ArtifactRef

CONTENT = b"a model" * 300_000  # more than one chunk
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def local(tmp_path: Path, store: DirectoryStore) -> LocalArtifacts:
    return LocalArtifacts(tmp_path / "local", store, 10_000_000)


def put(store: DirectoryStore, content: bytes) -> ArtifactRef:
    digest = hashlib.sha256(content).hexdigest()
    store.put(digest, io.BytesIO(content))
    return ArtifactRef(digest, len(content), "model.onnx")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_what_was_put_can_be_opened(store: DirectoryStore) -> None:
    put(store, CONTENT)
    assert store.has(DIGEST)
    store.verify(DIGEST)
    with store.open(DIGEST) as file:
        assert file.read() == CONTENT


def test_putting_twice_changes_nothing(store: DirectoryStore) -> None:
    put(store, CONTENT)
    put(store, CONTENT)
    store.verify(DIGEST)


def test_content_that_is_not_what_was_announced_is_refused(store: DirectoryStore, tmp_path: Path) -> None:
    with pytest.raises(UnderstudyError) as caught:
        store.put(DIGEST, io.BytesIO(CONTENT + b"!"))
    assert caught.value.code is Code.ARTIFACT_CORRUPT
    assert not store.has(DIGEST)
    assert files(tmp_path / "store") == []


def test_an_upload_that_breaks_off_leaves_nothing(store: DirectoryStore, tmp_path: Path) -> None:
    def broken_upload() -> None:
        with store.upload(DIGEST) as upload:
            upload.write(CONTENT[:1000])
            raise ConnectionError("the client went away")

    with pytest.raises(ConnectionError):
        broken_upload()
    assert not store.has(DIGEST)
    assert files(tmp_path / "store") == []


def test_what_is_missing_or_damaged_is_told_apart(store: DirectoryStore) -> None:
    for ask in (store.open, store.verify):
        with pytest.raises(UnderstudyError) as caught:
            ask(DIGEST)
        assert caught.value.code is Code.ARTIFACT_MISSING
    put(store, CONTENT)
    damage(store.path(DIGEST))
    with pytest.raises(UnderstudyError) as caught:
        store.verify(DIGEST)
    assert caught.value.code is Code.ARTIFACT_CORRUPT


def damage(path: Path) -> None:
    """Later than the copy was made, by the clock of the file system, which may tick in milliseconds."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    made_ns = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == made_ns:
        path.write_bytes(content)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", DIGEST.upper(), DIGEST + "0", DIGEST[:-1] + "/"])
def test_a_name_that_is_no_digest_never_becomes_a_path(store: DirectoryStore, digest: str) -> None:
    with pytest.raises(InvalidArgument, match="no digest"):
        store.has(digest)


def test_a_staged_copy_is_verified_and_refetched_when_damaged(
    store: DirectoryStore, local: LocalArtifacts
) -> None:
    ref = put(store, CONTENT)
    with pytest.raises(UnderstudyError) as caught:
        local.verify(DIGEST)
    assert caught.value.code is Code.ARTIFACT_MISSING
    local.stage(ref, {DIGEST})
    assert local.verify(DIGEST).read_bytes() == CONTENT
    damage(local.path(DIGEST))
    with pytest.raises(UnderstudyError) as caught:
        local.verify(DIGEST)
    assert caught.value.code is Code.ARTIFACT_CORRUPT
    assert local.digests() == [], "a damaged copy is deleted"
    local.stage(ref, {DIGEST})
    local.verify(DIGEST)


def test_a_copy_is_hashed_again_only_when_it_was_touched(
    store: DirectoryStore, local: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = put(store, CONTENT)
    local.stage(ref, {DIGEST})
    copy = local.path(DIGEST)
    before = copy.stat()
    damage(copy)
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had happened
    with pytest.raises(UnderstudyError) as caught:
        local.verify(DIGEST)
    assert caught.value.code is Code.ARTIFACT_CORRUPT
    local.stage(ref, {DIGEST})
    monkeypatch.setattr(artifacts, "digest_of", lambda file: pytest.fail("it was hashed once more"))
    assert local.verify(DIGEST) == copy


def test_a_damaged_store_is_never_copied(
    store: DirectoryStore, local: LocalArtifacts, tmp_path: Path
) -> None:
    ref = put(store, CONTENT)
    damage(store.path(DIGEST))
    with pytest.raises(UnderstudyError) as caught:
        local.stage(ref, {DIGEST})
    assert caught.value.code is Code.ARTIFACT_CORRUPT
    assert files(tmp_path / "local") == []


def test_copies_make_room_but_never_for_what_is_kept(store: DirectoryStore, tmp_path: Path) -> None:
    refs = [put(store, bytes([n]) * 1000) for n in range(4)]
    local = LocalArtifacts(tmp_path / "local", store, 2500)
    kept = {refs[0].digest}
    assert local.stage(refs[0], kept) == []
    assert local.stage(refs[1], kept) == []
    assert local.stage(refs[2], kept) == [refs[1].digest]
    assert local.digests() == sorted([refs[0].digest, refs[2].digest])
    with pytest.raises(UnderstudyError) as caught:
        local.stage(refs[3], {refs[0].digest, refs[2].digest})
    assert caught.value.code is Code.TOO_LARGE


def test_what_a_former_life_left_half_written_is_swept_away(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / ".partial-abc").write_bytes(b"half")
    assert LocalArtifacts(tmp_path / "local", store, 1000).digests() == []
    assert files(tmp_path / "local") == []
