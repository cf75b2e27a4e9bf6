"""Writing to the store behind the controller's back: in order, merged, retried, bounded.

The controller never waits for the store to go on. While the store is away, records wait here (one per key)
and events up to `events_pending_max`; then everything is written at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping

import msgspec
import structlog

from understudy.adapters.store import Store
from understudy.controller.status import StoreStatus
from understudy.core.controller.stored import META, encode
from understudy.core.recent import RecentEvents
from understudy.settings.controller import ControllerTuning
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import Event

RETRY_S = 0.1
RETRY_S_MAX = 2.0
EVENTS_PER_WRITE = 1000

log = structlog.get_logger()


class Bookkeeper:
    """Every commit names the revision of `meta` that we wrote: it fails once another controller took over."""

    def __init__(self, store: Store, meta_revision: int, tuning: ControllerTuning) -> None:
        self._store = store
        self._meta_revision = meta_revision
        self._timeout_s = tuning.store_timeout_s
        self._records: dict[str, bytes | None] = {}  # None: to be deleted
        self._events = RecentEvents(tuning.events_pending_max)
        self._events_max = tuning.events_pending_max
        self._leaving: list[Event] = []  # being written
        self._work = asyncio.Event()
        self._tried = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._error = ""

    def save(self, puts: Mapping[str, msgspec.Struct], deletes: Iterable[str]) -> None:
        self._records.update((key, None) for key in deletes)
        self._records.update((key, encode(record)) for key, record in puts.items())
        self._work.set()

    def note(self, event: Event) -> None:
        self._events.add(event)
        self._work.set()

    @property
    def unwritten_events(self) -> list[Event]:
        return [*self._leaving, *self._events]

    @property
    def status(self) -> StoreStatus:
        return StoreStatus(not self._error, self._error, len(self._records) + len(self.unwritten_events))

    async def run(self) -> None:
        """Write what waits, until cancelled. Raises CONFLICT when another controller took the store over."""
        retry_s = RETRY_S
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._write({})
                await self._write_events()
            except UnderstudyError as error:
                if error.code is not Code.STORE_UNAVAILABLE:
                    raise
                async with self._tried:
                    self._tried.notify_all()
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_S_MAX)
                self._work.set()
            else:
                retry_s = RETRY_S

    async def settle(self) -> None:
        """Wait until all records are written, the store fails, or store_timeout_s have passed."""
        try:
            async with asyncio.timeout(self._timeout_s), self._tried:
                await self._tried.wait_for(lambda: not self._records or bool(self._error))
        except TimeoutError:
            log.warning("store.write_delayed", waited_s=self._timeout_s)

    async def commit(self, puts: Mapping[str, msgspec.Struct], deletes: Iterable[str]) -> None:
        """Write now, with all that waits. Raises STORE_UNAVAILABLE; nothing of it is then written, ever."""
        records: dict[str, bytes | None] = dict.fromkeys(deletes)
        records |= {key: encode(record) for key, record in puts.items()}
        await self._write(records)

    async def flush(self) -> None:
        """The last chance, at the end of the process."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._write({})
                await self._write_events()
        except (UnderstudyError, TimeoutError) as error:
            log.warning("store.write_failed", reason=str(error), pending=self.status.pending)

    async def _write(self, more: dict[str, bytes | None]) -> None:
        async with self._writing:
            waiting = dict(self._records)
            records = {**waiting, **more}
            puts = {key: value for key, value in records.items() if value is not None}
            deletes = [key for key, value in records.items() if value is None]
            if records:
                with self._watched():
                    revision = await self._store.commit({META: self._meta_revision}, puts, deletes)
                if META in puts:
                    self._meta_revision = revision
            for key, value in waiting.items():
                if key in self._records and self._records[key] is value:  # not replaced meanwhile
                    del self._records[key]
        async with self._tried:
            self._tried.notify_all()

    async def _write_events(self) -> None:
        while self._events:
            self._leaving = self._events.take(EVENTS_PER_WRITE)
            try:
                with self._watched():
                    await self._store.append_events(self._leaving)
            except BaseException:
                self._events = RecentEvents(self._events_max, self.unwritten_events)
                raise
            finally:
                self._leaving = []

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except UnderstudyError as error:
            if not self._error:
                log.warning("store.write_failed", reason=error.message)
            self._error = error.message
            raise
        if self._error:
            log.info("store.recovered")
        self._error = ""
