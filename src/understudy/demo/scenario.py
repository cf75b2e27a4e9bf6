"""The demonstration's plot: a small cluster, one fault after the other, and time to recover from each."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from understudy.adapters.ports import free_ports
from understudy.core.lifecycle import NodePhase, ReplicaPhase
from understudy.demo.load import AppLoad, LoadPlan
from understudy.demo.models import BuiltApp
from understudy.demo.recording import Recording
from understudy.demo.report import AppFacts, Phase, Standby
from understudy.demo.view import View, state_of
from understudy.local.supervisor import Cluster
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import Criticality, Plan, Role

GATEWAY, CONTROLLER = "g1", "c1"
NODES = {"n1": "east", "n2": "east", "n3": "west"}
# Everything in full size takes some 300 MB: three nodes hold it, and what must answer when one of them is
# lost, but no second copy.
NODE_MEMORY_MB = 192.0
RATE_PER_S_MAX = 210.0  # per app: the next request is due 4.8 ms after a recovery at the latest
RATE_PER_S_MIN = 5.0  # per app; a machine that can't do this tells nothing
OFFERED_FRACTION = 0.3  # of what cluster and load generator together do on this machine in a closed loop
DEADLINE_MS = 1000.0

STEADY_S = 1.5  # before each fault
OBSERVED_S = 2.5  # after each fault, before anything is brought back
RECOVERY_TIMEOUT_S = 20.0
CONTROLLER_DOWN_TIMEOUT_S = 2.0
POLL_S = 0.1

CLUSTER_TOML = """\
# Three machines in two sites, with memory for every app once and a little more.
name = "demo"
data_dir = "data"

[[gateways]]
name = "{gateway}"
http = "127.0.0.1:{gateway_port}"

[[controllers]]
name = "{controller}"
http = "127.0.0.1:{controller_port}"

