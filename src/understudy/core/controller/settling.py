"""Since when all is well with an app, so that what gateways had loaded for it may go."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from understudy.core.controller.drafts import observed_on
from understudy.core.controller.nodes import Node
from understudy.core.lifecycle import NodePhase, ReplicaPhase
from understudy.wire.records import Plan, Role, VariantKey

RELEASE_WAIT_MAX_S = 60.0
SOON = 5.0  # times the last wait


@dataclass(frozen=True, slots=True)
class ReleaseWait:
    """How long to wait before a stand-in is released, longer each time that a gateway wants it back soon.

    Gateways see what reports don't: a replica that is ready and fails its users. Without this its stand-in
    would be released and loaded again for as long as they eject it.
    """

    wait_s: float = 0.0
    since_s: float = -math.inf

    def after(self, now: float, first_s: float) -> ReleaseWait:
        """Something was loaded for the app at `now`."""
        soon = now - self.since_s < SOON * max(self.wait_s, first_s)
        return ReleaseWait(min(RELEASE_WAIT_MAX_S, 2 * self.wait_s) if soon else first_s, now)


class Settling:
    """Settled: all planned primaries are ready. Stable: they have been for long enough."""

    def __init__(self, release_after_s: float) -> None:
        self._release_after_s = release_after_s
        self._since_s: dict[str, float] = {}
        self._activated: frozenset[tuple[str, str]] = frozenset()  # (app, replica), as reported last
        self._waits: dict[str, ReleaseWait] = {}  # of apps that gateways had something loaded for
        self.stable: frozenset[str] = frozenset()

    @property
    def settled(self) -> Collection[str]:
        return self._since_s.keys()

    @property
    def stable_at_s(self) -> float:
        """When the last of the settled apps becomes stable, unless something happens to it."""
        return max((s + self._wait_s(app) for app, s in self._since_s.items()), default=-math.inf)

    def restart(self) -> None:
        """There is another plan."""
        self._since_s.clear()

    def update(self, plan: Plan | None, nodes: Mapping[str, Node], live: Collection[str], now: float) -> None:
        settled = settled_apps(plan, nodes) if plan is not None else frozenset()
        settled &= frozenset(live)
        activated = activated_replicas(nodes)
        # A gateway that activates something knows of a loss that may not have been seen here yet.
        doubtful = {app for app, _ in activated - self._activated}
        self._activated = activated
        self._since_s = {app: now if app in doubtful else self._since_s.get(app, now) for app in settled}
        for app in doubtful & self.stable:  # what was loaded before has been released
            wait = self._waits.get(app, ReleaseWait())
            self._waits[app] = wait.after(now, self._release_after_s)
        self.stable = frozenset(
            app for app, since_s in self._since_s.items() if now - since_s >= self._wait_s(app)
        )

    def _wait_s(self, app: str) -> float:
        """How long primaries of `app` have to be ready before what gateways had loaded for it is released."""
        wait = self._waits.get(app)
        return wait.wait_s if wait is not None else self._release_after_s


def settled_apps(plan: Plan, nodes: Mapping[str, Node]) -> frozenset[str]:
    """Apps with a planned primary whose planned primaries are all ready now, on nodes that are ready."""
    wanted: dict[str, Counter[tuple[str, VariantKey]]] = {}
    for placement in plan.placements:
        if placement.role is Role.PRIMARY:
            wanted.setdefault(placement.app, Counter())[(placement.node, placement.key)] += 1
    ready: Counter[tuple[str, VariantKey]] = Counter()
    for name, node in nodes.items():
        if node.state == NodePhase.READY:
            ready.update(
                (name, replica.key) for replica in observed_on(node) if replica.state == ReplicaPhase.READY
            )
    return frozenset(app for app, counts in wanted.items() if counts <= ready)


def activated_replicas(nodes: Mapping[str, Node]) -> frozenset[tuple[str, str]]:
    """(app, replica) of all that gateways had started."""
    return frozenset(
        (replica.app, replica.id)
        for node in nodes.values()
        for replica in observed_on(node)
        if replica.activation
    )
