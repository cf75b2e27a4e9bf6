"""A cluster under virtual time: what happens to it, and that it comes out whole.

A run: the cluster starts and serves; one node may be lost as it was planned for; then faults strike, all is
healed, and it has to become what was planned. One source of random numbers and one clock, so that a seed
gives the same run every time.
"""

from __future__ import annotations

from collections import Counter
from random import Random

from understudy.core.controller import events as controller_events
from understudy.core.controller.settling import RELEASE_WAIT_MAX_S
from understudy.core.controller.stored import Release, encode
from understudy.core.planning.plan import PlanInput, make_plan
from understudy.sim import faults
from understudy.sim.checks import Checks
from understudy.sim.clock import Act, Clock, Process, SimHost
from understudy.sim.controllers import SimController
from understudy.sim.disks import Disk
from understudy.sim.gateways import GatewayHost, SimGateway
from understudy.sim.network import Network
from understudy.sim.nodes import SimNode
from understudy.sim.scenario import DRIFT, FAULTS_S, WALL_ERROR_S, SimScenario
from understudy.wire.records import Plan

BOOTED_S = 1e6  # before the run, at most
DEPLOY_S, LOAD_S = 0.3, 1.5
CALM_S = 3.0  # until the first fault
DRILL_S = 2.5
RECOVERY_S = 1.0  # after a loss that was planned for, until requests are answered again
SETTLE_S = 10.0  # after everything has healed
SETTLED_S = 2.0  # it has to stay so
LOOK_S = 0.25  # between two looks at whether it is
CONTROLLER_HOST = "c1"
STORE_RETRY_S = 0.2
HOT_FRACTION = 0.5  # of the requests, at least, go to one app
TIMELINE_MAX = 5000


