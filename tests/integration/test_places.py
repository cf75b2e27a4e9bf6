"""A place's trouble stays that place's: full disks, crashes on one node only, and models that print a lot."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_node import AgentNode, agent_node, profile, wanted
from harness import Harness, running

sys.path.append(str(Path(__file__).parents[1] / "contract"))
from small_disks import fill, small_disk

DEADLINE_S = 15.0
MOODY = """
import signal
from pathlib import Path

class Model:
    def load(self, path):
        here = set(path.split("/"))  # the node's name is among them
        if here & {{order.name for order in Path({orders!r}).iterdir()}}:
            signal.raise_signal(signal.SIGSEGV)

    def predict(self, inputs):
        return {{"y": inputs["x"] * {factor}}}
"""
MANIFEST = """
name = "moody"
criticality = "standard"
deadline_ms = 4000
[[inputs]]
name = "x"
datatype = "FP64"
shape = [-1, 4]
[[outputs]]
name = "y"
datatype = "FP64"
shape = [-1, 4]
[[variants]]
name = "full"
runtime = "python"
artifact = "full"
accuracy = 0.9
[[variants]]
name = "lite"
runtime = "python"
artifact = "lite"
accuracy = 0.8
"""
QUICK = """
quarantine_pause_s = 2.0
trial_s = 1.0
[agent]
crash_loop_count = 3
crash_loop_pause_s = 1.0
backoff_ms = 20
"""
ROWS = [[0.1, 0.2, 0.3, 0.4]]


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[Path]:
    """The disk of the node of a test."""
    with small_disk(tmp_path / "data" / "agent" / "n1", 4) as disk:
        yield disk


async def eventually(holds: Callable[[], object], what: str) -> None:
    """For what only files tell."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.05)


async def deployed(node: AgentNode) -> None:
    node.app(
        node.python_variant("full", 2, profile=profile()),
        node.python_variant("small", 3, profile=profile(memory_mb=5.0)),
    )
    await node.target()
    await node.staged(*(variant.artifact.digest for variant in node.apps[0].variants))


def test_a_full_disk_is_never_held_against_a_variant_and_ends_by_itself(
    tmp_path: Path, cramped: Path
) -> None:
    async def test() -> None:
        async with agent_node(tmp_path, crash_loop_count=3, backoff_ms=10, backoff_ms_max=200) as node:
            await deployed(node)
            junk = fill(cramped)
            await node.target(wanted("full"))
            await node.until(lambda: len(node.told("load.failed")) > 5)
            assert node.state is not None
            assert node.state.quarantined == ()
            assert any("No space left" in trouble for trouble in node.state.trouble)
            assert node.told("node.troubled")
            junk.unlink()
            await node.ready("full")
            await node.until(lambda: node.state is not None and not node.state.trouble)
            await node.until(lambda: node.told("node.recovered"))
            assert not node.told("variant.quarantined")

    asyncio.run(test())


def test_an_agent_that_cannot_write_serves_on_and_catches_up(tmp_path: Path, cramped: Path) -> None:
    async def test() -> None:
        async with agent_node(tmp_path) as node:
            await deployed(node)
            await node.target(wanted("full"))
            await node.ready("full")
            junk = fill(cramped)
            await node.target(wanted("full"), quarantined=(("double", 1, "small"),))
            await node.until(lambda: node.told("state.unsaved"))
            await node.infer(await node.ready("full"))
            junk.unlink()
            state = cramped / "state"
            before = state.read_bytes()
            await eventually(lambda: state.read_bytes() != before, "its state is written")

    asyncio.run(test())


def test_a_model_that_finds_no_room_while_it_loads_blames_the_place(tmp_path: Path) -> None:
    async def test() -> None:
        async with agent_node(tmp_path, crash_loop_count=2, backoff_ms=10) as node:
            (node.orders / "cramped-full").touch()
            await deployed(node)
            await node.target(wanted("full"))
            await node.until(lambda: len(node.told("load.failed")) > 3)
            assert node.state is not None
            assert node.state.quarantined == ()
            (node.orders / "cramped-full").unlink()
            await node.ready("full")

    asyncio.run(test())


