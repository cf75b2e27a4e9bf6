"""Latency quantiles of the recent past, cheap enough to update on every request.

A histogram with eight buckets to each power of two of microseconds (relative error below 12 %), over two
rotating windows, so that a quantile always covers between one and two windows of history.
"""

from __future__ import annotations

BUCKETS = 8 * 32  # up to about 2^32 us, more than an hour
WINDOW_S = 5.0


def bucket_of(latency_us: int) -> int:
    """Index of the bucket that holds `latency_us` (>= 0)."""
    if latency_us < 16:
        return max(latency_us, 0)
    shift = latency_us.bit_length() - 4
    return min((shift << 3) + (latency_us >> shift), BUCKETS - 1)


def upper_bound_us(bucket: int) -> int:
    """The largest latency that falls into `bucket`."""
    if bucket < 16:
        return bucket
    shift = (bucket >> 3) - 1
    return (((bucket & 7) + 9) << shift) - 1


class LatencyDigest:
    """`record` on each answer, `quantile` now and then."""

    __slots__ = ("_counts", "_previous", "_rotate_at", "samples")

    def __init__(self, now: float) -> None:
        self._counts = [0] * BUCKETS
        self._previous = [0] * BUCKETS
        self._rotate_at = now + WINDOW_S
        self.samples = 0  # in both windows

    def record(self, latency_s: float) -> None:
        self._counts[bucket_of(int(latency_s * 1e6))] += 1
        self.samples += 1

    def rotate(self, now: float) -> None:
        """Forget what is older than two windows. Call it on a timer, not per request."""
        if now < self._rotate_at:
            return
        self._rotate_at = now + WINDOW_S
        self._previous, self._counts = self._counts, [0] * BUCKETS
        self.samples = sum(self._previous)

    def quantile(self, q: float) -> float | None:
        """Upper bound of the `q`-quantile in seconds; None before the first sample."""
        if not self.samples:
            return None
        wanted = q * self.samples
        seen = 0
        for bucket in range(BUCKETS):
            seen += self._counts[bucket] + self._previous[bucket]
            if seen >= wanted and seen:
                return upper_bound_us(bucket) / 1e6
        return None