{nodes}
[controller]
lease_ms = 1000.0
stability_window_s = 1.0
"""
NODE_TOML = """\
[[nodes]]
name = "{name}"
site = "{site}"
memory_mb = {memory_mb}
"""


class ReplicaFacts(NamedTuple):
    app: str
    variant: str
    node: str
    role: str
    pid: int


def write_cluster(directory: Path) -> Path:
    """CLUSTER.toml with ports that are free now."""
    gateway_port, controller_port = free_ports(2)
    nodes = [NODE_TOML.format(name=name, site=site, memory_mb=NODE_MEMORY_MB) for name, site in NODES.items()]
    path = directory / "CLUSTER.toml"
    path.write_text(
        CLUSTER_TOML.format(
            gateway=GATEWAY,
            gateway_port=gateway_port,
            controller=CONTROLLER,
            controller_port=controller_port,
            nodes="\n".join(nodes),
        )
    )
    return path


def offered_per_s(capacity_per_s: float, apps: int) -> float:
    """What to ask of each app where `capacity_per_s` is answered in all. Raises BUSY if it is too little."""
    rate_per_s = min(RATE_PER_S_MAX, OFFERED_FRACTION * capacity_per_s / apps)
    if rate_per_s < RATE_PER_S_MIN:
        what = "this machine is too busy to tell: its cluster answers too few requests even in a closed loop"
        raise UnderstudyError(Code.BUSY, what, requests_per_s=round(capacity_per_s, 1))
    return rate_per_s


def load_plan(apps: Sequence[BuiltApp], address: str, rate_per_s: float) -> LoadPlan:
    """Every held-out row of every app as a request, in the order in which the rows were split off."""
    host, _, port = address.rpartition(":")
    return LoadPlan(host, int(port), tuple(_app_load(app, rate_per_s) for app in apps))


def _app_load(app: BuiltApp, rate_per_s: float) -> AppLoad:
    rows, labels = app.held_out()
    shape = [1, rows.shape[1]]
    bodies = [
        json.dumps(
            {
                "inputs": [
                    {"name": "input", "datatype": "FP32", "shape": shape, "data": np.round(row, 6).tolist()}
                ]
            },
            separators=(",", ":"),
        ).encode()
        for row in rows.astype(np.float64)
    ]
    classes = int(labels.max()) + 1
    return AppLoad(app.family.app, tuple(bodies), tuple(labels.tolist()), classes, rate_per_s, DEADLINE_MS)


class Play:
    """Injects the faults and says when each happened; what they did is for the report to find out."""

    def __init__(self, cluster: Cluster, recording: Recording, apps: dict[str, AppFacts], view: View) -> None:
        self._cluster = cluster
        self._recording = recording
        self._apps = apps
        self._view = view
        self._ended_s = 0.0
        self._known_standbys: dict[str, Standby] = {}
        self.phases: list[Phase] = []

    async def warm_up(self) -> None:
        """Until every app answers in full size and everything planned is ready."""
        self._ended_s = time.monotonic()
        await self._recovered()

    async def run(self) -> None:
        """All phases, one after the other. The first begins with the first request."""
        await self._kill_worker()
        await self._freeze_worker()
        lost_node = await self._kill_node()
        await self._kill_controller_then_workers(lost_node)
        await self._bring_everything_back()

    # phases

    async def _kill_worker(self) -> None:
        await asyncio.sleep(STEADY_S)
        victim = self._primary_of(await self.replicas(), self._named(Criticality.CRITICAL)[:1])
        await self._play(
            "worker killed (SIGKILL)",
            _worker_name(victim),
            frozenset({victim.app}),
            strike=lambda: os.kill(victim.pid, signal.SIGKILL),
        )

    async def _freeze_worker(self) -> None:
        await asyncio.sleep(STEADY_S)
        victim = self._primary_of(await self.replicas(), self._named(Criticality.CRITICAL)[1:])
        await self._play(
            "worker frozen (SIGSTOP)",
            _worker_name(victim),
            frozenset({victim.app}),
            strike=lambda: os.kill(victim.pid, signal.SIGSTOP),
        )

    async def _kill_node(self) -> str:
        """The node with the most primaries among those with a critical app's and another's."""
        await asyncio.sleep(STEADY_S)
        primaries = [r for r in await self.replicas() if r.role == Role.PRIMARY]
        critical = set(self._named(Criticality.CRITICAL))
        all_on = Counter(r.node for r in primaries)
        critical_on = Counter(r.node for r in primaries if r.app in critical)
        node = max(all_on, key=lambda name: (0 < critical_on[name] < all_on[name], all_on[name], name))
        lost = frozenset(r.app for r in primaries if r.node == node)
        await self._play(
            "node killed (SIGKILL to all of it)",
            f"{node}, primary of {', '.join(sorted(lost))}",
            lost,
            strike=lambda: self._cluster.kill_node(node),
            repair=lambda: self._cluster.start_node(node),
        )
        return node

    async def _kill_controller_then_workers(self, spared_node: str) -> None:
        """A cold app's worker and, on the same node, a warm app's: another node than was lost before."""
        await asyncio.sleep(STEADY_S)
        standbys = await self._standbys()
        self._view.tell(f"controller {CONTROLLER} killed (SIGKILL)")
        self._cluster.kill_controller(CONTROLLER)
        await self._until_controller_is_gone()
        replicas = [r for r in await self.replicas() if r.role == Role.PRIMARY and r.node != spared_node]
        cold = self._primary_of(replicas, [app for app, standby in standbys.items() if standby == "cold"])
        warm = [r for r in replicas if r.node == cold.node and standbys[r.app] == "warm"]
        victims = [cold, *warm[:1]]

        def strike() -> None:
            for victim in victims:
                os.kill(victim.pid, signal.SIGKILL)

        await self._play(
            "controller killed, then workers (SIGKILL)",
            ", ".join(map(_worker_name, victims)),
            frozenset(r.app for r in victims),
            strike=strike,
            recover=False,
        )

    async def _bring_everything_back(self) -> None:
        await self._play(
            "everything brought back",
            f"controller {CONTROLLER}",
            frozenset(),
            strike=lambda: self._cluster.start_controller(CONTROLLER),
        )

    async def _play(
        self,
        fault: str,
        target: str,
        lost: frozenset[str],
        *,
        strike: Callable[[], None],
        repair: Callable[[], None] = lambda: None,
        recover: bool = True,
    ) -> None:
        """Fault, observation, repair, recovery: one phase, from the end of the one before."""
        began_s = self._ended_s
        standbys = await self._standbys()
        self._view.begin(f"{fault}: {target}")
        injected_s = time.monotonic()
        strike()
        await asyncio.sleep(OBSERVED_S)
        repaired_s = time.monotonic()
        repair()
        if recover:
            await self._recovered()
        self._ended_s = time.monotonic()
        self.phases.append(
            Phase(fault, target, began_s, injected_s, repaired_s, self._ended_s, lost, standbys)
        )

    # looking

    async def replicas(self) -> list[ReplicaFacts]:
        """Everything that is ready, as the gateway sees it, so that no controller is needed."""
        status = await self._cluster.gateway_status(GATEWAY)
        return [
            ReplicaFacts(app.name, replica.variant, replica.node, replica.role, replica.pid)
            for app in status.apps
            for replica in app.replicas
            if replica.state == ReplicaPhase.READY
        ]

    async def plan(self) -> Plan:
        """The plan in force. Raises UNAVAILABLE without a controller."""
        return msgspec.convert(await asyncio.to_thread(self._cluster.control.get, "/v1/plan"), Plan)

    async def _standbys(self) -> dict[str, Standby]:
        """How each app is protected by the plan; by the last one seen while nobody can be asked."""
        try:
            plan = await self.plan()
        except UnderstudyError:
            return self._known_standbys
        warm = {p.app for p in plan.placements if p.role is Role.STANDBY}
        cold = {c.app for c in plan.contingencies}
        self._known_standbys = {
            app: "warm" if app in warm else "cold" if app in cold else "none" for app in self._apps
        }
        return self._known_standbys

    async def _until_controller_is_gone(self) -> None:
        """Raises `TimeoutError` if it goes on answering."""
        async with asyncio.timeout(CONTROLLER_DOWN_TIMEOUT_S):
            while True:
                try:
                    await self._cluster.status()
                except UnderstudyError:
                    return
                await asyncio.sleep(POLL_S)

    async def _recovered(self) -> None:
        """Wait until clients get full-size answers from every app and the plan's replicas are all ready.

        Gives up silently after `RECOVERY_TIMEOUT_S`: the report tells what is missing.
        """
        deadline_s = time.monotonic() + RECOVERY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            now_s = time.monotonic()
            served = all(
                state_of(self._recording.recent(app, now_s), facts.full_size) == "full-size"
                for app, facts in self._apps.items()
            )
            if served and await self._as_planned():
                return
            await asyncio.sleep(POLL_S)

    async def _as_planned(self) -> bool:
        try:
            status, plan = await self._cluster.status(), await self.plan()
            ready = Counter((r.app, r.variant, r.node) for r in await self.replicas())
        except UnderstudyError:
            return False
        wanted = Counter((p.app, p.variant, p.node) for p in plan.placements)
        return wanted == ready and all(node.state == NodePhase.READY for node in status.nodes)

    def _named(self, criticality: Criticality) -> list[str]:
        return [app for app, facts in self._apps.items() if facts.criticality is criticality]

    def _primary_of(self, replicas: Sequence[ReplicaFacts], apps: Sequence[str]) -> ReplicaFacts:
        for app in apps:
            for replica in replicas:
                if replica.app == app and replica.role == Role.PRIMARY:
                    return replica
        raise UnderstudyError(Code.UNAVAILABLE, f"no primary is ready of any of {', '.join(apps)}")


def _worker_name(replica: ReplicaFacts) -> str:
    return f"{replica.app}/{replica.variant} on {replica.node}"
