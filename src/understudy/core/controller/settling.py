"""Since when all is well with an app, so that what gateways had loaded for it may go."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from understudy.core.controller.nodes import Node
from understudy.core.controller.targets import ReleaseWait, activated_replicas, settled_apps
from understudy.wire.records import Plan


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
