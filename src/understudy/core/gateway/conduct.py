"""Whose fault a failed request is: its own, a replica's, or that of a variant of a version.

A model that says that the input is bad never comes here: that is an answer. Any other failure is judged when
the request has ended, by who else had it:

- A replica's, if an equal one (same variant, same version) answered the same request: `breaker.failed`.
- Else it speaks against the variant only together with other requests. `Conduct` counts, per variant of a
  version, different requests (by digest) that failed in a row, with no answer to anybody in between.
- What fails at equal replicas alike speaks against neither of them.

A variant is convicted, and the breakers of its replicas open, when at least `consecutive_failures` different
requests failed in a row and that is no coincidence:

- It has answered nobody yet, and its predecessor failed nobody, or significantly fewer (`evidence`).
- Or it is significant against its own record.
- Or it has gone on for a whole `window_s`: a short record proves little, but users wait.

Or when, against its predecessor, a share of `failure_fraction` and significantly more different requests
fail, of more than one client.

**One client's bad data is one voice.** If another client was heard within `window_s`, a finding has to stand
without whichever client failed most: two failures of others at least, and significance by theirs alone. With
one client alone its different requests are all there is, and nobody else's answers change.

The success path counts one integer.
"""

from __future__ import annotations

import hashlib
from collections import Counter

from understudy.core.evidence import Tally, fails_more
from understudy.settings.gateway import BreakerSettings
from understudy.wire.frames import Buffer

ALPHA = 0.01  # of comparisons with a predecessor: there is one, from the version's first request on
ALPHA_SCANNED = 1e-6  # of those with its own record, which begin anew with each failure after an answer
OTHERS_MIN = 2  # failures by other clients than the one with most of them
DIFFERENT_MAX = 256  # requests remembered of a run, and clients of a variant
SAMPLE_BYTES_MAX = 64 * 1024  # of a request that was answered, kept for comparison
DIGEST_BYTES = 16
DIGESTED_BYTES_MAX = 64 * 1024  # of a body: of a larger one slices of it, and its length
SLICES = 16


class Clients:
    """Which two clients of an app were heard last, and when: enough to tell whether one is alone."""

    __slots__ = ("_at", "_former", "_former_at", "_newest")

    def __init__(self) -> None:
        self._newest: str | None = None
        self._former: str | None = None
        self._at = self._former_at = 0.0

    def heard(self, client: str, now: float) -> None:
        if client != self._newest:
            self._former, self._former_at = self._newest, self._at
            self._newest = client
        self._at = now

    def other_than(self, client: str, since: float) -> bool:
        """Has anybody else been heard `since`?"""
        if self._newest not in (None, client):
            return self._at >= since
        return self._former is not None and self._former_at >= since


class Conduct:
    """Of one variant of a version, at all its replicas, as long as it is known."""

    __slots__ = (
        "_answered_then",
        "_by_client",
        "_run",
        "_run_began",
        "_sample",
        "_settings",
        "answered",
        "failed",
    )

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self.answered = 0
        self.failed = 0  # different requests, among those that failed in a row
        self._answered_then = 0  # before this run of failures
        self._run: dict[bytes, str] = {}  # digest -> client
        self._run_began = 0.0
        self._by_client: Counter[str] = Counter()
        self._sample: Buffer = b""

    def answered_sample(self, body: Buffer) -> None:
        """One of the requests that it answered: should it fail the same one later, that isn't bad."""
        if len(body) <= SAMPLE_BYTES_MAX:
            self._sample = body

    def answered_before(self, body: Buffer) -> bool:
        return len(body) == len(self._sample) and body == self._sample

    @property
    def well(self) -> bool:
        """It answers others, so what it fails may be let go as that request's own."""
        in_a_row = len(self._run) if self.answered == self._answered_then else 0
        return self.answered > 0 and in_a_row < self._settings.consecutive_failures

    @property
    def tally(self) -> Tally:
        return Tally(self.failed, self.answered + self.failed)

    def failed_one(self, digest: bytes, client: str, now: float, *, alone: bool, former: Tally) -> bool:
        """A request failed everywhere, or was answered by none of its equals. True: the variant is guilty.

        `alone`: no other client was heard of late. `former`: the record of the version before this one.
        """
        if self.answered != self._answered_then or not self._run:
            self._answered_then = self.answered
            self._run.clear()
            self._run_began = now
        if digest not in self._run and len(self._run) < DIFFERENT_MAX:
            self._run[digest] = client
            self.failed += 1
            if client in self._by_client or len(self._by_client) < DIFFERENT_MAX:
                self._by_client[client] += 1
        if not (self._fails_all(now, alone, former) or self._fails_more(former)):
            return False
        self._run.clear()
        return True

    def _fails_all(self, now: float, alone: bool, former: Tally) -> bool:
        voices = len(self._run)
        if voices < self._settings.consecutive_failures:
            return False
        by_client = Counter(self._run.values())
        if not alone or len(by_client) > 1:
            voices -= max(by_client.values())
            if voices < OTHERS_MIN:
                return False
        lately = Tally(voices, voices)
        if now - self._run_began >= self._settings.window_s:
            return True
        if not self.answered:
            return not former.failed or fails_more(lately, former, ALPHA)
        before = Tally(self.failed - len(self._run), self.answered + self.failed - len(self._run))
        return fails_more(lately, before, ALPHA_SCANNED)

    def _fails_more(self, former: Tally) -> bool:
        if len(self._by_client) < 2:
            return False
        loudest = max(self._by_client.values())
        without = Tally(self.failed - loudest, self.answered + self.failed - loudest)
        enough = without.asked >= self._settings.calls_min and (
            without.share >= self._settings.failure_fraction
        )
        return enough and fails_more(without, former, ALPHA)


class Conducts:
    """Of one app: each variant of the versions that it was served by last, and its clients."""

    VERSIONS_MAX = 3  # the current one, its predecessor, and one that is being deployed

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self.clients = Clients()
        self._of: dict[tuple[int, str], Conduct] = {}

    def of(self, version: int, variant: str) -> Conduct:
        known = self._of.get((version, variant))
        if known is None:
            known = self._of[version, variant] = Conduct(self._settings)
            versions = sorted({v for v, _ in self._of})[: -self.VERSIONS_MAX]
            for key in [key for key in self._of if key[0] in versions]:
                del self._of[key]
        return known

    def judge(self, version: int, variant: str, digest: bytes, client: str, now: float) -> bool:
        """A request of `client` failed, and no equal answered it. True: `variant` is guilty."""
        alone = not self.clients.other_than(client, now - self._settings.window_s)
        conduct = self.of(version, variant)
        return conduct.failed_one(digest, client, now, alone=alone, former=self._before(version))

    def _before(self, version: int) -> Tally:
        former = max((v for v, _ in self._of if v < version), default=None)
        return sum((c.tally for (v, _), c in self._of.items() if v == former), Tally(0, 0))


def digest_of(body: Buffer) -> bytes:
    """The same for the same bytes. Of large bodies some slices and the length: never slow."""
    view = memoryview(body)
    digest = hashlib.blake2b(len(view).to_bytes(8, "big"), digest_size=DIGEST_BYTES)
    if len(view) <= DIGESTED_BYTES_MAX:
        digest.update(view)
    else:
        size, step = DIGESTED_BYTES_MAX // SLICES, len(view) // SLICES
        for number in range(SLICES):
            digest.update(view[number * step : number * step + size])
        digest.update(view[-size:])
    return digest.digest()
