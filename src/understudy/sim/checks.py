"""What must hold whatever happens, in words of its own: a mistake in the machines isn't made here too.

Each check stands where the only events are that can break it: sending, loading, answering, publishing.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from understudy.core.controller.displacing import SWAP_FRACTION
from understudy.core.gateway.lifecycles import Seen
from understudy.core.gateway.rotation import OUTSTANDING_MAX, App, Replica
from understudy.core.lifecycle import NodePhase, WorkerPhase
from understudy.core.planning.footprint import load_ms, replica_mb
from understudy.settings.gateway import GatewayTuning
from understudy.sim.clock import Process
from understudy.sim.scenario import BAD_CLIENT
from understudy.sim.workers import SimWorker
from understudy.wire.records import RouteTable, VariantKey

if TYPE_CHECKING:
    from understudy.sim.gateways import ClientRequest, WorkerLink
    from understudy.sim.nodes import SimNode
    from understudy.sim.world import World

LATE_S = 0.1  # an answer may come so long after the deadline: ticks are as long
EPSILON_MB = 0.001
BUDGET_WINDOW_S = 10.0  # what `core.gateway.budget` spends is bounded over so long
BUDGET_REQUESTS_S = 30.0  # by the requests of so long, at most


What = tuple[str, str, str]  # (app, variant, node)


class Violation(Exception):
    """Something happened that must not."""


class Checks:
    """Of one run. Every method raises `Violation`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._settings: GatewayTuning = world.config.gateway
        self._asked: dict[App, deque[float]] = {}  # when, in the gateway's time
        self._deaths: Counter[tuple[VariantKey, str]] = Counter()
        self._retried: dict[App, deque[float]] = {}

    def that(self, holds: bool, what: str) -> None:
        if not holds:
            self._world.tell("sim", "violation", what)
            raise Violation(what)

    # nodes

    def memory(self, node: SimNode) -> None:
        used_mb = sum(worker.memory_mb for worker in node.workers.values())
        fits = used_mb <= node.memory_mb + EPSILON_MB
        self.that(fits, f"{node.name} holds {used_mb:.0f} MB of {node.memory_mb:.0f}")

    def order(self, receiver: str, held: int, revision: int) -> None:
        """Of a target or a route table that a process gets from the controller."""
        self.that(revision >= held, f"{receiver} holds revision {held} and is sent {revision}")

    def whole(self, receiver: str, held: RouteTable, sent: RouteTable) -> None:
        """No app is ever removed here, so no table may lack one; and no version may go back."""
        versions = {app.app: app.version for app in sent.apps}
        lacking = [app.app for app in held.apps if versions.get(app.app, 0) < app.version]
        self.that(not lacking, f"{receiver} holds {', '.join(lacking)}, and is sent a table that knows less")

    def died(self, node: SimNode, what: VariantKey) -> None:
        """A worker that was loading or had loaded `what`."""
        self._deaths[(what, node.name)] += 1

    def quarantined(self, what: VariantKey, nodes: int) -> None:
        """By a controller that sees `nodes` of them. A full disk is no evidence."""
        count = self._world.config.agent.crash_loop_count
        witnesses = [node for (of, node), deaths in self._deaths.items() if of == what and deaths >= count]
        enough = len(witnesses) >= min(2, nodes)
        self.that(enough, f"{what} is quarantined, and crashed again and again on {witnesses} only")

    # requests

    def asked(self, request: ClientRequest, process: Process) -> None:
        """It has to end by its deadline, unless its gateway dies or stands still."""
        self._asked.setdefault(request.app, deque()).append(process.now)

        def overdue() -> None:
            what = f"a request to {request.app.name} hasn't ended by its deadline"
            self.that(request.done and bool(request.outcome), what)

        # In two steps: a gateway that wakes up late has had no tick yet.
        process.after(request.deadline - process.now + LATE_S, lambda: process.after(LATE_S, overdue))

    def ended(self, request: ClientRequest, outcome: str) -> None:
        self.that(not request.outcome, f"a request ended twice: {request.outcome}, then {outcome}")
        self._world.outcomes[f"{request.phase}: {outcome}"] += 1
        if request.client == BAD_CLIENT:
            return
        answered = outcome in ("ok", "degraded", "shed")  # limits that follow latency open again by and by
        self.that(answered or request.phase != "settled", f"{outcome} from a cluster that is whole")

    def killed(self, worker: SimWorker) -> None:
        """By its agent: never in the middle of work that somebody may be waiting for."""
        if worker.state == WorkerPhase.READY and worker.running is not None and not worker.process.paused:
            began_s, _, budget_s = worker.running
            working = worker.process.now - began_s <= budget_s
            self.that(not working, f"{worker.name} was killed while it worked")

    def harmless(self) -> None:
        """Before the first fault: whatever one client sent, nobody is avoided for it."""
        for gateway in self._world.gateways:
            for replica in gateway.machine.replicas.values():
                what = f"{replica.id} is avoided for what one client sent it"
                self.that(replica.breaker.closed or not replica.breaker.failures_alike, what)

    def queues(self, app: App) -> None:
        parked = sum(request.attempts == 0 and not request.done for request in app.queues.waiting)
        bound = self._settings.admission.waiting_max
        self.that(parked <= bound, f"{parked} requests wait for {app.name}; {bound} may")

    def sent(self, replica: Replica, now: float) -> None:
        """A request, just now, to `replica`. Only a copy may go to whoever is left."""
        owed = len(replica.outstanding)
        self.that(owed <= OUTSTANDING_MAX, f"{replica.id} owes {owed} answers")
        request = next(reversed(replica.outstanding.values())).request
        if request.attempts > 1:
            return
        fails = self._fails(replica, now)
        if not fails and not _suspected(replica):
            return
        ready = [r for r in replica.app.replicas.values() if r.state is Seen.READY and r.link is not None]
        better = [r for r in ready if self._is_better(r, now)]
        equals = [r for r in ready if r.rank == replica.rank]
        panic = len([r for r in better if r.rank == replica.rank])
        in_panic = 0 < panic < self._settings.breaker.panic_fraction * len(equals)
        what = "a suspect" if _suspected(replica) else "which fails"
        names = [r.id for r in better]
        allowed = not better or (fails and not _suspected(replica) and in_panic)
        self.that(allowed, f"a request went to {replica.id}, {what}, beside {names}")

    def _is_better(self, replica: Replica, now: float) -> bool:
        well = replica.breaker.closed and not _suspected(replica) and not self._fails(replica, now)
        return well and replica.has_room(now)

    def _fails(self, replica: Replica, now: float) -> bool:
        """So that its breaker has to be open."""
        link: WorkerLink = replica.link  # type: ignore[assignment]
        breaker = self._settings.breaker
        open_s = breaker.open_s * (1 - breaker.jitter_fraction)
        return link.failures >= breaker.consecutive_failures and now - link.failed_s < open_s

    def retried(self, app: App, now: float) -> None:
        """A request, on account of the budget."""
        retried, asked = self._retried.setdefault(app, deque()), self._asked.setdefault(app, deque())
        retried.append(now)
        for times, window_s in ((retried, BUDGET_WINDOW_S), (asked, BUDGET_REQUESTS_S)):
            while times and times[0] < now - window_s:
                times.popleft()
        settings = self._settings.retry
        bound = 2 * settings.budget_min + settings.budget_fraction * len(asked)
        what = f"{len(retried)} retries for {app.name} within {BUDGET_WINDOW_S:g} s; {bound:.0f} may be"
        self.that(len(retried) <= bound, what)

    # the whole

    @property
    def ejected(self) -> bool:
        """Whether a gateway still avoids a replica for how it answered."""
        machines = [gateway.machine for gateway in self._world.gateways]
        return any(not r.breaker.closed for machine in machines for r in machine.replicas.values())

    @property
    def releasing_s(self) -> float:
        """How long it takes until a stand-in that gateways wanted back again and again is to be released."""
        controller = self._world.controller
        if controller is None:
            return 0.0
        return max(0.0, controller.machine.settling.stable_at_s - controller.process.now)

    def unsettled(self) -> str:
        """What is missing for all to be as planned; empty if it is."""
        world = self._world
        if world.controller is None:
            return "no controller"
        machine = world.controller.machine
        states = {name: str(node.state) for name, node in machine.nodes.by_name.items()}
        if set(states) != set(world.nodes) or set(states.values()) != {NodePhase.READY}:
            return f"not all nodes are back: {states}"
        if machine.plan is None or machine.planning.running or machine.plan.facts != machine.planning.facts():
            return "a plan is being made"
        placements = machine.plan.plan.placements
        planned = Counter((p.app, p.variant, p.node) for p in placements)
        running = Counter(
            (worker.app, worker.variant.name, node.name)
            for node in world.nodes.values()
            for worker in node.workers.values()
            if worker.variant is not None and worker.state == WorkerPhase.READY
        )
        missing, surplus = planned - running, running - planned
        for waits in list(missing):
            holds = self._in_its_place(waits, surplus)
            if holds is not None:
                del missing[waits], surplus[holds]
        if missing or surplus:
            return f"planned and not running: {dict(missing)}; running and not planned: {dict(surplus)}"
        for gateway in world.gateways:
            for app in {placed.app for placed in placements}:
                known = gateway.machine.apps.get(app)
                if known is None or not known.ready:
                    return f"{gateway.name} doesn't take {app} for ready"
        return "" if len(world.gateways) == len(world.gateway_hosts) else "a gateway is away"

    def _in_its_place(self, waits: What, surplus: Counter[What]) -> What | None:
        """What keeps a planned replica from starting, by design: another variant of its app, which answers,
        where there is no room for both, nowhere for a bridge, and requests can't wait for the planned one.
        """
        app, variant_name, node_name = waits
        node = self._world.nodes[node_name]
        spec = next(a for a in self._world.scenario.apps if a.app == app)
        variant = spec.variant(variant_name)
        assert variant is not None
        used_mb = sum(worker.memory_mb for worker in node.workers.values())
        fits = used_mb + replica_mb(variant) <= node.memory_mb
        if fits or load_ms(variant) <= SWAP_FRACTION * spec.deadline_ms:
            return None
        return next((what for what in surplus if (what[0], what[2]) == (app, node_name)), None)


def _suspected(replica: Replica) -> bool:
    return replica.suspect or replica.node_suspect
