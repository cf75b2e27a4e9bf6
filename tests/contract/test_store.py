"""Every store means the same: one suite on each implementation."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from understudy.adapters.sqlite_store import SqliteStore
from understudy.adapters.store import MemoryStore, Store
from understudy.wire.errors import Code, ConfigError, UnderstudyError
from understudy.wire.records import Event

EVENTS_MAX = 10
Run = Callable[[Callable[[Store], Awaitable[None]]], None]


@pytest.fixture(params=["memory", "sqlite"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs a test's coroutine with an empty store, and closes it."""

    async def with_store(test: Callable[[Store], Awaitable[None]]) -> None:
        store: Store
        if request.param == "sqlite":
            store = await SqliteStore.open(tmp_path / "store.sqlite", EVENTS_MAX)
        else:
            store = MemoryStore(EVENTS_MAX)
        try:
            await test(store)
        finally:
            await store.close()

    return lambda test: asyncio.run(with_store(test))


def event(number: int, app: str = "", node: str = "") -> Event:
    return Event("node.joined", number, "controller:c1", f"event {number}", app=app, node=node)


def test_what_was_committed_is_read(run: Run) -> None:
    async def test(store: Store) -> None:
        assert await store.get("a") is None
        first = await store.commit({}, {"a": b"1", "b": b"2"})
        second = await store.commit({}, {"b": b"3"})
        assert second > first
        assert await store.get("a") == ("a", b"1", first)
        assert await store.get("b") == ("b", b"3", second)

    run(test)


def test_range_is_ordered_and_ends_with_the_prefix(run: Run) -> None:
    async def test(store: Store) -> None:
        await store.commit({}, dict.fromkeys(["n/b", "n/a", "n", "o/a", "n/ü", "m/z"], b""))
        assert [entry.key for entry in await store.range("n/")] == ["n/a", "n/b", "n/ü"]
        assert len(await store.range("")) == 6

    run(test)


def test_a_condition_that_fails_writes_nothing(run: Run) -> None:
    async def test(store: Store) -> None:
        revision = await store.commit({"a": 0}, {"a": b"1"})
        for conditions in ({"a": 0}, {"a": revision + 1}, {"a": revision, "missing": revision}):
            with pytest.raises(UnderstudyError) as failure:
                await store.commit(conditions, {"a": b"2", "b": b"2"}, ["a"])
            assert failure.value.code is Code.CONFLICT
        assert await store.get("a") == ("a", b"1", revision)
        assert await store.get("b") is None
        await store.commit({"a": revision, "b": 0}, {"b": b"2"}, ["a"])
        assert await store.get("a") is None

    run(test)


def test_a_deleted_key_starts_anew(run: Run) -> None:
    async def test(store: Store) -> None:
        await store.commit({}, {"a": b"1"})
        await store.commit({}, {}, ["a", "never there"])
        revision = await store.commit({"a": 0}, {"a": b"2"})
        assert await store.get("a") == ("a", b"2", revision)

    run(test)


def test_an_app_that_floods_the_log_pushes_out_its_own_events(run: Run) -> None:
    async def test(store: Store) -> None:
        await store.append_events([event(0, app="quiet", node="n1"), event(1, app="", node="n1")])
        for start in range(2, 100, 7):
            await store.append_events([event(n, app="loud", node="n1") for n in range(start, start + 7)])
        left = [stored.event.at_unix_ms for stored in await store.events(0, 100)]
        assert left == [0, 1, *range(92, 100)]

    run(test)


def test_events_are_bounded_filtered_and_paged(run: Run) -> None:
    async def test(store: Store) -> None:
        assert await store.events(None, 5) == []
        await store.append_events([event(n, app=f"app{n % 2}", node=f"n{n % 3}") for n in range(25)])
        newest = await store.events(None, 3)
        assert [stored.event.at_unix_ms for stored in newest] == [22, 23, 24]
        everything = await store.events(0, 100)
        assert [stored.event.at_unix_ms for stored in everything] == list(range(15, 25))
        page = await store.events(everything[3].serial, 2)
        assert [stored.event.at_unix_ms for stored in page] == [19, 20]
        both = await store.events(0, 100, app="app0", node="n0")
        assert [stored.event.at_unix_ms for stored in both] == [18, 24]
        assert await store.events(newest[-1].serial, 5) == []

    run(test)


def test_concurrent_commits_all_happen(run: Run) -> None:
    async def test(store: Store) -> None:
        revisions = await asyncio.gather(*(store.commit({}, {f"k{n}": b""}) for n in range(20)))
        assert len(set(revisions)) == 20
        assert len(await store.range("k")) == 20

    run(test)


# What only a file can show.


def test_a_file_outlives_its_process(tmp_path: Path) -> None:
    async def write() -> int:
        store = await SqliteStore.open(tmp_path / "new" / "store.sqlite", EVENTS_MAX)
        revision = await store.commit({}, {"a": b"1"})
        await store.append_events([event(1)])
        await store.close()
        return revision

    async def read(revision: int) -> None:
        store = await SqliteStore.open(tmp_path / "new" / "store.sqlite", EVENTS_MAX)
        assert await store.get("a") == ("a", b"1", revision)
        assert await store.commit({}, {}) > revision
        assert [stored.event for stored in await store.events(None, 9)] == [event(1)]
        await store.close()

    asyncio.run(read(asyncio.run(write())))


def test_a_damaged_file_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"

    async def fill() -> None:
        store = await SqliteStore.open(path, EVENTS_MAX)
        await store.commit({}, {f"k{n:04}": bytes(200) for n in range(500)})
        await store.close()

    asyncio.run(fill())
    content = bytearray(path.read_bytes())
    content[8192 : len(content) // 2] = b"\xff" * (len(content) // 2 - 8192)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        asyncio.run(fill())
    path.write_bytes(b"this is no database, and long enough to be looked at" * 100)
    with pytest.raises(ConfigError, match="damaged"):
        asyncio.run(fill())


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="newer version"):
        asyncio.run(SqliteStore.open(path, EVENTS_MAX))


def test_a_failing_commit_writes_nothing_and_the_store_recovers(tmp_path: Path) -> None:
    """A page limit makes SQLite answer exactly as it does when the disk is full."""

    async def test() -> None:
        store = await SqliteStore.open(tmp_path / "store.sqlite", EVENTS_MAX)
        revision = await store.commit({}, {"a": b"1"})
        connection = store._connection
        assert connection is not None
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(UnderstudyError) as failure:
            await store.commit({}, {"a": b"2", "big": bytes(100_000)})
        assert failure.value.code is Code.STORE_UNAVAILABLE
        assert await store.get("a") == ("a", b"1", revision)
        connection.execute("PRAGMA max_page_count = 1000000")
        await store.commit({"a": revision}, {"a": b"2", "big": bytes(100_000)})
        assert (await store.get("a")) is not None
        await store.close()

    asyncio.run(test())
