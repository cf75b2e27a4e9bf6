"""From one plan to the next on nodes with little room: what is planned comes to run, who answers goes on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from test_plans import clusters, slowly

from understudy.core.controller.displacing import RANKS, SWAP_FRACTION
from understudy.core.controller.drafts import TargetFacts
from understudy.core.controller.nodes import Node
from understudy.core.controller.settling import settled_apps
from understudy.core.controller.targets import make_targets
from understudy.core.lifecycle import NodePhase
from understudy.core.planning.footprint import replica_mb
from understudy.core.planning.plan import PlanInput, make_plan
from understudy.wire.messages import NodeState, ReplicaState, Target
from understudy.wire.records import NodeInfo, Plan, Profile, Role

STEPS_MAX = 80
STABLE_STEPS = 2
QUICK_MS, SLOW_MS = 10.0, 30_000.0


@dataclass
class Machine:
    """A node that does what it is told, as far as it has memory; what it begins is ready after some steps."""

    info: NodeInfo
    load_steps: int = 1
    replicas: list[ReplicaState] = field(default_factory=list)
    loading: dict[str, int] = field(default_factory=dict)  # by id: steps that are left
    activations: dict[str, tuple[tuple[str, int, str], ...]] = field(default_factory=dict)
    state: NodePhase = NodePhase.READY
    begun: int = 0

    def begin(self, app: str, version: int, variant: str, mb: float, activation: str = "") -> bool:
        if mb > self.info.memory_mb - sum(replica.memory_mb for replica in self.replicas) + 1e-9:
            return False
        self.begun += 1
        name, role = f"{self.info.name}-{self.begun}", Role.CONTINGENCY if activation else Role.PRIMARY
        self.loading[name] = self.load_steps
        self.replicas.append(
            ReplicaState(name, app, version, variant, role, "loading", memory_mb=mb, activation=activation)
        )
        return True

    def load(self, *, everything: bool = False) -> None:
        self.loading = {} if everything else {i: n - 1 for i, n in self.loading.items() if n > 1}
        self.replicas = [
            replica if replica.id in self.loading else msgspec.structs.replace(replica, state="ready")
            for replica in self.replicas
        ]

    def obey(self, target: Target, mb: dict[tuple[str, str], float]) -> None:
        wanted = Counter(r.key for r in target.replicas)
        stay = []
        for replica in sorted(self.replicas, key=lambda r: r.state != "ready"):
            if wanted[replica.key] > 0:
                wanted[replica.key] -= 1
                stay.append(msgspec.structs.replace(replica, activation=""))
            elif replica.activation and replica.activation not in target.released:
                stay.append(replica)
        self.replicas = stay
        for key in target.released:
            self.activations.pop(key, None)
        for app, version, variant in wanted.elements():
            self.begin(app, version, variant, mb[app, variant])
        for key, whats in self.activations.items():
            running = {r.key for r in self.replicas}
            for what in whats:
                if what not in running:
                    self.begin(*what, mb[what[0], what[2]], key)


class Floor:
    """All nodes, and what the controller would have them do."""

    def __init__(self, facts: PlanInput, load_steps: int) -> None:
        self.facts = facts
        self.apps = {app.app: app for app in facts.apps}
        self.mb = {(app.app, v.name): replica_mb(v) for app in facts.apps for v in app.variants}
        self.load_steps = load_steps
        self.machines = {node.name: Machine(node, load_steps) for node in facts.nodes}

    def place(self, plan: Plan) -> None:
        for p in plan.placements:
            assert self.machines[p.node].begin(p.app, p.version, p.variant, self.mb[p.app, p.variant])
        for machine in self.machines.values():
            machine.load(everything=True)

    def lose(self, name: str, plan: Plan) -> None:
        """Its contingencies are begun; the larger ones of two are still being loaded, or wait for room."""
        del self.machines[name]
        answering = self.answering()
        for c in plan.contingencies:
            if c.failure == f"node:{name}" and c.app not in answering and c.node in self.machines:
                machine = self.machines[c.node]
                if machine.begin(c.app, c.version, c.first, self.mb[c.app, c.first], c.key):
                    answering.add(c.app)
                    machine.activations[c.key] = tuple(
                        (c.app, c.version, variant) for variant in dict.fromkeys((c.first, c.variant))
                    )
        for machine in self.machines.values():
            machine.load(everything=True)
            for key, whats in machine.activations.items():
                for what in whats[1:]:
                    machine.begin(*what, self.mb[what[0], what[2]], key)

    def bring_back(self, info: NodeInfo) -> None:
        self.machines[info.name] = Machine(info, self.load_steps)

    def answering(self) -> set[str]:
        return {r.app for m in self.machines.values() for r in m.replicas if r.state == "ready"}

    def nodes(self, step: int) -> dict[str, Node]:
        staged = tuple({v.artifact.digest for app in self.facts.apps for v in app.variants})
        return {
            name: Node(
                machine.info, machine.state, 0.0, connected=True,
                observed=NodeState(name, 1, step, step, tuple(machine.replicas), staged),
            )
            for name, machine in self.machines.items()
        }  # fmt: skip

    def carry_out(self, plan: Plan, doubted: str = "") -> bool:
        """Whether all primaries of `plan` come to run. Nobody falls silent on the way but as is allowed.

        `doubted`: a node that isn't heard for a moment, at the beginning.
        """
        planned = {p.app for p in plan.placements if p.role is Role.PRIMARY}
        since: dict[str, int] = {}
        for step in range(STEPS_MAX):
            for name, machine in self.machines.items():
                machine.state = NodePhase.SUSPECT if name == doubted and step < 2 else NodePhase.READY
            nodes = self.nodes(step)
            settled = settled_apps(plan, nodes)
            since = {app: since.get(app, step) for app in settled}
            stable = frozenset(a for a, first in since.items() if step - first >= STABLE_STEPS)
            if stable == planned or (step > STEPS_MAX / 2 and self.answering() - planned):
                return True  # or what the plan gave up answers on, since its going is of no use
            versions = {(app.app, app.version): app for app in self.facts.apps}
            targets = make_targets(TargetFacts(plan, self.apps, versions, nodes, stable))
            had = self.answering()
            for name, target in targets.items():
                self.machines[name].obey(target, self.mb)
            self.check_silence(had, planned)
            for machine in self.machines.values():
                machine.load()
        return False

    def check_silence(self, had: set[str], planned: set[str]) -> None:
        now = self.answering()
        for app in had - now:
            spec = self.apps[app]
            requests_wait = max(v.profile.load_ms for v in spec.variants if v.profile)
            swapped = app in planned and requests_wait <= SWAP_FRACTION * spec.deadline_ms
            rivals = planned - had if app in planned else planned
            assert swapped or any(self.rank(rival) >= self.rank(app) for rival in rivals - {app}), (
                f"{app} fell silent for nobody"
            )

    def rank(self, app: str) -> tuple[int, float]:
        return RANKS[self.apps[app].criticality], self.apps[app].weight


def bare(facts: PlanInput, load_ms: float) -> PlanInput:
    """Without environments and devices, which have tests of their own; all of it is loaded in `load_ms`."""
    apps = []
    for app in facts.apps:
        profiles = [Profile(20.0, replica_mb(v) - 20.0, load_ms, 1.0) for v in app.variants]
        variants = [
            msgspec.structs.replace(v, environment=None, profile=profile)
            for v, profile in zip(app.variants, profiles, strict=True)
        ]
        apps.append(msgspec.structs.replace(app, variants=tuple(variants)))
    nodes = tuple(NodeInfo(node.name, node.site, "", node.memory_mb) for node in facts.nodes)
    return msgspec.structs.replace(facts, apps=tuple(apps), nodes=nodes, lacking=frozenset())


@slowly
@given(
    clusters(apps_max=7, nodes_max=4, memory_mb=(40, 160), rates=(0.0,)),
    st.sampled_from([QUICK_MS, SLOW_MS]),
    st.data(),
)
def test_plans_after_a_loss_and_after_the_return_are_carried_out(
    facts: PlanInput, load_ms: float, data: st.DataObject
) -> None:
    facts = bare(facts, load_ms)
    before = make_plan(facts, 1, "test")
    floor = Floor(facts, load_steps=1 if load_ms == QUICK_MS else 4)
    floor.place(before)
    lost = data.draw(st.sampled_from(facts.nodes))
    floor.lose(lost.name, before)
    left = tuple(node for node in facts.nodes if node != lost)
    if not left:
        return
    after = make_plan(msgspec.structs.replace(facts, nodes=left, current=before), 2, "test")
    doubted = data.draw(st.sampled_from(["", *(node.name for node in left)]))
    assert floor.carry_out(after, doubted) or load_ms == SLOW_MS
    floor.bring_back(lost)
    again = make_plan(msgspec.structs.replace(facts, current=after), 3, "test")
    assert floor.carry_out(again) or load_ms == SLOW_MS
