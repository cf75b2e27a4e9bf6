"""Which queued requests run together, when, and where: on the event loop or in the thread.

Lives here: the queue with its bound, the choice of a batch, the running estimate of how long a batch
takes. Does not live here: tensors and clocks. Rows are counted, keys compared, `now` is handed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import msgspec

from understudy.invariants import check

T = TypeVar("T")


class _Queued(msgspec.Struct, Generic[T], frozen=True, gc=False):
    serial: int
    item: T
    rows: int
    added_s: float
    size_bytes: int


class _Lane(Generic[T]):
    """Items of one key, oldest first."""

    __slots__ = ("queued", "rows")

    def __init__(self) -> None:
        self.queued: deque[_Queued[T]] = deque()
        self.rows = 0


class Batcher(Generic[T]):
    """A bounded queue that hands out batches of items with equal keys.

    A batch has `rows_max` rows at most (an item that is larger goes alone) and its oldest item waits
    `wait_s` at most for company. Batches leave in the order of their oldest items, except that a full one
    doesn't wait for the timer of an older one. `rows` and `size_bytes` count what is queued; what was taken
    is not.
    """

    __slots__ = (
        "_lanes", "_serial", "queue_bytes_max", "queue_rows_max", "rows", "rows_max", "size_bytes", "wait_s",
    )  # fmt: skip

    def __init__(
        self, rows_max: int, wait_s: float, queue_rows_max: int, queue_bytes_max: int = 2**62
    ) -> None:
        check(rows_max >= 1 and wait_s >= 0.0 and queue_rows_max >= 1, "a batcher's bounds are positive")
        self.rows_max = rows_max
        self.wait_s = wait_s
        self.queue_rows_max = queue_rows_max
        self.queue_bytes_max = queue_bytes_max
        self.rows = 0
        self.size_bytes = 0
        self._lanes: dict[Hashable, _Lane[T]] = {}
        self._serial = 0

    @property
    def is_full(self) -> bool:
        return self.rows >= self.queue_rows_max

    def add(self, item: T, rows: int, key: Hashable, now: float, size_bytes: int = 0) -> bool:
        """Queue `item`; False if it doesn't fit. An empty queue takes any item, however large."""
        if self.rows and (
            self.rows + rows > self.queue_rows_max or self.size_bytes + size_bytes > self.queue_bytes_max
        ):
            return False
        self._append(item, rows, key, now, size_bytes)
        return True

    def add_beyond_bound(self, item: T, rows: int, key: Hashable, now: float) -> None:
        """Queue `item` even when full. The caller has a bound of its own for these."""
        self._append(item, rows, key, now)

    def take(self, now: float) -> list[T]:
        """The next batch that is due, in order of arrival; empty if nothing is."""
        lanes = self._lanes
        due: tuple[Hashable, _Lane[T]] | None = None
        for key, lane in lanes.items():
            oldest = lane.queued[0]
            if now - oldest.added_s < self.wait_s and not self._is_full(lane):
                continue
            if due is None or oldest.serial < due[1].queued[0].serial:
                due = key, lane
        if due is None:
            return []
        return self._take_from(*due)

    def wake_s(self) -> float | None:
        """When `take` may next return something, on the clock of `now`. None: not before the next add."""
        if not self._lanes:
            return None
        if any(self._is_full(lane) for lane in self._lanes.values()):
            return 0.0
        return min(lane.queued[0].added_s for lane in self._lanes.values()) + self.wait_s

    def remove(self, match: Callable[[T], bool]) -> list[T]:
        """Take out and return every queued item that `match` is true for. O(queued items)."""
        removed: list[T] = []
        for key, lane in list(self._lanes.items()):
            kept: deque[_Queued[T]] = deque()
            for queued in lane.queued:
                if match(queued.item):
                    removed.append(queued.item)
                    lane.rows -= queued.rows
                    self.rows -= queued.rows
                    self.size_bytes -= queued.size_bytes
                else:
                    kept.append(queued)
            lane.queued = kept
            if not kept:
                del self._lanes[key]
        return removed

    def _append(self, item: T, rows: int, key: Hashable, now: float, size_bytes: int = 0) -> None:
        check(rows >= 1, "an item has at least one row")
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        self._serial += 1
        lane.queued.append(_Queued(self._serial, item, rows, now, size_bytes))
        lane.rows += rows
        self.rows += rows
        self.size_bytes += size_bytes

    def _is_full(self, lane: _Lane[T]) -> bool:
        return lane.rows >= self.rows_max

    def _take_from(self, key: Hashable, lane: _Lane[T]) -> list[T]:
        if lane.rows <= self.rows_max:
            del self._lanes[key]
            self.rows -= lane.rows
            self.size_bytes -= sum([queued.size_bytes for queued in lane.queued])
            return [queued.item for queued in lane.queued]
        first = lane.queued.popleft()
        items = [first.item]
        rows = first.rows
        self.size_bytes -= first.size_bytes
        while lane.queued and rows + lane.queued[0].rows <= self.rows_max:
            queued = lane.queued.popleft()
            items.append(queued.item)
            rows += queued.rows
            self.size_bytes -= queued.size_bytes
        lane.rows -= rows
        self.rows -= rows
        if not lane.queued:
            del self._lanes[key]
        return items


