"""What a node keeps of artifacts beside their files."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from understudy.adapters.artifacts import DirectoryStore, LocalArtifacts
from understudy.adapters.sandbox.walls import Walls
from understudy.agent.rooms import Rooms
from understudy.agent.staging import Staging
from understudy.core.agent.events import ArtifactStaged, Event
from understudy.wire.records import ArtifactRef


async def _nothing() -> bool:
    return False


def _stored(store: DirectoryStore, content: bytes) -> ArtifactRef:
    digest = hashlib.sha256(content).hexdigest()
    with store.upload(digest) as upload:
        upload.write(content)
        upload.commit()
    return ArtifactRef(digest, len(content), "model.onnx")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def test_an_artifact_is_staged_once_however_many_want_it_and_nothing_of_it_is_kept_in_memory(
    store: DirectoryStore, tmp_path: Path
) -> None:
    said: list[Event] = []
    copies = LocalArtifacts(tmp_path / "copies", store, 100)
    staging = Staging(copies, Rooms(tmp_path, Walls()), said.append, lambda *_: None, _nothing)
    refs = [_stored(store, bytes([number]) * 60) for number in range(5)]

    async def provide() -> None:
        for ref in refs:
            await asyncio.gather(*(staging.provide(ref, f"r{number}") for number in range(3)))
            for number in range(3):
                staging.let_go(f"r{number}")

    asyncio.run(provide())
    assert [event for event in said if isinstance(event, ArtifactStaged)] == [
        ArtifactStaged(ref.digest) for ref in refs
    ]
    assert len(staging._locks) == 0