class World:
    """One run. `recorded`: keep a timeline."""

    def __init__(self, scenario: SimScenario, *, recorded: bool = False) -> None:
        self.scenario = scenario
        self.config = scenario.config
        self.random = Random(scenario.seed)
        self._data = Random(scenario.seed)  # of its own, so that it may be left out
        self.clock = Clock()
        self.network = Network(self.clock, self.random)
        self.timeline: list[str] = []
        self.outcomes: Counter[str] = Counter()  # "phase: outcome" of requests
        self.phase = "calm"
        self._recorded = recorded
        names = [*(node.name for node in scenario.nodes), CONTROLLER_HOST]
        names += [f"g{number + 1}" for number in range(scenario.gateways)]
        self.hosts = {name: self._host(name) for name in names}
        self.nodes = {
            node.name: SimNode(self, self.hosts[node.name], node.site, node.memory_mb)
            for node in scenario.nodes
        }
        self.gateway_hosts = [
            GatewayHost(self, self.hosts[name]) for name in names[len(scenario.nodes) + 1 :]
        ]
        self.store = Disk()
        self.backup: dict[str, bytes] = {}  # of the store, when all was deployed and nothing planned yet
        self.controller_host = CONTROLLER_HOST
        self.controller: SimController | None = None
        self.checks = Checks(self)

    def _host(self, name: str) -> SimHost:
        host = SimHost(self.clock, name)
        if self.scenario.skewed:
            host.rate = 1 + self.random.uniform(-DRIFT, DRIFT)
            host.wall_error_s = self.random.uniform(-WALL_ERROR_S, WALL_ERROR_S)
            host.boot(ago_s=self.random.uniform(0.0, BOOTED_S))
        return host

    @property
    def gateways(self) -> list[SimGateway]:
        """Those that live."""
        return [at.gateway for at in self.gateway_hosts if at.gateway is not None]

    @property
    def processes(self) -> list[Process]:
        """Of every role but workers."""
        found = [gateway.process for gateway in self.gateways]
        found += [node.agent.process for node in self.nodes.values() if node.agent is not None]
        return found + ([self.controller.process] if self.controller is not None else [])

    # the run

    def run(self) -> None:
        """Raises `Violation`."""
        scenario = self.scenario
        self.tell("sim", "seed", str(scenario))
        self.network.delay_s, self.network.loss = scenario.delay_ms / 1000, scenario.loss
        for node in self.nodes.values():
            node.start()
        self.start_controller()
        for at in self.gateway_hosts:
            at.start()
        self.clock.at(DEPLOY_S, self._deploy)
        if scenario.bad_fraction:
            self.clock.at(LOAD_S, self._introduce)
        self.clock.at(LOAD_S, self._ask)
        self.clock.run(CALM_S)
        self.checks.harmless()
        if scenario.drill and not self.checks.unsettled():
            self._drill()
        self.phase, began_s = "faults", self.clock.now
        for name, fault in scenario.faults.items():
            self.clock.at(began_s + fault.after_s, faults.Strike(self, name, fault).happen)
        self.clock.run(began_s + FAULTS_S)
        self.phase = "healed"
        faults.heal(self)
        self._settle()

    def _settle(self) -> None:
        """Until all is as planned and stays so."""
        healed_s, settled_s = self.clock.now, 0.0
        due_s = healed_s + SETTLE_S
        while settled_s < SETTLED_S:
            self.clock.run(self.clock.now + LOOK_S)
            missing = self.checks.unsettled()
            settled_s = 0.0 if missing else settled_s + LOOK_S
            self.phase = "healed" if missing else "settled"
            if self.checks.ejected:  # for what it did before; nothing settles before it is tried again
                due_s = max(due_s, self.clock.now + SETTLE_S / 2)
            if releasing_s := self.checks.releasing_s:
                released_s = min(self.clock.now + releasing_s, healed_s + RELEASE_WAIT_MAX_S)
                due_s = max(due_s, released_s + SETTLE_S / 2)
            if self.clock.now > due_s:
                self.checks.that(not missing, f"long after all has healed: {missing}")

    def _drill(self) -> None:
        """Lose one node and nothing else: what is planned for that has to happen within `RECOVERY_S`."""
        self.phase = "drill"
        assert self.controller is not None
        assert self.controller.machine.plan is not None
        plan = self.controller.machine.plan.plan
        node = self.random.choice(list(self.nodes.values()))
        survivors = {p.app for p in plan.placements if p.node != node.name}
        survivors |= {c.app for c in plan.contingencies if c.failure == f"node:{node.name}"}
        self.tell(
            "drill",
            f"node {self.scenario.drill}",
            f"{', '.join(sorted(survivors))} must answer",
            node=node.name,
        )
        if self.scenario.drill_alone:
            self.tell("drill", "controller killed")
            self.kill(CONTROLLER_HOST, lasting_s=DRILL_S)
        self._lose(node)
        self.clock.run(self.clock.now + RECOVERY_S)
        asked = [(app, gateway.submit(app)) for gateway in self.gateways for app in sorted(survivors)]
        self.clock.run(self.clock.now + DRILL_S - RECOVERY_S)
        for app, request in asked:
            outcome = request.outcome if request is not None else "not asked"
            what = f"{app} was not answered {RECOVERY_S:g} s after the loss of {node.name}: {outcome}"
            self.checks.that(outcome in ("ok", "degraded"), what)
        faults.heal(self)
        self.network.loss = self.scenario.loss

    def _lose(self, node: SimNode) -> None:
        match self.scenario.drill:
            case "killed" | "power lost" as how:
                node.kill(power_lost=how == "power lost")
            case "frozen":
                node.host.frozen = True
                assert node.agent is not None
                for process in (node.agent.process, *(w.process for w in node.workers.values())):
                    process.pause()
            case "cut off":
                for other in [name for name in self.hosts if name != node.name]:
                    self.network.cut(node.name, other)
                    self.network.cut(other, node.name)

    def after(self, delay_s: float, act: Act) -> None:
        self.clock.at(self.clock.now + delay_s, act)

    def _deploy(self) -> None:
        assert self.controller is not None
        for app in self.scenario.apps:
            release = Release(app)
            puts, _ = self.controller.machine.release_records(release)
            self.controller.books.save(dict(puts))
            self.controller.step(controller_events.Deployed(release))
            self.backup |= {key: encode(record) for key, record in puts.items()}

    def _introduce(self) -> None:
        """Nobody is alone with its bad data."""
        for gateway in self.gateways:
            for app in self.scenario.apps:
                gateway.submit(app.app)

    def _ask(self) -> None:
        gateway = self.random.choice(self.gateway_hosts).gateway
        if gateway is not None:
            hot = self.random.random() < HOT_FRACTION
            app = (self.scenario.apps[0] if hot else self.random.choice(self.scenario.apps)).app
            bad = self.phase in ("calm", "faults") and self._data.random() < self.scenario.bad_fraction
            gateway.submit(app, bad=bad)
        self.after(self.random.expovariate(self.scenario.requests_per_s), self._ask)

    def plan(self, facts: PlanInput, revision: int, reason: str) -> Plan:
        return make_plan(facts, revision, reason)

    # processes

    def kill(self, host: str, *, lasting_s: float) -> None:
        """A process that isn't a worker."""
        if host in self.nodes:
            self.nodes[host].kill_agent()
            self.after(lasting_s, self.nodes[host].start)
        elif host == CONTROLLER_HOST:
            assert self.controller is not None
            controller, self.controller = self.controller, None
            controller.process.kill()
            self.after(lasting_s, self.start_controller)
        else:
            at = next(at for at in self.gateway_hosts if at.host.name == host)
            at.kill(power_lost=False)

    def start_controller(self) -> None:
        if self.controller is not None:
            return
        if self.store.fails:  # its supervisor tries again
            self.after(STORE_RETRY_S, self.start_controller)
            return
        self.controller = SimController(self)
        self.controller.begin()

    # the record

    def tell(
        self, source: str, kind: str, message: str = "", app: str = "", node: str = "", replica: str = ""
    ) -> None:
        """A line of the timeline; the first ones only if there are too many."""
        if self._recorded and len(self.timeline) < TIMELINE_MAX:
            about = " ".join(part for part in (app, node, replica) if part)
            line = f"{self.clock.now:9.4f}  {source:12} {kind:22} {about:20} {message}"
            self.timeline.append(line.rstrip())
