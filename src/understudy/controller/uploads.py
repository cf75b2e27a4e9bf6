"""Receiving artifacts: streamed, bounded, verified, and on disk before the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from understudy.adapters.artifacts import CHUNK_BYTES, DirectoryStore, Upload, check_digest
from understudy.settings.controller import ControllerTuning
from understudy.wire.errors import Code, UnderstudyError


class Uploads:
    def __init__(self, artifacts: DirectoryStore, tuning: ControllerTuning) -> None:
        self._artifacts = artifacts
        self._bytes_max = tuning.upload_bytes_max
        self._quota_bytes = tuning.artifacts_bytes_max
        self._uploads_max = tuning.uploads_max
        self._running = 0

    def check_present(self, digest: str) -> None:
        """Raises NOT_FOUND or `InvalidArgument`."""
        if not self._artifacts.has(digest):
            raise UnderstudyError(Code.NOT_FOUND, "no such artifact", digest=check_digest(digest))
        self._artifacts.touch(digest)  # who asks is about to deploy it

    async def receive(self, digest: str, chunks: AsyncIterator[bytes], declared_bytes: int | None) -> int:
        """Store it; its size in bytes.

        Raises ARTIFACT_CORRUPT when the content is something else, TOO_LARGE, BUSY, or UNAVAILABLE when the
        disk is full or refuses. Nothing is left behind then.
        """
        if declared_bytes is not None:
            self._check_size(declared_bytes)
        if self._running >= self._uploads_max:
            raise UnderstudyError(Code.BUSY, "too many uploads at once; try again", uploads=self._running)
        self._running += 1
        try:
            await asyncio.to_thread(self.check_room, declared_bytes or 0)
            with await asyncio.to_thread(self._artifacts.upload, digest) as upload:
                await self._copy(upload, chunks)
                await asyncio.to_thread(upload.commit)
        except OSError as error:
            raise UnderstudyError(
                Code.UNAVAILABLE, f"the artifact can't be stored: {error.strerror}"
            ) from error
        finally:
            self._running -= 1
        return upload.size_bytes

    async def _copy(self, upload: Upload, chunks: AsyncIterator[bytes]) -> None:
        """In large pieces, each in a thread: disk and hashing must not hold up the loop."""
        waiting = bytearray()
        async for chunk in chunks:
            waiting += chunk
            if len(waiting) >= CHUNK_BYTES:
                self._check_size(upload.size_bytes + len(waiting))
                await asyncio.to_thread(upload.write, bytes(waiting))
                waiting.clear()
        self._check_size(upload.size_bytes + len(waiting))
        await asyncio.to_thread(upload.write, bytes(waiting))

    def check_room(self, size_bytes: int) -> None:
        """Raises TOO_LARGE or UNAVAILABLE; blocks."""
        used_bytes, quota_bytes = self._artifacts.size_bytes(), self._quota_bytes
        if used_bytes + size_bytes > quota_bytes:
            raise UnderstudyError(
                Code.TOO_LARGE,
                "no room for the artifact: raise controller.artifacts_bytes_max, or remove apps; what they "
                "leave is deleted after controller.artifact_grace_s",
                used_bytes=used_bytes,
                size_bytes=size_bytes,
                artifacts_bytes_max=quota_bytes,
            )
        free_bytes = self._artifacts.free_bytes()
        if size_bytes > free_bytes:
            raise UnderstudyError(
                Code.UNAVAILABLE,
                "the disk of the artifact store has no room for it",
                size_bytes=size_bytes,
                free_bytes=free_bytes,
            )

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._bytes_max:
            raise UnderstudyError(
                Code.TOO_LARGE,
                "the artifact is larger than controller.upload_bytes_max",
                upload_bytes_max=self._bytes_max,
            )
