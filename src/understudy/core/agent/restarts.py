"""When a crashed replica is started again, and whose fault a crash is.

The first restart is at once: most crashes are single. Then the delay doubles. A variant that crashes too
often within a window is paused on this node, each time for longer, and tried again: what was wrong may have
ended. A node knows only itself, so this is no verdict on the variant anywhere else; nor is it one at all
where the place is at fault, or where we ended the worker ourselves: then it only backs off.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from understudy.settings.agent import AgentTuning
from understudy.wire.errors import Code
from understudy.wire.records import VariantKey

CRASHES_REMEMBERED_MIN = 32  # per variant; enough for the delay to reach its maximum


class Blame(StrEnum):
    """Whose failure it is, as far as one node can tell."""

    VARIANT = "variant"
    PLACE = "place"
    NOBODY = "nobody"


# Failures to load that say nothing about the variant; all others are its own.
_PLACE = frozenset({Code.ARTIFACT_MISSING, Code.ARTIFACT_CORRUPT, Code.TOO_LARGE, Code.UNAVAILABLE})
_NOBODY = frozenset({Code.LINK_LOST, Code.DRAINING, Code.CANCELLED})


def blame(code: Code) -> Blame:
    if code in _PLACE:
        return Blame.PLACE
    return Blame.NOBODY if code in _NOBODY else Blame.VARIANT


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a replica lost its worker. `jitter`: as in `CrashHistory.note`."""

    reason: str
    jitter: float
    whose: Blame
    traceback: str = ""  # of the model's own code


class _Crash(NamedTuple):
    at: float
    whose: Blame
    worker: str


@dataclass(slots=True)
class Loop:
    """A variant that crashes again and again here."""

    pauses: int = 0  # so far
    retry_at_s: float = 0.0
    loaded_s: float = -math.inf  # when it was loaded last; from then on it isn't reported
    known: bool = False  # a controller has quarantined it


class CrashHistory:
    """Crashes per variant within the window, and the variants that are paused on this node."""

    def __init__(self, tuning: AgentTuning) -> None:
        self._tuning = tuning
        self._window_s = tuning.crash_loop_window_s
        self._crashes: dict[VariantKey, deque[_Crash]] = {}
        self._loops: dict[VariantKey, Loop] = {}

    @property
    def looping(self) -> tuple[VariantKey, ...]:
        """Variants that crash again and again here, on trial or not; until they are loaded."""
        return tuple(sorted(key for key, loop in self._loops.items() if loop.loaded_s == -math.inf))

    def paused(self, now: float) -> tuple[VariantKey, ...]:
        """Those of them that are not to be started now."""
        return tuple(sorted(key for key, loop in self._loops.items() if loop.retry_at_s > now))

    def pause_left_s(self, key: VariantKey, now: float) -> float:
        loop = self._loops.get(key)
        return max(loop.retry_at_s - now, 0.0) if loop is not None else 0.0

    def due_s(self, now: float) -> float:
        """When the next pause is over."""
        waiting = (loop.retry_at_s for loop in self._loops.values() if loop.retry_at_s > now)
        return min(waiting, default=math.inf)

    def note(
        self, key: VariantKey, now: float, jitter: float, whose: Blame = Blame.VARIANT, worker: str = ""
    ) -> float | None:
        """Count a crash. Seconds to wait before the next start; None: the variant is paused.

        `jitter` is a random number in [-1, 1].
        """
        remembered = max(self._tuning.crash_loop_count, CRASHES_REMEMBERED_MIN)
        crashes = self._crashes.setdefault(key, deque(maxlen=remembered))
        crashes.append(_Crash(now, whose, worker))
        while crashes[0].at < now - self._window_s:
            crashes.popleft()
        if whose is Blame.VARIANT:
            loop = self._loops.get(key)
            if loop is not None and -math.inf < loop.loaded_s < now - self._pause_s(loop):
                del self._loops[key]  # it was well for longer than it had to wait: this is another story
                loop = None
            own = sum(crash.whose is Blame.VARIANT for crash in crashes)
            if loop is not None or own >= self._tuning.crash_loop_count:
                self._pause(key, now)
                return None
        return self.delay_s(len(crashes), jitter)

    def excuse(self, workers: Collection[str]) -> frozenset[VariantKey]:
        """Forget the crashes of these workers, and a first pause that they alone were the reason of.

        The variants whose crashes they were.
        """
        touched = set()
        for key, crashes in self._crashes.items():
            left = [crash for crash in crashes if crash.worker not in workers]
            if len(left) == len(crashes):
                continue
            touched.add(key)
            crashes.clear()
            crashes.extend(left)
            loop = self._loops.get(key)
            own = sum(crash.whose is Blame.VARIANT for crash in left)
            if loop is not None and loop.pauses == 1 and own < self._tuning.crash_loop_count:
                del self._loops[key]
        return frozenset(touched)

    def _pause(self, key: VariantKey, now: float) -> None:
        loop = self._loops.setdefault(key, Loop())
        if loop.retry_at_s > now:
            return  # another of its replicas
        loop.pauses += 1
        loop.retry_at_s = now + self._pause_s(loop)
        loop.loaded_s = -math.inf

    def _pause_s(self, loop: Loop) -> float:
        """Length of its present or last pause."""
        doubled_s = self._tuning.crash_loop_pause_s * 2.0 ** min(loop.pauses - 1, 32)
        return min(doubled_s, self._tuning.crash_loop_pause_s_max)

    def delay_s(self, crashes: int, jitter: float) -> float:
        """Back-off after `crashes` crashes in a row; `jitter` in [-1, 1] spreads it."""
        if crashes <= 1:
            return 0.0
        delay_ms = min(self._tuning.backoff_ms * 2.0 ** (crashes - 2), self._tuning.backoff_ms_max)
        return delay_ms / 1000 * (1 + jitter * self._tuning.backoff_jitter_fraction)

    def loaded(self, key: VariantKey, now: float) -> bool:
        """It answers. Whether that ends a loop; should it crash again soon, its pause will be longer."""
        loop = self._loops.get(key)
        if loop is None or loop.loaded_s > -math.inf:
            return False
        loop.loaded_s = now
        return True

    def acknowledge(self, listed: frozenset[VariantKey]) -> list[VariantKey]:
        """Take over the controller's list of quarantined variants; the variants that it has lifted."""
        lifted = [key for key, loop in self._loops.items() if loop.known and key not in listed]
        for key in lifted:
            del self._loops[key]
            self._crashes.pop(key, None)
        for key, loop in self._loops.items():
            loop.known = loop.known or key in listed
        return lifted