# Weight of the newest duration. Low enough that noise doesn't flip the choice, high enough to follow a
# model that changed its pace within some ten batches.
WEIGHT = 0.2
# One stall (a page fault, a busy neighbour) counts as this many times the estimate at most.
OUTLIER_FACTOR = 4.0
# What a hop costs at work, in round trips measured on an idle loop: beside a busy loop the thread also
# waits for the interpreter's lock. Measured with dense networks and 30 small JSON requests in flight: inline
# serves twice as many requests per second at 2 to 3 idle hops, as many at 12.
BUSY_HOP = 8.0
# Only on the loop is a duration the truth: in the thread it includes the wait for the interpreter's lock.
# So a batch that can't hold up the loop for more than some hops is tried there at first and now and then.
TRIAL_BATCHES = 64
TRIAL_HOPS_MAX = 16.0  # idle ones
# How long a batch takes may depend on what is in it. The second one that holds up the loop for so long, and
# with it every sign of life, sends those that follow to the thread. The first may be a busy neighbour's.
STALL_S = 0.1
STALLS = 2
STALL_BATCHES = 4096


class Durations:
    """How long a batch takes, by its size, and whether that is worth a hop to the thread and back.

    Sizes are grouped by powers of two. Durations are in seconds; `hop_s` is a round trip on an idle loop.
    """

    __slots__ = ("_inline_s_max", "_mean_s", "_stalls", "_threaded", "_trial_s_max", "_until_trial")

    def __init__(self, hop_s: float) -> None:
        self._inline_s_max = BUSY_HOP * hop_s
        self._trial_s_max = TRIAL_HOPS_MAX * hop_s
        self._mean_s: dict[int, float] = {}
        self._until_trial: dict[int, int] = {}  # batches
        self._stalls = 0
        self._threaded = 0  # batches that are to go to the thread, whatever they should take

    def observe(self, rows: int, duration_s: float, *, inline: bool) -> None:
        group = rows.bit_length()
        mean_s = self._mean_s.get(group)
        if inline and duration_s > STALL_S:
            self._stalls += 1
            if self._stalls % STALLS == 0:
                self._threaded = STALL_BATCHES
        if mean_s is None or (inline and mean_s >= self._inline_s_max):
            self._mean_s[group] = duration_s  # the first one, or a trial
        elif inline or duration_s < mean_s:
            self._mean_s[group] = mean_s + WEIGHT * (min(duration_s, OUTLIER_FACTOR * mean_s) - mean_s)

    def estimate_s(self, rows: int) -> float:
        """Of a size never seen: that of the next smaller one seen, scaled by the rows; 0 if none was."""
        group = rows.bit_length()
        mean_s = self._mean_s.get(group)
        if mean_s is not None:
            return mean_s
        for smaller in range(group - 1, 0, -1):
            if smaller in self._mean_s:
                return float(self._mean_s[smaller] * 2 ** (group - smaller))
        return min(self._mean_s.values(), default=0.0)

    def run_inline(self, rows: int) -> bool:
        """Whether the batch should run on the event loop. Counts as a batch that will run."""
        if self._threaded:
            self._threaded -= 1
            return False
        estimate_s = self.estimate_s(rows)
        if estimate_s < self._inline_s_max:
            return True
        if estimate_s > self._trial_s_max:
            return False
        group = rows.bit_length()
        until_trial = self._until_trial.get(group, 0)
        self._until_trial[group] = until_trial - 1 if until_trial else TRIAL_BATCHES - 1
        return until_trial == 0
