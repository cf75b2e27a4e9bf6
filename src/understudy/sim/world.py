"""A cluster drawn from a seed, what happens to it, and what must hold whatever happens.

A run: the cluster starts and serves, then faults strike, then all is healed and it has to become what was
planned. One source of random numbers and one clock, so that a seed gives the same run every time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random

import msgspec

from understudy.config import ClusterConfig, ControllerTuning, NodeConfig
from understudy.core.controller import events as controller_events
from understudy.core.controller.stored import Release, encode
from understudy.core.planning.plan import PlanInput, make_plan
from understudy.sim import faults
from understudy.sim.clock import Act, Clock
from understudy.sim.controllers import HOST, Controller
from understudy.sim.gateways import ClientRequest, Gateway
from understudy.sim.network import Network
from understudy.sim.nodes import Node
from understudy.wire.records import AppVersion, ArtifactRef, Criticality, Plan, Profile, RouteTable, Variant

DEPLOY_S, LOAD_S = 0.5, 2.0
CALM_S = 4.0  # until the first fault
FAULTS_S = 10.0
SETTLE_S = 20.0  # after everything has healed
REQUESTS_PER_S = 20.0
LATE_S = 0.1  # an answer may come so long after the deadline: ticks are as long
EPSILON_MB = 0.001
TIMELINE_MAX = 5000


class Violation(Exception):
    """Something happened that must not."""


class World:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.clock = Clock()
        self.network = Network(self.clock, self.random)
        self.timeline: list[str] = []
        self.outcomes: Counter[str] = Counter()  # "phase: outcome" of requests
        self._phase = "calm"
        self._revision = -1  # of the route table
        # disks
        self.store: dict[str, bytes] = {}
        self.store_away = False
        self._unsaved: list[tuple[Mapping[str, msgspec.Struct], tuple[str, ...]]] = []
        self.table: RouteTable | None = None  # the gateway's
        self._draw()
        self.faults = faults.Faults(self, self.swarm)
        self.controller: Controller | None = None
        self.gateway = Gateway(self)

    def _draw(self) -> None:
        random = self.random
        sites, memory_mb = random.randint(1, 2), random.choice([300.0, 500.0, 900.0])
        nodes = tuple(NodeConfig(f"n{i}", memory_mb, f"s{i % sites}") for i in range(random.randint(2, 5)))
        tuning = ControllerTuning(stability_window_s=1.0, stability_window_s_max=4.0)
        self.config = ClusterConfig(nodes=nodes, controller=tuning)
        self.nodes = {node.name: Node(self, node.name, node.site, memory_mb) for node in nodes}
        self.apps = [self._draw_app(f"app{i}") for i in range(random.randint(1, 4))]
        self.swarm = faults.draw(random)

    def _draw_app(self, name: str) -> AppVersion:
        variants, size_mb, accuracy = [], self.random.choice([60.0, 100.0, 180.0]), 0.95
        for index in range(self.random.randint(1, 3)):
            profile = Profile(40.0, size_mb - 40.0, load_ms=size_mb, latency_ms=2.0 + size_mb / 50)
            artifact = ArtifactRef(f"{name}-{index}", 1000, f"{name}-{index}")
            variants.append(Variant(f"v{index}", "onnx", artifact, accuracy, profile=profile))
            size_mb, accuracy = 40.0 + (size_mb - 40.0) / 2, accuracy - 0.03
        criticality = self.random.choice([Criticality.CRITICAL, Criticality.STANDARD, Criticality.STANDARD])
        return AppVersion(name, 1, tuple(variants), criticality)

    @property
    def hosts(self) -> list[str]:
        return [*self.nodes, HOST, self.gateway.name]

    # the run

    def run(self) -> None:
        """Raises `Violation`."""
        nodes = ", ".join(f"{n.name} ({n.site}, {n.memory_mb:.0f} MB)" for n in self.nodes.values())
        apps = ", ".join(f"{a.app} ({a.criticality}, {len(a.variants)} variants)" for a in self.apps)
        self.tell("sim", "seed", f"{self.seed}: {nodes}; {apps}; {self.swarm}")
        self.network.delay_s, self.network.loss = self.swarm.delay_ms / 1000, self.swarm.loss
        for node in self.nodes.values():
            node.start()
        self.start_controller()
        self.gateway.begin()
        self.clock.at(DEPLOY_S, self._deploy)
        self.clock.at(LOAD_S, self._ask)
        self.clock.at(CALM_S, self._break)
        self.clock.at(CALM_S + FAULTS_S, self._heal)
        self.clock.run(CALM_S + FAULTS_S + SETTLE_S)
        self._check_settled()

    def after(self, delay_s: float, act: Act) -> None:
        self.clock.at(self.clock.now + delay_s, act)

    def _deploy(self) -> None:
        assert self.controller is not None
        for app in self.apps:
            release = Release(app)
            puts, deletes = self.controller.machine.release_records(release)
            self.save(puts, deletes)
            self.controller.step(controller_events.Deployed(release))

    def _ask(self) -> None:
        self.gateway.submit(self.random.choice(self.apps).app)
        self.after(self.random.expovariate(REQUESTS_PER_S), self._ask)

    def _break(self) -> None:
        self._phase = "faults"
        self.faults.begin()

    def _heal(self) -> None:
        self._phase = "healed"
        self.faults.end()

    def plan(self, facts: PlanInput, revision: int, reason: str) -> Plan:
        return make_plan(facts, revision, reason)

    # processes and disks

    def start_controller(self) -> None:
        if self.controller is None:
            self.controller = Controller(self)
            self.controller.begin()

    def kill_controller(self) -> None:
        assert self.controller is not None
        controller, self.controller = self.controller, None
        controller.process.kill()
        self._unsaved.clear()

    def restart_gateway(self) -> None:
        self.gateway.process.kill()
        self.gateway = Gateway(self)
        self.gateway.begin()

    def save(self, puts: Mapping[str, msgspec.Struct], deletes: tuple[str, ...]) -> None:
        """The controller's records; kept by it while the store is away."""
        if self.store_away:
            self._unsaved.append((puts, deletes))
            return
        self.store.update({key: encode(record) for key, record in puts.items()})
        for key in deletes:
            self.store.pop(key, None)

    def restore_store(self) -> None:
        self.store_away = False
        unsaved, self._unsaved = self._unsaved, []
        for puts, deletes in unsaved:
            self.save(puts, deletes)

    # what must hold

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.tell("sim", "violation", what)
            raise Violation(what)

    def check_memory(self, node: Node) -> None:
        used_mb = sum(worker.memory_mb for worker in node.workers.values())
        fits = used_mb <= node.memory_mb + EPSILON_MB
        self.check(fits, f"{node.name} holds {used_mb:.0f} MB of {node.memory_mb:.0f}")

    def check_revision(self, revision: int) -> None:
        """Of a route table that a gateway saves."""
        self.check(revision >= self._revision, f"the route table went from {self._revision} to {revision}")
        self._revision = revision

    def asked(self, request: ClientRequest) -> None:
        """It has to end by its deadline, unless its gateway dies or stands still."""
        process = self.gateway.process

        def overdue() -> None:
            self.check(request.done, f"a request to {request.app.name} hasn't ended by its deadline")

        process.after(request.deadline - self.clock.now + LATE_S, lambda: process.after(LATE_S, overdue))

    def ended(self, request: ClientRequest) -> None:
        self.outcomes[f"{self._phase}: {request.outcome}"] += 1

    def _check_settled(self) -> None:
        assert self.controller is not None
        machine = self.controller.machine
        states = {name: node.state for name, node in machine.nodes.by_name.items()}
        self.check(set(states.values()) == {"ready"}, f"not all nodes are back: {states}")
        placements = machine.plan.plan.placements if machine.plan is not None else ()
        planned = Counter((p.app, p.variant, p.node) for p in placements)
        running = Counter(
            (worker.app, worker.variant.name, node.name)
            for node in self.nodes.values()
            for worker in node.workers.values()
            if worker.variant is not None and worker.state == "ready"
        )
        self.check(not planned - running, f"planned and not running: {dict(planned - running)}")
        self.check(not running - planned, f"running and not planned: {dict(running - planned)}")
        for app in {placed.app for placed in placements}:
            known = self.gateway.machine.apps.get(app)
            self.check(known is not None and known.ready, f"the gateway doesn't take {app} for ready")

    # the record

    def tell(
        self, source: str, kind: str, message: str, app: str = "", node: str = "", replica: str = ""
    ) -> None:
        """A line of the timeline; the first ones only if there are too many."""
        if len(self.timeline) < TIMELINE_MAX:
            about = " ".join(part for part in (app, node, replica) if part)
            self.timeline.append(
                f"{self.clock.now:9.4f}  {source:12} {kind:22} {about:20} {message}".rstrip()
            )
