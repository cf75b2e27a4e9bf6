"""The store on SQLite: one file, written ahead and synchronised before a commit returns.

All work is done by one thread of its own, in order, so that a slow or hanging disk never holds up the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from understudy.adapters.store import Entry, StoredEvent, conflict
from understudy.core.recent import subject, surplus
from understudy.wire.errors import Code, ConfigError, UnderstudyError
from understudy.wire.records import Event

T = TypeVar("T")

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS commits (revision INTEGER NOT NULL);
INSERT INTO commits SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM commits);
CREATE TABLE IF NOT EXISTS events
    (serial INTEGER PRIMARY KEY AUTOINCREMENT, app TEXT NOT NULL, node TEXT NOT NULL, body BLOB NOT NULL);
"""
LOCK_TIMEOUT_S = 2.0  # another process, such as a backup, holds the file
KEY_AFTER_ALL = "\U0010ffff"  # sorts behind every character that a key may hold

_encode = msgspec.msgpack.Encoder().encode
_decode_event = msgspec.msgpack.Decoder(Event).decode


class SqliteStore:
    """Use `open`; unopened, each use tries to. See `store.Store` for what the methods mean."""

    def __init__(self, path: Path, events_max: int) -> None:
        self._path = path
        self._events_max = events_max
        self._connection: sqlite3.Connection | None = None
        self._counts: Counter[tuple[str, str]] = Counter()  # of events, by subject; empty: to be counted
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    @classmethod
    async def open(cls, path: Path, events_max: int) -> SqliteStore:
        """Open or create `path`. Raises `ConfigError` when it is damaged, foreign or can't be opened."""
        store = cls(path, events_max)
        try:
            await store._in_thread(store._open)
        except BaseException:
            await store.close()
            raise
        return store

    def _open(self) -> None:
        """Leaves no connection behind that can't be used."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            connection = _connect(self._path)
        except OSError as error:
            raise ConfigError(f"{self._path.parent}: can't be created: {error.strerror}") from error
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error
        try:
            damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise _damaged(self._path, damage)
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise ConfigError(
                    f"{self._path}: written by a newer version of Understudy (format {version}); "
                    "update this one"
                )
            if version < SCHEMA_VERSION:
                connection.executescript(
                    f"BEGIN IMMEDIATE;{SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;"
                )
        except sqlite3.Error as error:
            connection.close()
            raise _unusable(self._path, error) from error
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    async def get(self, key: str) -> Entry | None:
        def work(connection: sqlite3.Connection) -> Entry | None:
            row = connection.execute(
                "SELECT key, value, revision FROM entries WHERE key = ?", (key,)
            ).fetchone()
            return Entry(*row) if row else None

        return await self._do(work)

    async def range(self, prefix: str) -> list[Entry]:
        def work(connection: sqlite3.Connection) -> list[Entry]:
            rows = connection.execute(
                "SELECT key, value, revision FROM entries WHERE key >= ? AND key < ? ORDER BY key",
                (prefix, prefix + KEY_AFTER_ALL),
            )
            return [Entry(*row) for row in rows]

        return await self._do(work)

    async def commit(
        self, conditions: Mapping[str, int], puts: Mapping[str, bytes], deletes: Collection[str] = ()
    ) -> int:
        def work(connection: sqlite3.Connection) -> int:
            with _transaction(connection):
                for key, expected in conditions.items():
                    row = connection.execute("SELECT revision FROM entries WHERE key = ?", (key,)).fetchone()
                    if (row[0] if row else 0) != expected:
                        raise conflict(key, expected)
                (revision,) = connection.execute(
                    "UPDATE commits SET revision = revision + 1 RETURNING revision"
                ).fetchone()
                connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in deletes])
                connection.executemany(
                    "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)",
                    [(key, value, revision) for key, value in puts.items()],
                )
            return int(revision)

        return await self._do(work)

    async def append_events(self, events: Sequence[Event]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            with _transaction(connection):
                counts = self._counts or _count(connection)
                connection.executemany(
                    "INSERT INTO events (app, node, body) VALUES (?, ?, ?)",
                    [(event.app, event.node, _encode(event)) for event in events],
                )
                counts = counts + Counter(map(subject, events))
                gone = surplus(counts, self._events_max)
                connection.executemany(
                    "DELETE FROM events WHERE serial IN (SELECT serial FROM events WHERE app = ?"
                    " AND (app != '' OR node = ?) ORDER BY serial LIMIT ?)",
                    [(*who, count) for who, count in gone.items()],
                )
            self._counts = counts - Counter(gone)

        await self._do(work)

    async def events(
        self, after: int | None, limit: int, *, app: str = "", node: str = ""
    ) -> list[StoredEvent]:
        order = "DESC" if after is None else "ASC"

        def work(connection: sqlite3.Connection) -> list[StoredEvent]:
            rows = connection.execute(
                "SELECT serial, body FROM events WHERE serial > ? AND (? = '' OR app = ?)"
                f" AND (? = '' OR node = ?) ORDER BY serial {order} LIMIT ?",
                (after or 0, app, app, node, node, limit),
            ).fetchall()
            return [StoredEvent(serial, _event(body)) for serial, body in rows]

        found = await self._do(work)
        return found[::-1] if after is None else found

    async def close(self) -> None:
        await self._in_thread(self._disconnect)
        self._thread.shutdown(wait=False)

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._in_thread(lambda: self._attempt(work))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._open()
            assert self._connection is not None
            return work(self._connection)
        except ConfigError as error:
            raise UnderstudyError(Code.STORE_UNAVAILABLE, error.message) from error
        except sqlite3.Error as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                # After an I/O error only a new connection is sure to see what the file holds.
                self._disconnect()
            raise UnderstudyError(Code.STORE_UNAVAILABLE, f"{self._path}: {error}") from error

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._counts = Counter()  # another file may be there next time
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _unusable(path: Path, error: sqlite3.Error) -> ConfigError:
    if isinstance(error, sqlite3.OperationalError):
        return ConfigError(f"{path}: the store can't be opened: {error}")
    return _damaged(path, str(error))


def _damaged(path: Path, how: str) -> ConfigError:
    return ConfigError(
        f"{path}: the store is damaged ({how}); move it away, or put a backup in its place: what is served "
        "goes on, and what the store lacks is taken over from gateways and agents"
    )


def _count(connection: sqlite3.Connection) -> Counter[tuple[str, str]]:
    rows = connection.execute(
        "SELECT app, CASE app WHEN '' THEN node ELSE '' END AS of, count(*) FROM events GROUP BY app, of"
    )
    return Counter({(app, node): count for app, node, count in rows})


def _event(body: object) -> Event:
    """One that makes no sense hides no other."""
    try:
        return _decode_event(body)  # type: ignore[arg-type]
    except (msgspec.MsgspecError, TypeError, RecursionError) as error:
        return Event("record.unreadable", 0, "controller", f"an event in the log: {error}")
