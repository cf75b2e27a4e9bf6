"""The last good answer to the same input, for apps that opted in (`last-good` in their fallback chain).

Kept are answers of the full-size variant only, by a digest of the body as it came, so an input that is
written differently is a different input. Bounded by entries, bytes and age; what was asked for longest ago
goes first. Nothing is kept for a body so large that others would wait for its digest. Another version of the
app has another signature, perhaps, so it starts with nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from understudy.core.gateway.rotation import Request, Source
from understudy.settings.gateway import LastGoodSettings
from understudy.wire.frames import Buffer
from understudy.wire.messages import Result

REASON = "last-good"


class KeptAnswer(NamedTuple):
    source: Source
    result: Result
    body: bytes
    answered_at: float


class LastGood:
    """`bytes_held` counts bodies of answers; an entry costs some 500 bytes beside."""

    def __init__(self, settings: LastGoodSettings) -> None:
        self._settings = settings
        self._answers: dict[bytes, KeptAnswer] = {}  # the least recently given first
        self.bytes_held = 0

    def __len__(self) -> int:
        return len(self._answers)

    def keep(self, request: Request, source: Source, result: Result, body: Buffer, now: float) -> None:
        settings = self._settings
        if len(body) > settings.bytes_max:
            return
        key = request.digest()
        if not key:
            return
        self._drop(key)
        self._answers[key] = KeptAnswer(
            Source(source.variant, source.version, REASON), result, bytes(body), now
        )
        self.bytes_held += len(body)
        while len(self._answers) > settings.entries_max or self.bytes_held > settings.bytes_max:
            self._drop(next(iter(self._answers)))

    def find(self, request: Request, now: float) -> KeptAnswer | None:
        answer = self._answers.get(request.digest())
        if answer is None or now - answer.answered_at > self._settings.age_s_max:
            return None
        return answer

    def _drop(self, key: bytes) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self.bytes_held -= len(answer.body)
