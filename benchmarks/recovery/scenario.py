"""One scheme on one cluster of real processes: deploy, kill every node in turn, watch it recover.

A node is killed with SIGKILL to its agent and all its workers at once. Before each kill everything is
ready as planned; after it the node stays away until what was lost had time to be brought back in full.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.recovery.load import Asked, Sample
from benchmarks.recovery.models import App
from understudy.adapters.ports import free_ports
from understudy.cli.deploy import deploy
from understudy.local.supervisor import Cluster
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import Plan, Role

NODES = ("n1", "n2", "n3", "n4", "n5")
NODE_MEMORY_MB = 1200.0  # everything in full size takes 3.8 of the 6 GB: there is no room for it twice
GATEWAY = "g1"

START_TIMEOUT_S = 30.0
DEPLOY_TIMEOUT_S = 300.0
WHOLE_TIMEOUT_S = 60.0
RECOVERY_TIMEOUT_S = 8.0  # a node that was killed stays away for at most so long
UPGRADE_S = 2.5  # what was lost is back for so long when its node returns: time for a lease to end and a plan
GONE_TIMEOUT_S = 10.0
STEADY_S = 1.0  # as planned for so long before a kill
POLL_S = 0.1
EVENTS_MAX = 500

CLUSTER_TOML = """\
name = "recovery"
data_dir = "data"

[[gateways]]
name = "{gateway}"
http = "127.0.0.1:{gateway_port}"

[[controllers]]
name = "c1"
http = "127.0.0.1:{controller_port}"

{nodes}
[controller]
lease_ms = 1000.0
stability_window_s = 0.5
stability_window_s_max = 1.0

[plan]
survive = ["node"]
"""
NODE_TOML = '[[nodes]]\nname = "{name}"\nmemory_mb = {memory_mb}\n'


class Lost(NamedTuple):
    """An app whose only serving replica was on the node that was killed."""

    app: str
    variant: str
    standby: str  # warm | cold | none, by the plan in force


class Kill(msgspec.Struct):
    """A node killed at `at_s` (monotonic), or `at_unix_ms`; `events` are those of the cluster since then."""

    node: str
    at_s: float
    at_unix_ms: float
    lost: list[Lost]
    ended_s: float = 0.0  # when the node was started again
    events: list[dict[str, Any]] = []


class Played(msgspec.Struct):
    """What happened under one scheme. Memory is that of the first plan's replicas, as they were measured."""

    kills: list[Kill]
    samples: dict[str, list[Sample]]
    primaries_mb: float
    standbys_mb: float
    not_whole: int  # kills after which the cluster was not as planned in time


