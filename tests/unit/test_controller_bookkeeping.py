"""Writing while the store comes and goes; measuring while nodes do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import pytest

from understudy.adapters.store import MemoryStore
from understudy.controller import profiling
from understudy.controller.bookkeeping import Bookkeeper
from understudy.controller.profiling import Profiler
from understudy.core.controller.stored import META, Meta, StoredNode, node_key
from understudy.settings.controller import ControllerTuning
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Measure, Measured
from understudy.wire.records import AppVersion, Event, NodeInfo, Profile


class Disk(MemoryStore):
    """A store that fails while it is `full`, and waits while it is `stuck`."""

    def __init__(self) -> None:
        super().__init__(events_max=100)
        self.full = False
        self.stuck = asyncio.Event()
        self.stuck.set()
        self.commits = 0

    async def commit(
        self, conditions: Mapping[str, int], puts: Mapping[str, bytes], deletes: Collection[str] = ()
    ) -> int:
        await self._reached()
        self.commits += 1
        return await super().commit(conditions, puts, deletes)

    async def append_events(self, events: Sequence[Event]) -> None:
        await self._reached()
        await super().append_events(events)

    async def _reached(self) -> None:
        await self.stuck.wait()
        if self.full:
            raise UnderstudyError(Code.STORE_UNAVAILABLE, "disk full")


def record(name: str) -> StoredNode:
    return StoredNode(NodeInfo(name, "s", "", 1.0))


def event(message: str) -> Event:
    return Event("node.joined", 1, "controller:c1", message)


def books(
    test: Callable[[Bookkeeper, Disk], Awaitable[None]], tuning: ControllerTuning | None = None
) -> None:
    """Run `test` with a bookkeeper at work on an empty store."""

    async def run() -> None:
        disk = Disk()
        bookkeeper = Bookkeeper(disk, 0, tuning or ControllerTuning(store_timeout_s=0.05))
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(bookkeeper.run())
            async with asyncio.timeout(10):
                await test(bookkeeper, disk)
            working.cancel()

    asyncio.run(run())


async def until(holds: Callable[[], bool]) -> None:
    while True:
        if holds():
            return
        await asyncio.sleep(0)


async def written(bookkeeper: Bookkeeper) -> None:
    await until(lambda: not bookkeeper.status.pending)


def test_records_are_merged_and_written() -> None:
    async def test(bookkeeper: Bookkeeper, disk: Disk) -> None:
        for number in range(100):
            bookkeeper.save({META: Meta(number), node_key("n1"): record("n1")}, [])
        bookkeeper.save({}, [node_key("n1")])
        await bookkeeper.settle()
        assert disk.commits == 1
        assert [entry.key for entry in await disk.range("")] == [META]

    books(test)


def test_while_the_store_is_away_everything_waits_and_nobody_else_does() -> None:
    async def test(bookkeeper: Bookkeeper, disk: Disk) -> None:
        disk.full = True
        bookkeeper.save({node_key("n1"): record("n1")}, [])
        bookkeeper.note(event("first"))
        await bookkeeper.settle()
        assert not bookkeeper.status.ok
        assert bookkeeper.status.pending == 2
        assert bookkeeper.unwritten_events == [event("first")]
        with pytest.raises(UnderstudyError, match="disk full"):
            await bookkeeper.commit({node_key("n2"): record("n2")}, [])
        disk.full = False
        await written(bookkeeper)
        assert bookkeeper.status.ok
        assert [entry.key for entry in await disk.range("")] == [node_key("n1")]  # n2 was refused, for good
        assert [stored.event for stored in await disk.events(0, 10)] == [event("first")]

    books(test)


def test_a_hanging_store_is_waited_for_only_so_long() -> None:
    async def test(bookkeeper: Bookkeeper, disk: Disk) -> None:
        disk.stuck.clear()
        bookkeeper.save({node_key("n1"): record("n1")}, [])
        await bookkeeper.settle()  # returns
        bookkeeper.save({node_key("n1"): record("replaced meanwhile")}, [])
        disk.stuck.set()
        await written(bookkeeper)
        assert disk.commits == 2
        (entry,) = await disk.range("")
        assert b"replaced" in entry.value

    books(test)


def test_waiting_events_are_bounded_and_the_oldest_go() -> None:
    async def test(bookkeeper: Bookkeeper, disk: Disk) -> None:
        disk.full = True
        bookkeeper.note(event("0"))
        await until(lambda: not bookkeeper.status.ok)
        assert bookkeeper.unwritten_events == [event("0")]  # tried, and kept
        for number in range(1, 20):
            bookkeeper.note(event(str(number)))
        assert [e.message for e in bookkeeper.unwritten_events] == [str(n) for n in range(15, 20)]
        disk.full = False
        await written(bookkeeper)
        assert [s.event.message for s in await disk.events(0, 99)] == [str(n) for n in range(15, 20)]

    books(test, ControllerTuning(events_pending_max=5))


def test_a_direct_commit_carries_what_waits_and_wins_over_it() -> None:
    async def test(bookkeeper: Bookkeeper, disk: Disk) -> None:
        bookkeeper.save({node_key("n1"): record("waiting"), node_key("n2"): record("n2")}, [])
        await bookkeeper.commit({node_key("n1"): record("direct")}, [])
        await written(bookkeeper)
        first, second = await disk.range("nodes/")
        assert b"direct" in first.value
        assert first.revision == second.revision

    books(test)


def test_nothing_is_written_after_another_controller_took_over() -> None:
    async def test(bookkeeper: Bookkeeper, disk: Disk) -> None:
        bookkeeper.save({META: Meta(1)}, [])
        await written(bookkeeper)
        await disk.commit({}, {META: b"somebody else's"})
        with pytest.raises(UnderstudyError) as failure:
            await bookkeeper.commit({node_key("n1"): record("n1")}, [])
        assert failure.value.code is Code.CONFLICT

    books(test)


# Measuring

APP = AppVersion("a", 1, ())
MEASURED = Measured(Profile(1, 1, 1, 1), (), ())


class Nodes:
    """Nodes that are there, what each does when it is asked, and how many were asked at once."""

    def __init__(self, **behaviour: Code | None) -> None:
        self.behaviour = behaviour
        self.asked: list[str] = []
        self.at_once: dict[str, int] = dict.fromkeys(behaviour, 0)
        self.profiler = Profiler(
            lambda _variant: list(self.behaviour),
            self._measure,
            ControllerTuning(profile_timeout_s=0.05, profile_attempts_max=3),
        )

    async def _measure(self, node: str, measure: Measure) -> Measured:
        self.asked.append(node)
        self.at_once[node] = self.at_once.get(node, 0) + 1
        assert self.at_once[node] == 1
        await asyncio.sleep(0)
        self.at_once[node] -= 1
        code = self.behaviour[node]
        if code is not None:
            raise UnderstudyError(code, f"{node} says no")
        return MEASURED


def test_variants_are_spread_over_the_nodes_one_at_a_time_each() -> None:
    async def test() -> None:
        nodes = Nodes(n1=None, n2=None)
        async with asyncio.TaskGroup() as tasks:
            for number in range(6):
                tasks.create_task(nodes.profiler.measure(APP, f"v{number}"))
        assert sorted(nodes.asked) == ["n1"] * 3 + ["n2"] * 3

    asyncio.run(test())


def test_trouble_of_a_node_is_tried_elsewhere() -> None:
    nodes = Nodes(n1=Code.LINK_LOST, n2=None)
    assert asyncio.run(nodes.profiler.measure(APP, "v")) == MEASURED
    assert nodes.asked == ["n1", "n2"]


@pytest.mark.parametrize(("code", "attempts"), [(Code.LOAD_FAILED, 1), (Code.BUSY, 3)])
def test_trouble_of_the_variant_is_final_and_attempts_are_bounded(code: Code, attempts: int) -> None:
    nodes = Nodes(n1=code, n2=code)
    with pytest.raises(UnderstudyError, match="says no"):
        asyncio.run(nodes.profiler.measure(APP, "v"))
    assert len(nodes.asked) == attempts


def test_a_node_that_is_asked_again_is_nobody_elses_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "PAUSE_S", 0)

    async def test() -> None:
        nodes = Nodes(n1=Code.BUSY)
        both = [nodes.profiler.measure(APP, variant) for variant in ("v", "w")]
        for error in await asyncio.gather(*both, return_exceptions=True):
            assert isinstance(error, UnderstudyError)
            assert error.code is Code.BUSY
        assert nodes.asked == ["n1"] * 6

    asyncio.run(test())


def test_a_node_that_comes_is_used_and_its_absence_has_an_end() -> None:
    async def test() -> None:
        nodes = Nodes()
        with pytest.raises(UnderstudyError, match="no node is there"):
            await nodes.profiler.measure(APP, "v")
        async with asyncio.TaskGroup() as tasks:
            measuring = tasks.create_task(nodes.profiler.measure(APP, "v"))
            await asyncio.sleep(0)
            nodes.behaviour["n1"] = None
            nodes.profiler.notice()
        assert measuring.result() == MEASURED

    asyncio.run(test())
