"""Where the controller keeps what must outlive it: a narrow key-value interface and its in-memory twin.

Lives here: the interface, its meaning, and the implementation that keeps everything in memory. Does not live
here: which keys there are and what they hold (`core.controller.stored`).

Every commit is atomic and has a revision that grows. A key's revision is that of the commit that wrote it
last; 0 stands for a key that doesn't exist. Who writes on the strength of something it read names that key
and its revision as a condition: decide by commit, never by read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from understudy.core.recent import subject, surplus
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import Event


class Entry(NamedTuple):
    key: str
    value: bytes
    revision: int  # of the commit that wrote it


class StoredEvent(NamedTuple):
    serial: int  # grows; never used twice
    event: Event


class Store(Protocol):
    """All methods raise STORE_UNAVAILABLE when the storage fails; nothing is then half-written."""

    async def get(self, key: str) -> Entry | None: ...

    async def range(self, prefix: str) -> list[Entry]:
        """All entries whose keys begin with `prefix`, ordered by key."""
        ...

    async def commit(
        self, conditions: Mapping[str, int], puts: Mapping[str, bytes], deletes: Collection[str] = ()
    ) -> int:
        """Write all or nothing; the revision of this commit.

        Raises CONFLICT unless each key in `conditions` has exactly that revision (0: doesn't exist).
        Deleting a key that doesn't exist is no error.
        """
        ...

    async def append_events(self, events: Sequence[Event]) -> None:
        """Add to the log; beyond `events_max` the oldest go of the app that has most (see `core.recent`)."""
        ...

    async def events(
        self, after: int | None, limit: int, *, app: str = "", node: str = ""
    ) -> list[StoredEvent]:
        """The first `limit` beyond serial `after`, or the newest `limit` when it is None; oldest first."""
        ...

    async def close(self) -> None: ...


class MemoryStore:
    """The same meaning, gone with the process. For tests and trials."""

    def __init__(self, events_max: int) -> None:
        self._entries: dict[str, Entry] = {}
        self._revision = 0
        self._events: list[StoredEvent] = []
        self._events_max = events_max
        self._serial = 0

    async def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    async def range(self, prefix: str) -> list[Entry]:
        return [self._entries[key] for key in sorted(self._entries) if key.startswith(prefix)]

    async def commit(
        self, conditions: Mapping[str, int], puts: Mapping[str, bytes], deletes: Collection[str] = ()
    ) -> int:
        for key, expected in conditions.items():
            entry = self._entries.get(key)
            if (entry.revision if entry else 0) != expected:
                raise conflict(key, expected)
        self._revision += 1
        for key in deletes:
            self._entries.pop(key, None)
        for key, value in puts.items():
            self._entries[key] = Entry(key, value, self._revision)
        return self._revision

    async def append_events(self, events: Sequence[Event]) -> None:
        for event in events:
            self._serial += 1
            self._events.append(StoredEvent(self._serial, event))
        counts = Counter(subject(stored.event) for stored in self._events)
        for who, count in surplus(counts, self._events_max).items():
            theirs = (stored for stored in self._events if subject(stored.event) == who)
            gone = {stored.serial for stored in islice(theirs, count)}
            self._events = [stored for stored in self._events if stored.serial not in gone]

    async def events(
        self, after: int | None, limit: int, *, app: str = "", node: str = ""
    ) -> list[StoredEvent]:
        found = [
            stored
            for stored in self._events
            if (after is None or stored.serial > after)
            and (not app or stored.event.app == app)
            and (not node or stored.event.node == node)
        ]
        return found[:limit] if after is not None else found[-limit:]

    async def close(self) -> None:
        pass


def conflict(key: str, expected: int) -> UnderstudyError:
    return UnderstudyError(
        Code.CONFLICT, f"{key} was changed by another writer", key=key, expected_revision=expected
    )
