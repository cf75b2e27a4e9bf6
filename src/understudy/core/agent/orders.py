"""What others want of this node: the controller's target, and the contingencies that gateways asked for."""

from __future__ import annotations

from understudy.core.agent import events as ev
from understudy.core.agent.environments import Environments
from understudy.core.agent.environments import wanted as environments_of
from understudy.core.agent.outbox import Outbox
from understudy.core.agent.progressive import Activation, plan_activation, wanted_replicas
from understudy.core.agent.replicas import Wanted
from understudy.core.agent.restarts import CrashHistory
from understudy.core.agent.roster import Roster
from understudy.core.lifecycle import ReplicaPhase
from understudy.settings.agent import AgentTuning
from understudy.wire.messages import Target
from understudy.wire.records import AppVersion, Contingency, VariantKey


class Orders:
    """`target` is None until one was heard: then nobody knows what should not run here.

    A contingency is carried out until a target ends it or takes it over.
    """

    def __init__(
        self,
        saved: ev.Saved,
        tuning: AgentTuning,
        roster: Roster,
        history: CrashHistory,
        environments: Environments,
        out: Outbox,
    ) -> None:
        self.target = saved.target
        self.staged: set[str] = set()  # digests of what is on local disk
        self._activations = {activation.key: activation for activation in saved.activations}
        self._tuning = tuning
        self._roster = roster
        self._history = history
        self._environments = environments
        self._out = out

    @property
    def revision(self) -> int:
        return self.target.revision if self.target else 0

    def quarantined(self, now: float) -> frozenset[VariantKey]:
        listed = self.target.quarantined if self.target else ()
        return frozenset(self._history.paused(now) + listed)

    def app(self, name: str, version: int) -> AppVersion | None:
        apps = (
            *(self.target.apps if self.target else ()),
            *(activation.app for activation in self._activations.values()),
        )
        return next((a for a in apps if (a.app, a.version) == (name, version)), None)

    def wanted(self, target: Target) -> list[Wanted]:
        return wanted_replicas(target, self._activations.values(), self._roster.ours)

    def take(self, target: Target) -> bool:
        """Whether it is news."""
        if target.revision < self.revision:
            return False
        self.target = target
        known = {(a.app, a.version) for a in target.apps}
        for r in target.replicas:
            if (r.app, r.version) not in known:
                message = f"no version {r.version} of {r.app} in the target"
                self._out.tell("target.misunderstood", message, r.app)
        for app, version, variant in self._history.acknowledge(frozenset(target.quarantined)):
            self._out.tell("quarantine.lifted", f"{variant} of version {version} may run again", app)
        wanted = {r.key for r in target.replicas}
        for key, activation in list(self._activations.items()):
            final = (activation.app.app, activation.app.version, activation.contingency.variant)
            if key in target.released or final in wanted:
                del self._activations[key]
                self._out.tell("activation.released", f"{key} is over", activation.app.app)
        return True

    def activate(self, contingency: Contingency, now: float) -> Activation | str:
        """What is to be carried out from now on. A reason why not; empty where nothing is left to do."""
        if self.target is None:
            return "this node has no target yet"
        ready = [r for r in self._roster.ours if r.state == ReplicaPhase.READY]
        # A former version answers too, but a newer one may be what the asker can't use.
        if any(r.key[0] == contingency.app and r.key[1] <= contingency.version for r in ready):
            return ""
        # Two failures may be reported at once for one app (a node and its site): one is being mended.
        wanted = (contingency.app, contingency.version)
        if any((a.app.app, a.app.version) == wanted for a in self._activations.values()):
            return ""
        activation = plan_activation(
            contingency,
            self.target.apps,
            here=self.staged | self._environments.ready,
            quarantined=self.quarantined(now),
            free_mb=self._roster.free_mb,
            skip_ms=self._tuning.progressive_skip_ms,
        )
        if isinstance(activation, Activation):
            self._activations[activation.key] = activation
        else:
            self.stage()
        return activation

    def save(self) -> None:
        self._out.add(ev.Save(ev.Saved(self.target, tuple(self._activations.values()))))

    def stage(self) -> None:
        if self.target is None:
            return
        running = {r.wanted.variant.artifact.digest for r in self._roster if r.wanted is not None}
        keep = running | {ref.digest for ref in self.target.stage}
        self._out.add(ev.StageArtifacts(self.target.stage, frozenset(keep)))
        self._out.add(ev.HaveEnvironments(environments_of(self.target.apps)))