class LoadProcess:
    """The clients' process; what they saw arrives in `samples` a moment later."""

    def __init__(self, apps: Sequence[App], address: str) -> None:
        self.samples: dict[str, list[Sample]] = {app.name: [] for app in apps}
        self._asked = [Asked(app.name, {model.variant: model for model in app.models}) for app in apps]
        self._address = address
        self._process: asyncio.subprocess.Process

    async def run(self) -> None:
        """Until `stop`. Raises RuntimeError if the process ends by itself."""
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.recovery.load", self._address),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(self._asked) + b"\n")
            decode = msgspec.json.Decoder(Sample).decode
            while line := await process.stdout.readline():
                sample = decode(line)
                self.samples[sample.app].append(sample)
            if not process.stdin.is_closing():
                raise RuntimeError("the load ended by itself")
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def strike(self, apps: Iterable[str]) -> None:
        """These apps lost their node just now: ask them at once."""
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(list(apps)).encode() + b"\n")

    def stop(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def answered(self, app: str, since_s: float) -> Sample | None:
        """The newest right answer, if it was asked for after `since_s`."""
        newest = next((s for s in reversed(self.samples[app]) if s.right), None)
        return newest if newest is not None and newest.sent_s > since_s else None


def write_cluster(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    gateway_port, controller_port = free_ports(2)
    nodes = "\n".join(NODE_TOML.format(name=name, memory_mb=NODE_MEMORY_MB) for name in NODES)
    path = folder / "CLUSTER.toml"
    path.write_text(
        CLUSTER_TOML.format(
            gateway=GATEWAY, gateway_port=gateway_port, controller_port=controller_port, nodes=nodes
        )
    )
    return path


async def play(apps: Sequence[App], manifests: Path, folder: Path, rounds: int) -> Played:
    """Everything of one scheme. Raises UnderstudyError where the apps can't be deployed."""
    cluster = Cluster(write_cluster(folder))
    load = LoadProcess(apps, cluster.config.gateway_named(GATEWAY).http)
    async with cluster:
        await cluster.wait_until(lambda views: True, START_TIMEOUT_S, "the cluster's start")
        await _deploy(cluster, manifests)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(load.run())
            played = await _Scenario(cluster, load, apps).run(rounds)
            load.stop()
            await sending
    return played


async def _deploy(cluster: Cluster, manifests: Path) -> None:
    deployed = await asyncio.to_thread(deploy, cluster.control, manifests, wait_s=DEPLOY_TIMEOUT_S)
    failed = [f"{d.app}: {d.message}" for d in deployed if d.state != "ready"]
    if failed:
        raise UnderstudyError(Code.LOAD_FAILED, f"deployment failed: {'; '.join(failed)}")


class _Scenario:
    def __init__(self, cluster: Cluster, load: LoadProcess, apps: Sequence[App]) -> None:
        self._cluster = cluster
        self._load = load
        self._apps = [app.name for app in apps]
        self._digests = {model.variant: model.digest for app in apps for model in app.models}

    async def run(self, rounds: int) -> Played:
        await self._until_whole()
        status = await self._cluster.status()
        memory_mb: dict[str, float] = defaultdict(float)
        for app in status.apps:
            for replica in app.replicas:
                memory_mb[replica.role] += replica.memory_mb or 0.0
        kills, not_whole = [], 0
        for _ in range(rounds):
            for node in NODES:
                await asyncio.sleep(STEADY_S)
                if kill := await self._kill(node):
                    kills.append(kill)
                    not_whole += not await self._until_whole()
        return Played(kills, self._load.samples, memory_mb[Role.PRIMARY], memory_mb[Role.STANDBY], not_whole)

    async def _kill(self, node: str) -> Kill | None:
        """The node lost and back again. None if it serves nothing, so that nothing would be lost."""
        plan = await self._plan()
        lost = _lost(plan, node)
        if not lost:
            return None
        names = [app.app for app in lost]
        at_s, at_unix_ms = time.monotonic(), time.time() * 1000
        self._cluster.kill_node(node)
        self._load.strike(names)
        kill = Kill(node, at_s, at_unix_ms, lost)
        await self._until_back(names, at_s)
        await asyncio.sleep(UPGRADE_S)
        await self._until_gone(node)
        kill.ended_s = time.monotonic()
        self._cluster.start_node(node)
        kill.events = await self._events(at_unix_ms)
        return kill

    async def _until_back(self, apps: Iterable[str], since_s: float) -> None:
        """Until every app of these answers again and no larger variant of one is being loaded."""
        deadline_s = since_s + RECOVERY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            await asyncio.sleep(POLL_S)
            if not all(self._load.answered(app, since_s) for app in apps):
                continue
            try:
                status = await self._cluster.gateway_status(GATEWAY)
            except UnderstudyError:
                continue
            states = {r.state for app in status.apps for r in app.replicas if app.name in apps}
            if not states & {"starting", "loading"}:
                return

    async def _until_gone(self, node: str) -> None:
        """The kernel may need seconds to take a gigabyte from processes that were killed."""
        deadline_s = time.monotonic() + GONE_TIMEOUT_S
        while self._cluster.roles["agent", node].pids() and time.monotonic() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)

    async def _until_whole(self) -> bool:
        """Until the plan's replicas are ready, nothing else runs, and every client is answered."""
        began_s = time.monotonic()
        while time.monotonic() < began_s + WHOLE_TIMEOUT_S:
            if await self._as_planned() and all(self._load.answered(app, began_s) for app in self._apps):
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def _as_planned(self) -> bool:
        """Everything that the plan wants is ready or staged, and nothing else is there or under way."""
        try:
            status = await asyncio.to_thread(self._cluster.control.get, "/v1/status")
            plan, seen = await self._plan(), await self._cluster.gateway_status(GATEWAY)
        except UnderstudyError:
            return False
        there = [
            (a["name"], r["variant"], r["node"], r["state"]) for a in status["apps"] for r in a["replicas"]
        ]
        found = [(a.name, r.variant, r.node, r.state) for a in seen.apps for r in a.replicas]
        wanted = Counter((p.app, p.variant, p.node, "ready") for p in plan.placements)
        settled = not status["planning"] and all(
            node["state"] == "ready" and node["blank_workers"] for node in status["nodes"]
        )
        return settled and wanted == Counter(there) == Counter(found) and self._staged(plan)

    def _staged(self, plan: Plan) -> bool:
        """Whether every file that a contingency needs lies on its node."""
        return all(
            (self._cluster.config.role_dir("agent", c.node) / "artifacts" / self._digests[variant]).exists()
            for c in plan.contingencies
            for variant in {c.first, c.variant}
        )

    async def _plan(self) -> Plan:
        return msgspec.convert(await asyncio.to_thread(self._cluster.control.get, "/v1/plan"), Plan)

    async def _events(self, since_unix_ms: float) -> list[dict[str, Any]]:
        """What the cluster wrote down since then; times are whole milliseconds."""
        document = await asyncio.to_thread(self._cluster.control.get, "/v1/events", limit=EVENTS_MAX)
        return [e for e in document["events"] if e["at_unix_ms"] >= since_unix_ms - 1]


def _lost(plan: Plan, node: str) -> list[Lost]:
    """Apps that only this node serves, and what the plan has for them."""
    primaries = [p for p in plan.placements if p.role is Role.PRIMARY]
    elsewhere = {p.app for p in primaries if p.node != node}
    warm = {p.app for p in plan.placements if p.role is Role.STANDBY and p.node != node}
    cold = {c.app for c in plan.contingencies if c.failure == f"node:{node}"}
    return [
        Lost(p.app, p.variant, "warm" if p.app in warm else "cold" if p.app in cold else "none")
        for p in primaries
        if p.node == node and p.app not in elsewhere
    ]
