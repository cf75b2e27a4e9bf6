"""When a crashed replica is started again, and when its variant is given up.

The first restart is at once: most crashes are single. Then the delay doubles. A variant that crashes too
often within a window is quarantined, before it takes more with it.
"""

from __future__ import annotations

from collections import deque

from understudy.settings.agent import AgentTuning

Key = tuple[str, int, str]  # app, version, variant

CRASHES_REMEMBERED_MIN = 32  # per variant; enough for the delay to reach its maximum


class CrashHistory:
    """Crashes per variant within the window, and the variants that this node has quarantined."""

    def __init__(self, tuning: AgentTuning) -> None:
        self._tuning = tuning
        self._window_s = tuning.crash_loop_window_s
        self._crashes: dict[Key, deque[tuple[float, bool]]] = {}  # when, and whether the variant is to blame
        self._quarantined: dict[Key, bool] = {}  # -> whether a controller has acknowledged it

    @property
    def quarantined(self) -> tuple[Key, ...]:
        return tuple(sorted(self._quarantined))

    def note(self, key: Key, now: float, jitter: float, *, blames_variant: bool = True) -> float | None:
        """Count a crash. Seconds to wait before the next start; None: the variant is quarantined.

        `jitter` is a random number in [-1, 1]. An end that isn't the variant's own, such as a store that
        can't be reached or a kill by this agent, only backs off.
        """
        remembered = max(self._tuning.crash_loop_count, CRASHES_REMEMBERED_MIN)
        crashes = self._crashes.setdefault(key, deque(maxlen=remembered))
        crashes.append((now, blames_variant))
        while crashes[0][0] < now - self._window_s:
            crashes.popleft()
        if sum(blamed for _, blamed in crashes) >= self._tuning.crash_loop_count:
            self._quarantined.setdefault(key, False)
            return None
        return self.delay_s(len(crashes), jitter)

    def delay_s(self, crashes: int, jitter: float) -> float:
        """Back-off after `crashes` crashes in a row; `jitter` in [-1, 1] spreads it."""
        if crashes <= 1:
            return 0.0
        delay_ms = min(self._tuning.backoff_ms * 2.0 ** (crashes - 2), self._tuning.backoff_ms_max)
        return delay_ms / 1000 * (1 + jitter * self._tuning.backoff_jitter_fraction)

    def acknowledge(self, listed: frozenset[Key]) -> list[Key]:
        """Take over the controller's list of quarantined variants; the variants that it has lifted."""
        lifted = [key for key, known in self._quarantined.items() if known and key not in listed]
        for key in lifted:
            del self._quarantined[key]
            self._crashes.pop(key, None)
        for key in self._quarantined:
            self._quarantined[key] = self._quarantined[key] or key in listed
        return lifted
