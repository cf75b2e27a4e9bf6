"""From one plan to the next on nodes with little room: everything that is planned comes to run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from test_plans import clusters, slowly

from understudy.core.controller.nodes import Node
from understudy.core.controller.targets import TargetFacts, make_targets, settled_apps
from understudy.core.planning.footprint import replica_mb
from understudy.core.planning.plan import PlanInput, make_plan
from understudy.wire.messages import NodeState, ReplicaState, Target
from understudy.wire.records import NodeInfo, Plan, Profile, Role

STEPS_MAX = 60
STABLE_STEPS = 2
LOAD_MS = 10.0


@dataclass
class Machine:
    """A node that does what it is told: what runs is ready one step after it was begun."""

    info: NodeInfo
    replicas: list[ReplicaState] = field(default_factory=list)
    begun: int = 0

    def begin(
        self, app: str, version: int, variant: str, role: Role, mb: float, activation: str = ""
    ) -> bool:
        if mb > self.free_mb() + 1e-9:
            return False
        self.begun += 1
        name = f"{self.info.name}-{self.begun}"
        self.replicas.append(
            ReplicaState(name, app, version, variant, role, "loading", memory_mb=mb, activation=activation)
        )
        return True

    def free_mb(self) -> float:
        return self.info.memory_mb - sum(replica.memory_mb for replica in self.replicas)

    def finish_loading(self) -> None:
        self.replicas = [msgspec.structs.replace(replica, state="ready") for replica in self.replicas]

    def obey(self, target: Target, mb: dict[tuple[str, str], float]) -> None:
        wanted = Counter((r.app, r.version, r.variant) for r in target.replicas)
        stay = []
        for replica in sorted(self.replicas, key=lambda r: r.state != "ready"):
            what = (replica.app, replica.version, replica.variant)
            if wanted[what] > 0:
                wanted[what] -= 1
                stay.append(msgspec.structs.replace(replica, activation=""))
            elif replica.activation and replica.activation not in target.released:
                stay.append(replica)
        self.replicas = stay
        for app, version, variant in wanted.elements():
            self.begin(app, version, variant, Role.PRIMARY, mb[app, variant])


class Floor:
    """All nodes, and what the controller would have them do."""

    def __init__(self, facts: PlanInput) -> None:
        self.facts = facts
        self.mb = {(app.app, v.name): replica_mb(v) for app in facts.apps for v in app.variants}
        self.machines = {node.name: Machine(node) for node in facts.nodes}
        self.silent_steps: Counter[str] = Counter()  # of apps that had answered before

    def place(self, plan: Plan) -> None:
        for p in plan.placements:
            assert self.machines[p.node].begin(p.app, p.version, p.variant, p.role, self.mb[p.app, p.variant])
        self.finish_loading()

    def lose(self, name: str, plan: Plan) -> None:
        del self.machines[name]
        answering = self.answering()
        for c in plan.contingencies:
            if c.failure == f"node:{name}" and c.app not in answering and c.node in self.machines:
                machine = self.machines[c.node]
                if machine.begin(c.app, c.version, c.first, Role.CONTINGENCY, self.mb[c.app, c.first], c.key):
                    answering.add(c.app)
        self.finish_loading()

    def finish_loading(self) -> None:
        for machine in self.machines.values():
            machine.finish_loading()

    def answering(self) -> set[str]:
        return {r.app for m in self.machines.values() for r in m.replicas if r.state == "ready"}

    def carry_out(self, plan: Plan) -> int:
        """Steps until all primaries of `plan` have run for a while; STEPS_MAX: they don't."""
        settled_since: dict[str, int] = {}
        for step in range(STEPS_MAX):
            nodes = {
                name: Node(
                    machine.info, "ready", 0.0, connected=True,
                    observed=NodeState(name, 1, step, step, tuple(machine.replicas)),
                )
                for name, machine in self.machines.items()
            }  # fmt: skip
            settled = settled_apps(plan, nodes)
            settled_since = {app: settled_since.get(app, step) for app in settled}
            stable = frozenset(a for a, since in settled_since.items() if step - since >= STABLE_STEPS)
            if stable == {p.app for p in plan.placements if p.role is Role.PRIMARY}:
                return step
            apps = {app.app: app for app in self.facts.apps}
            targets = make_targets(
                TargetFacts(plan, apps, {(a.app, a.version): a for a in apps.values()}, nodes, stable)
            )
            had = self.answering()
            for name, target in targets.items():
                self.machines[name].obey(target, self.mb)
            self.silent_steps.update(had - self.answering())
            self.finish_loading()
        return STEPS_MAX


def bare(facts: PlanInput) -> PlanInput:
    """Without environments and devices, which have tests of their own; whatever it is, it loads quickly."""
    apps = tuple(
        msgspec.structs.replace(
            app,
            variants=tuple(
                msgspec.structs.replace(
                    v, environment=None, profile=Profile(20.0, replica_mb(v) - 20.0, LOAD_MS, 1.0)
                )
                for v in app.variants
            ),
        )
        for app in facts.apps
    )
    nodes = tuple(NodeInfo(node.name, node.site, "", node.memory_mb) for node in facts.nodes)
    return msgspec.structs.replace(facts, apps=apps, nodes=nodes, lacking=frozenset())


@slowly
@given(clusters(apps_max=7, nodes_max=4, memory_mb=(40, 160), rates=(0.0,)), st.data())
def test_a_plan_after_a_loss_is_carried_out(facts: PlanInput, data: st.DataObject) -> None:
    facts = bare(facts)
    before = make_plan(facts, 1, "test")
    floor = Floor(facts)
    floor.place(before)
    lost = data.draw(st.sampled_from([node.name for node in facts.nodes]))
    floor.lose(lost, before)
    left = tuple(node for node in facts.nodes if node.name != lost)
    if not left:
        return
    after = make_plan(msgspec.structs.replace(facts, nodes=left, current=before), 2, "test")
    assert floor.carry_out(after) < STEPS_MAX
    floor.machines[lost] = Machine(next(node for node in facts.nodes if node.name == lost))
    again = make_plan(msgspec.structs.replace(facts, current=after), 3, "test")
    assert floor.carry_out(again) < STEPS_MAX
