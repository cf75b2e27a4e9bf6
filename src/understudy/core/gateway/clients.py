"""Rate limits per client: one flooding client must not use up what an app can take.

A token bucket in the form of the generic cell rate algorithm (ITU-T I.371): one number per client, the time
at which its bucket is full again.
"""

from __future__ import annotations

from understudy.wire.records import ClientRate


class ClientBuckets:
    """Buckets of the clients of one app at one gateway, the longest unused first. Bounded: those go first."""

    __slots__ = ("_clients_max", "_full_at", "rate")

    def __init__(self, rate: ClientRate, clients_max: int) -> None:
        self.rate = rate
        self._clients_max = clients_max
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def wait_s(self, client: str, now: float) -> float:
        """What `take` would say."""
        interval_s = 1 / self.rate.requests_per_s
        wait_s = self._full_at.get(client, now) + (1 - self.rate.burst) * interval_s - now
        return wait_s if wait_s > 1e-9 else 0.0

    def take(self, client: str, now: float) -> float:
        """0 if the client may go on, else the seconds until it may."""
        interval_s = 1 / self.rate.requests_per_s
        full_at = max(self._full_at.pop(client, now), now)
        wait_s = full_at + interval_s - now - self.rate.burst * interval_s
        if wait_s <= 1e-9:  # rounding
            full_at += interval_s
            wait_s = 0.0
        if len(self._full_at) >= self._clients_max:
            del self._full_at[next(iter(self._full_at))]
        self._full_at[client] = full_at
        return wait_s
