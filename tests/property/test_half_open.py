"""Half-open lets exactly one probe through, whatever becomes of requests: rules against the gateway."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.unit.gateway_world import World

from understudy.core.gateway import machine as core
from understudy.core.gateway.lifecycles import Seen
from understudy.settings.gateway import BreakerSettings, GatewayTuning, HedgeSettings, RetrySettings
from understudy.wire.errors import Code
from understudy.wire.records import Role

# No panic, which uses what is ejected on purpose. Generous budgets, so that hedges and retries happen.
TUNING = GatewayTuning(
    breaker=BreakerSettings(panic_fraction=0, open_s=0.05, open_s_max=0.2, slow_start_s=0.1),
    hedge=HedgeSettings(budget_fraction=1),
    retry=RetrySettings(budget_fraction=1, budget_min=1000),
)
ANSWERS = [None, None, Code.MODEL_FAILED, Code.MODEL_FAILED, Code.BUSY, Code.INVALID_ARGUMENT, Code.DRAINING]


class HalfOpen(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(settings=TUNING)
        self.world.report("n3", self.world.replica("r3", "big", Role.STANDBY))
        self.requests: list[object] = []
        self.opened: dict[str, tuple[int, frozenset[int]]] = {}

    @rule(timeout_s=st.sampled_from([0.02, 0.2, 1.0]))
    def submit(self, timeout_s: float) -> None:
        self.requests.append(self.world.request(timeout_s))

    @rule(data=st.data())
    @precondition(lambda self: any(r.outstanding for r in self.world.gateway.replicas.values()))
    def answer(self, data: st.DataObject) -> None:
        busy = sorted(r.id for r in self.world.gateway.replicas.values() if r.outstanding)
        id_ = data.draw(st.sampled_from(busy))
        outstanding = self.world.gateway.replicas[id_].outstanding
        stream = data.draw(st.sampled_from(sorted(outstanding)))
        frame = next(f for f in self.world.links[id_].infers() if f.stream == stream)
        self.world.reply(id_, frame, data.draw(st.sampled_from(ANSWERS)))

    @rule(data=st.data())
    @precondition(lambda self: self.requests)
    def cancel(self, data: st.DataObject) -> None:
        request = self.requests.pop(data.draw(st.integers(0, len(self.requests) - 1)))
        self.world.gateway.dispatcher.cancel(request)  # type: ignore[arg-type]

    @rule(seconds=st.sampled_from([0.002, 0.01, 0.06, 0.3]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(id_=st.sampled_from(["r1", "r2", "r3"]), limit_s=st.sampled_from([0.0, 0.005]))
    def eject(self, id_: str, limit_s: float) -> None:
        breaker = self.world.gateway.replicas[id_].breaker
        if breaker.closed:
            breaker.eject(self.world.now, 0.5, limit_s)
            self.world.app.refresh(self.world.now)

    @rule(id_=st.sampled_from(["r1", "r2", "r3"]))
    def break_connection(self, id_: str) -> None:
        """And make it anew, under the same id."""
        replica = self.world.gateway.replicas[id_]
        link, replica.link = replica.link, None
        self.world.step(core.WorkerLost(id_))
        replica.state, replica.link = Seen.READY, link
        self.world.step(core.WorkerConnected(id_))

    @rule()
    def agents_say_ready(self) -> None:
        for id_, replica in self.world.gateway.replicas.items():
            self.world.report(replica.node, self.world.replica(id_, replica.variant, replica.role))

    @invariant()
    def one_probe_at_a_time(self) -> None:
        for replica in self.world.gateway.replicas.values():
            breaker = replica.breaker
            # A slow one serves on while there is nobody else, and any when nobody can be had.
            if breaker.closed or breaker.slow or self.world.app.way_back.hopeless:
                self.opened.pop(replica.id, None)
                continue
            ejections, before = self.opened.get(replica.id, (-1, frozenset()))
            if ejections == -1:
                before = frozenset(replica.outstanding)  # sent while it was closed
                self.opened[replica.id] = (breaker.ejections, before)
            # A suspect owes answers to requests that have ended, too. Those probe nothing any more.
            probes = {i for i, flight in replica.outstanding.items() if not flight.request.done} - before
            assert len(probes) <= 1, f"{replica.id} has {probes} under way"
            assert not probes or probes == {breaker.probe} or replica.suspect

    @invariant()
    def a_probe_is_always_under_way_or_permitted_in_time(self) -> None:
        for replica in self.world.gateway.replicas.values():
            probe = replica.breaker.probe
            if probe and probe not in replica.outstanding:
                # It failed, and whose fault that is shows when its request ends, by its deadline.
                waits = [r for r in self.requests if not r.done]  # type: ignore[attr-defined]
                judged = {(f.replica.id, f.stream) for r in waits for f in r.faults}  # type: ignore[attr-defined]
                assert (replica.id, probe) in judged, "nobody will ever end this probe"


TestHalfOpen = HalfOpen.TestCase
TestHalfOpen.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
