"""How full a plan makes every device, and what of the rest its failures need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from understudy.core.planning.footprint import replica_mb
from understudy.core.planning.plan import PlanInput, devices_of, usable_nodes
from understudy.core.questions.records import Held
from understudy.wire.records import Plan

NAMED_MAX = 5
Where = tuple[str, str]  # node, device


class Holdings:
    """Of one plan, with the apps that it is about and its nodes. Memory without `plan.node_reserve_mb`."""

    def __init__(self, plan: Plan, facts: PlanInput) -> None:
        sizes = {(a.app, a.version, v.name): replica_mb(v) for a in facts.apps for v in a.variants}
        nodes = usable_nodes(facts)
        self._sites = {node.name: node.site for node in nodes}
        self.memory_mb: dict[Where, float] = {
            (node.name, device.name): device.memory_mb for node in nodes for device in devices_of(node)
        }
        self._used_mb: dict[Where, float] = defaultdict(float)
        for placed in plan.placements:
            size_mb = sizes.get(placed.key, 0.0)
            self._used_mb[placed.node, placed.device] += size_mb
            self.memory_mb.setdefault((placed.node, placed.device), 0.0)
        self._kept_mb: dict[Where, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for c in plan.contingencies:
            both = {c.first, c.variant}
            needed_mb = sum(sizes.get((c.app, c.version, variant), 0.0) for variant in both)
            self._kept_mb[c.node, c.device][c.failure] += needed_mb

    def used_mb(self, at: Where) -> float:
        return self._used_mb[at]

    def kept(self, at: Where) -> tuple[float, str]:
        """What the worst failure needs of the free memory, and which that is. Of "any-K": its steps apart."""
        needs = self._kept_mb[at]
        failure = max(needs, key=lambda failure: needs[failure], default="")
        return needs.get(failure, 0.0), failure

    def best(self, back: dict[Where, float], nodes: Collection[str] = ()) -> tuple[Where | None, float]:
        """Where most is free (on one of `nodes`, if any are given), once `back` is given back."""
        free_mb = {
            at: max(0.0, memory_mb - self._used_mb[at]) + back.get(at, 0.0)
            for at, memory_mb in self.memory_mb.items()
            if not nodes or at[0] in nodes
        }
        at = max(free_mb, key=lambda at: free_mb[at], default=None)
        return at, free_mb[at] if at is not None else 0.0

    def fitting(self, size_mb: float, without: set[str]) -> str:
        """Names of the nodes with so much free, the emptiest first."""
        free = {at: mb - self._used_mb[at] for at, mb in self.memory_mb.items() if at[0] not in without}
        fitting = sorted((at for at in free if free[at] >= size_mb), key=lambda at: -free[at])
        return some([f"{named(at)} ({free[at]:.0f} MB free)" for at in fitting])

    def listed(self) -> tuple[Held, ...]:
        return tuple(
            Held(at[0], at[1], self._sites.get(at[0], ""), memory_mb, self._used_mb[at], *self.kept(at))
            for at, memory_mb in sorted(self.memory_mb.items())
        )


def some(names: Iterable[str]) -> str:
    """The first of many."""
    known = list(names)
    more = len(known) - NAMED_MAX
    return ", ".join(known[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def named(at: Where) -> str:
    return " device ".join(filter(None, at))
