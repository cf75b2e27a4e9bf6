"""A real agent with real workers: what it does when they crash, hang, hoard, or when it dies itself."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from agent_node import AgentNode, agent_node, profile, wanted

from understudy.adapters.state_file import StateFile
from understudy.agent.remembered import Stored
from understudy.settings.agent import SandboxSettings
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import Contingency, Role

FULL = [0.2, 0.4, 0.6, 0.8]  # the probe, doubled
Scenario = Callable[[AgentNode], Awaitable[None]]


def scenario(**tuning: float | str) -> Callable[[Scenario], Callable[[Path], None]]:
    """Make a test of a coroutine that gets a started node."""

    def decorate(play: Scenario) -> Callable[[Path], None]:
        async def run(tmp_path: Path) -> None:
            async with agent_node(tmp_path, **tuning) as node:
                await play(node)

        @functools.wraps(play, assigned=("__name__", "__doc__"), updated=())
        def test(tmp_path: Path) -> None:
            asyncio.run(run(tmp_path))

        del test.__wrapped__  # type: ignore[attr-defined]
        return test

    return decorate


async def answers(node: AgentNode) -> list[float]:
    reply = await node.infer(await node.ready("full"))
    return [round(value, 3) for value in reply["outputs"][0]["data"]]


async def doubling(node: AgentNode, memory_limit_mb: float | None = None) -> None:
    """One app of two variants, its full one running."""
    node.app(
        node.python_variant("full", 2, profile=profile(), memory_limit_mb=memory_limit_mb),
        node.python_variant("small", 3, profile=profile(memory_mb=5.0)),
    )
    await node.target(wanted("full"))
    await node.ready("full")


@scenario()
async def test_a_killed_worker_is_replaced(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    os.kill(before.pid, signal.SIGKILL)
    after = await node.ready("full", unlike=before.pid)
    assert after.restarts == 1
    assert after.id != before.id
    assert await answers(node) == FULL
    await node.until(lambda: node.told("worker.crashed"))
    assert "SIGKILL" in node.told("worker.crashed")[0].message


@scenario()
async def test_a_frozen_worker_leaves_rotation_and_is_replaced(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    os.kill(before.pid, signal.SIGSTOP)
    tuning = node.config.agent
    in_time_s = (tuning.probe_interval_ms + tuning.probe_timeout_ms) / 1000
    await node.until(lambda: node.replica("full", "failing"), timeout_s=in_time_s + 0.5)
    await node.ready("full", unlike=before.pid)
    assert await answers(node) == FULL
    assert before.pid not in node.pids()


@scenario()
async def test_a_worker_that_runs_on_in_time_is_ready_again(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    os.kill(before.pid, signal.SIGSTOP)
    await node.until(lambda: node.replica("full", "failing"))
    os.kill(before.pid, signal.SIGCONT)
    assert (await node.ready("full")).pid == before.pid


@scenario()
async def test_a_busy_worker_is_not_a_dead_one(node: AgentNode) -> None:
    (node.orders / "slow-full").touch()
    await doubling(node)
    replica = await node.ready("full")
    await asyncio.gather(*(node.infer(replica) for _ in range(20)))
    await node.until(lambda: node.beats)
    assert (await node.ready("full")).pid == replica.pid
    assert not any(r.state == "failing" for state in node.states for r in state.replicas)


@scenario()
async def test_a_worker_whose_model_hangs_is_replaced(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    order = node.orders / "hang-full"
    order.touch()
    await node.until(lambda: node.replica("full", "failing"))
    await node.until(lambda: node.told("worker.given_up"))
    order.unlink()
    await node.ready("full", unlike=before.pid)
    assert before.pid not in node.pids()


@scenario()
async def test_workers_outlive_their_agent_and_are_adopted(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    node.kill_agent()
    reply = await node.infer(before)
    assert reply["model_name"] == "double"
    node.states.clear()
    node.start_agent()
    await node.connect()
    await node.until(lambda: node.states)
    after = await node.ready("full")
    assert (after.id, after.pid, after.address) == (before.id, before.pid, before.address)
    assert all(state.replicas for state in node.states), "gateways must never see an empty node"
    os.kill(after.pid, signal.SIGKILL)
    await node.ready("full", unlike=after.pid)
    assert await answers(node) == FULL


@scenario()
async def test_a_restarted_agent_needs_no_controller(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    await node.stop_listening()
    node.kill_agent()
    os.kill(before.pid, signal.SIGKILL)
    node.start_agent()
    await node.connect()
    await node.ready("full", unlike=before.pid)
    assert await answers(node) == FULL


@scenario()
async def test_a_node_that_was_killed_at_once_comes_back_clean(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    node.kill_node()
    node.kill_agent()
    assert Path(before.address.removeprefix("unix:")).exists()
    node.start_agent()
    await node.connect()
    await node.ready("full", unlike=before.pid)
    assert not Path(before.address.removeprefix("unix:")).exists()
    await node.until(lambda: not any(map(os.path.exists, node.groups.of(before.id))))
    assert await answers(node) == FULL


@scenario()
async def test_a_damaged_state_file_is_ignored_and_said_so(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    path = node.config.role_dir("agent", "n1") / "state"
    await node.until(lambda: (stored := StateFile(path, Stored).load()[0]) and stored.saved.target)
    node.kill_agent()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    node.start_agent()
    await node.connect()
    await node.until(lambda: node.told("state.discarded"))
    assert (await node.ready("full")).pid == before.pid


@scenario(probe_timeout_ms=5000, probe_interval_ms=5000)
async def test_a_worker_over_its_memory_limit_dies_alone(node: AgentNode) -> None:
    await doubling(node, memory_limit_mb=100.0)
    node.app(node.python_variant("other", 4), name="bystander")
    await node.target(wanted("full"), wanted("other", "bystander"))
    bystander = await node.ready("other")
    before = await node.ready("full")
    order = node.orders / "hoard-full"
    order.touch()
    with pytest.raises(ConnectionError):
        await node.infer(before)
    order.unlink()
    await node.ready("full", unlike=before.pid)
    if "memory" in node.groups.held:
        await node.until(lambda: node.told("worker.out_of_memory"))
    assert (await node.ready("other")).pid == bystander.pid
    assert await answers(node) == FULL


@scenario()
async def test_a_worker_is_in_groups_of_its_own(node: AgentNode) -> None:
    await doubling(node)
    worker = await node.ready("full")
    for path in map(Path, node.groups.of(worker.id)):
        assert (path / "cgroup.procs").read_text().split() == [str(worker.pid)]
        if (path / "pids.max").exists():
            assert (path / "pids.max").read_text().strip() == str(SandboxSettings().tasks_max)


@scenario(**{"sandbox.tier": "landlock", "hang_ms_min": 60_000})
async def test_what_a_model_wrote_is_cleared_away_while_the_agent_goes_on(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    order = node.orders / "litter-full"
    order.touch()
    await node.infer(before)
    order.unlink()
    (litter,) = node.config.role_dir("agent", "n1").glob(f"scratch/*/{before.id}")
    os.kill(before.pid, signal.SIGKILL)
    await node.ready("full", unlike=before.pid)
    assert os.listdir(litter), "what is heard of the agent was said before all was gone"
    beats = len(node.beats)
    await node.until(lambda: not litter.exists(), timeout_s=60.0)
    assert len(node.beats) > beats


@scenario(crash_loop_count=3, backoff_ms=10)
async def test_a_crash_looping_variant_is_quarantined_and_lifted(node: AgentNode) -> None:
    (node.orders / "crash-full").touch()
    node.app(node.python_variant("full", 2), node.python_variant("small", 3))
    await node.target(wanted("full"), wanted("small"))
    await node.until(lambda: node.state is not None and node.state.quarantined)
    assert node.replica("full", "quarantined")
    assert len(await node.until(lambda: node.told("variant.quarantined"))) == 1
    await node.ready("small")
    key = ("double", 1, "full")
    await node.target(wanted("small"), quarantined=(key,))
    await node.until(lambda: node.replica("full") is None)
    (node.orders / "crash-full").unlink()
    await node.target(wanted("full"), wanted("small"))
    assert await answers(node) == FULL


@scenario()
async def test_a_damaged_copy_is_fetched_again(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    digest = node.apps[0].variants[0].artifact.digest
    await node.staged(digest)
    copy = node.config.role_dir("agent", "n1") / "artifacts" / digest
    damage(copy)
    os.kill(before.pid, signal.SIGKILL)
    await node.ready("full", unlike=before.pid)
    await node.until(lambda: node.told("artifact.corrupted"))
    assert await answers(node) == FULL
    assert copy.read_bytes() == node.store.path(digest).read_bytes()


@scenario(crash_loop_count=3, backoff_ms=10)
async def test_what_is_damaged_in_the_store_too_is_never_served(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    digest = node.apps[0].variants[0].artifact.digest
    await node.staged(digest)
    damage(node.config.role_dir("agent", "n1") / "artifacts" / digest)
    damage(node.store.path(digest))
    os.kill(before.pid, signal.SIGKILL)
    assert await node.until(lambda: [e for e in node.told("load.failed") if "digest" in e.message])
    await node.until(lambda: node.state is not None and node.state.trouble)
    assert not node.told("variant.quarantined"), "that is the store's fault, not the variant's"
    assert digest not in (node.state.staged if node.state else ())


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@scenario()
async def test_activation_goes_through_the_small_variant_without_a_gap(node: AgentNode) -> None:
    node.app(
        node.python_variant("full", 2, profile=profile(load_ms=200.0)),
        node.python_variant("small", 3, profile=profile(load_ms=10.0)),
    )
    await node.target()
    await node.staged(*(v.artifact.digest for v in node.apps[0].variants))
    await node.until(lambda: node.state is not None and node.state.blank_workers == 2)
    contingency = Contingency("double", 1, "node:n2", "n1", "small", "full")
    first, second = await asyncio.gather(node.activate(contingency), node.activate(contingency))
    assert first.accepted
    assert second.accepted
    full = await node.ready("full")
    await node.until(lambda: node.replica("small") is None)
    assert (full.role, full.activation) == (Role.CONTINGENCY, contingency.key)
    began = next(i for i, state in enumerate(node.states) if ready_variants(state))
    assert ready_variants(node.states[began]) == {"small"}
    assert all(ready_variants(state) for state in node.states[began:])
    assert len(node.told("activation.accepted")) == 1
    assert (await node.activate(contingency)).accepted
    await node.target(wanted("full"))
    await node.until(lambda: (node.replica("full") or full).role is Role.PRIMARY)
    assert (await node.ready("full")).pid == full.pid
    await node.target()
    await node.until(lambda: node.replica() is None)


def ready_variants(state: object) -> set[str]:
    return {r.variant for r in state.replicas if r.state == "ready"}  # type: ignore[attr-defined]


@scenario()
async def test_an_activation_outlives_the_agent(node: AgentNode) -> None:
    node.app(node.python_variant("full", 2, profile=profile()))
    await node.target()
    await node.staged(node.apps[0].variants[0].artifact.digest)
    contingency = Contingency("double", 1, "node:n2", "n1", "full", "full")
    await node.activate(contingency)
    before = await node.ready("full")
    await node.until(lambda: node.told("activation.accepted"))
    node.kill_agent()
    node.start_agent()
    await node.connect()
    await node.until(lambda: node.state is not None and node.state.blank_workers == 2)
    after = await node.ready("full")
    assert (after.pid, after.activation) == (before.pid, contingency.key)
    await node.target(released=(contingency.key,))
    await node.until(lambda: node.replica() is None)


@scenario()
async def test_measuring_gives_a_profile_or_a_reason(node: AgentNode) -> None:
    app = node.app(node.python_variant("full", 2), node.python_variant("broken", 3))
    (node.orders / "crash-broken").touch()
    measured = await node.measure(app, "full")
    assert measured.inputs == app.inputs
    assert measured.profile.base_mb > 1
    assert measured.profile.load_ms > 0
    assert measured.profile.latency_ms > 0
    with pytest.raises(UnderstudyError, match="SIGSEGV") as caught:
        await node.measure(app, "broken")
    assert caught.value.code is Code.LOAD_FAILED
    assert all(not state.replicas for state in node.states)


@scenario()
async def test_a_lost_zygote_is_replaced_and_its_workers_serve_on(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    assert node.process is not None
    (zygote,) = [
        pid
        for pid in node.pids()
        if "understudy zygote" in command(pid) and pid != before.pid and parent(pid) == node.process.pid
    ]
    os.kill(zygote, signal.SIGKILL)
    assert (await node.infer(before))["model_name"] == "double"
    os.kill(before.pid, signal.SIGKILL)
    await node.ready("full", unlike=before.pid)
    assert await answers(node) == FULL


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@scenario()
async def test_heartbeats_name_the_newest_state(node: AgentNode) -> None:
    await doubling(node)
    beats = len(node.beats)
    await node.until(lambda: len(node.beats) > beats + 3)
    assert node.state is not None
    beat = node.beats[-1]
    assert (beat.node, beat.incarnation, beat.serial) == ("n1", node.state.incarnation, node.state.serial)


@scenario()
async def test_events_are_kept_until_a_controller_listens(node: AgentNode) -> None:
    await doubling(node)
    before = await node.ready("full")
    await node.stop_listening()
    os.kill(before.pid, signal.SIGKILL)
    await node.ready("full", unlike=before.pid)
    assert not node.told("worker.crashed")
    await node.listen()
    await node.until(lambda: node.told("worker.crashed"))


@scenario()
async def test_a_second_agent_of_the_same_node_is_refused(node: AgentNode) -> None:
    await doubling(node)
    code = "from agent_node import START; exec(START)"
    second = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, str(node.cluster_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert second.returncode == 1
    assert "ConfigError" in second.stderr
    assert "another agent of this node is running" in second.stderr
    assert await answers(node) == FULL


@scenario()
async def test_stopping_leaves_nothing_behind(node: AgentNode) -> None:
    await doubling(node)
    worker = await node.ready("full")
    node_dir = node.config.role_dir("agent", "n1")
    assert list((node_dir / "workers").iterdir())
    assert await node.stop_agent() == 0
    assert node.pids() == []
    assert not Path(f"/proc/{worker.pid}").exists()
    assert list((node_dir / "workers").iterdir()) == []
    assert not (node_dir / "replicas").exists()
    assert list(Path(node.config.run_dir).glob("[wa]*.sock")) == []
    assert not any(map(os.path.exists, node.groups.of(worker.id)))