def lines_of(node: AgentNode, event: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in node.log_path.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def test_what_a_model_prints_is_labelled_bounded_and_outlives_the_agent(tmp_path: Path) -> None:
    async def test() -> None:
        async with agent_node(tmp_path, crash_loop_count=2, backoff_ms=10) as node:
            (node.orders / "print-full").touch()
            await deployed(node)
            await node.target(wanted("full"))
            replica = await node.ready("full")
            for _ in range(5):
                await node.infer(replica)
            await eventually(lambda: lines_of(node, "model.print_dropped"), "what is left out is told")
            await eventually(lambda: lines_of(node, "model.printed"), "its last line is told")
            printed = lines_of(node, "model.printed")
            assert {line["variant"] for line in printed} == {"full"}
            assert "customer record" in {line["text"] for line in printed}
            assert node.log_path.stat().st_size < 200_000, "of 100 MB that were printed"
            node.kill_agent()
            for _ in range(3):
                await node.infer(replica)  # nobody reads: neither blocked nor failed
            node.start_agent()
            await node.connect()
            adopted = await node.ready("full")
            assert adopted.pid == replica.pid
            before = len(lines_of(node, "model.printed"))
            await node.infer(adopted)
            await eventually(lambda: len(lines_of(node, "model.printed")) > before, "it is read again")
            (node.orders / "crash-small").touch()
            await node.target(wanted("small"))
            crashed = await node.until(lambda: node.told("worker.crashed"))
            assert "it printed last: about to crash" in crashed[0].message

    asyncio.run(test())


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moody")
    orders = folder / "orders"
    orders.mkdir()
    app = folder / "apps" / "moody"
    for factor, variant in ((2, "full"), (3, "lite")):
        (app / variant).mkdir(parents=True)
        (app / variant / "model.py").write_text(MOODY.format(orders=str(orders), factor=factor))
    (app / "APP.toml").write_text(MANIFEST)
    return folder


def test_crashes_on_one_node_move_the_variant_and_on_two_keep_it_off_until_they_end(moody: Path) -> None:
    orders = moody / "orders"

    async def crash_on(harness: Harness, *nodes: str) -> None:
        for node in nodes:
            (orders / node).touch()
        os.kill((await harness.replica("moody", variant="full"))["pid"], signal.SIGKILL)

    async def quarantines(harness: Harness) -> list[str]:
        return [found.state for found in (await harness.cluster.status()).quarantines]

    async def test() -> None:
        async with running(moody, extra=QUICK) as harness:
            first = (await harness.replica("moody", variant="full"))["node"]
            others = [name for name in ("n1", "n2", "n3") if name != first]
            await crash_on(harness, first)

            async def elsewhere() -> bool:
                answer = await harness.infer("moody", ROWS, "FP64")
                found = await harness.replica("moody", variant="full")
                return answer.variant == "full" and found["node"] in others

            await harness.until(elsewhere, 20, "it is served at full size by another node")
            assert not await harness.events("quarantine.recorded")
            (orders / first).unlink()

            async def closed() -> bool:
                return not await quarantines(harness)

            await harness.until(closed, 20, "nobody doubts it any more")
            await harness.full_size("moody")
            await crash_on(harness, "n1", "n2", "n3")

            async def convicted() -> bool:
                return "quarantined" in await quarantines(harness)

            await harness.until(convicted, 20, "all nodes tell the same")
            (view, *_) = (await harness.cluster.status()).quarantines
            assert "otherwise well" in view.why
            assert len(view.nodes) >= 2
            for name in ("n1", "n2", "n3"):
                (orders / name).unlink(missing_ok=True)
            await harness.full_size("moody", timeout_s=40)
            await harness.until(closed, 20, "the quarantine ended by itself")
            assert await harness.events("quarantine.ended")

    asyncio.run(test())
