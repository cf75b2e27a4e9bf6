"""The newest events, as many as may be kept: where there are more, those go of which there are most.

So an app that floods the log pushes out what it said itself, and not what others did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping

from understudy.wire.records import Event


def subject(event: Event) -> tuple[str, str]:
    """What an event counts for: its app; that of no app for its node."""
    return event.app, "" if event.app else event.node


def surplus(counts: Mapping[tuple[str, str], int], limit: int) -> dict[tuple[str, str], int]:
    """Of which subjects how many have to go, so that `limit` remain: always of those that have most."""
    left = dict(counts)
    excess = sum(left.values()) - limit
    while excess > 0:
        most = max(left, key=lambda subject: left[subject])
        others = max((count for subject, count in left.items() if subject != most), default=0)
        gone = min(excess, max(left[most] - others, 1))
        left[most] -= gone
        excess -= gone
    return {subject: counts[subject] - kept for subject, kept in left.items() if kept < counts[subject]}


class RecentEvents:
    def __init__(self, limit: int, events: Iterable[Event] = ()) -> None:
        self._limit = limit
        self._events: dict[int, Event] = {}  # by a number that grows
        self._of: dict[Hashable, deque[int]] = {}  # by subject, the oldest first
        self._next = 0
        for event in events:
            self.add(event)

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        """The oldest first."""
        return iter(self._events.values())

    def add(self, event: Event) -> None:
        self._events[self._next] = event
        self._of.setdefault(subject(event), deque()).append(self._next)
        self._next += 1
        if len(self._events) > self._limit:
            self._drop(max(self._of, key=lambda subject: len(self._of[subject])))

    def take(self, count: int | None = None) -> list[Event]:
        """Remove and give the oldest `count`; all without it."""
        taken = list(self._events.values())[:count]
        for event in taken:
            self._drop(subject(event))
        return taken

    def _drop(self, subject: Hashable) -> None:
        """The oldest of it."""
        numbers = self._of[subject]
        del self._events[numbers.popleft()]
        if not numbers:
            del self._of[subject]
