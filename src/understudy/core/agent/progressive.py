"""Contingencies in progress on one node: the smallest variant first, then the one that the plan wants.

Progressive failover as in FailLite: what loads fastest answers first, and is replaced, make before
break, by the largest variant that the plan found room for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from understudy.core.agent.replicas import LOADED, Replica, Wanted
from understudy.core.lifecycle import ReplicaPhase
from understudy.core.planning.footprint import load_ms, replica_mb
from understudy.wire.messages import Target
from understudy.wire.records import AppVersion, Contingency, Role, VariantKey


class Activation(msgspec.Struct, frozen=True):
    """A contingency that this node carries out until a target releases it. Survives the agent."""

    contingency: Contingency
    app: AppVersion
    first: str  # as decided here; the contingency's `variant` when one step is enough

    @property
    def key(self) -> str:
        return self.contingency.key

    def is_silent(self, states: Mapping[str, str]) -> bool:
        """Is the first answer still being loaded?"""
        loading = states.get(self.first) in (ReplicaPhase.STARTING, ReplicaPhase.LOADING)
        return loading and not set(LOADED) & set(states.values())

    def variants(self, states: Mapping[str, str], *, hold: bool = False) -> tuple[str, ...]:
        """Variants to run now, given the state of each variant of the app that exists here.

        `hold` keeps the larger one back unless it is on its way already.
        """
        first, last = self.first, self.contingency.variant
        if (
            first == last
            or states.get(last) == ReplicaPhase.READY
            or states.get(first) == ReplicaPhase.QUARANTINED
        ):
            return (last,)
        if last in states or (states.get(first) in LOADED and not hold):
            return (first, last)
        return (first,)


def plan_activation(
    contingency: Contingency,
    apps: Collection[AppVersion],
    *,
    here: Collection[str],
    quarantined: Collection[VariantKey],
    free_mb: float,
    skip_ms: float,
) -> Activation | str:
    """What to do for `contingency`, or a sentence why it can't be done here.

    `here`: digests of artifacts that are staged, and keys of environments that are ready.
    The small step is skipped when the larger variant fits and loads at most `skip_ms` later.
    """
    app = next((a for a in apps if (a.app, a.version) == (contingency.app, contingency.version)), None)
    if app is None:
        return f"version {contingency.version} of {contingency.app} is unknown here"
    names = dict.fromkeys((contingency.first, contingency.variant))
    known = [variant for variant in map(app.variant, names) if variant is not None]
    if len(known) < len(names):
        return f"{contingency.app} has no variant {' or '.join(names)}"
    healthy = [v for v in known if (app.app, app.version, v.name) not in quarantined]
    if not healthy:
        return "quarantined"
    local = [v for v in healthy if v.requisites.issubset(here)]
    if not local:
        lacking = "artifact" if all(v.artifact.digest not in here for v in healthy) else "environment"
        return f"its {lacking} is not {'staged' if lacking == 'artifact' else 'ready'} on this node"
    fitting = [v for v in local if replica_mb(v) <= free_mb]
    if not fitting:
        needs_mb = min(map(replica_mb, local))
        return f"memory: needs {needs_mb:.0f} MB, {free_mb:.0f} MB free"
    first, last = fitting[0], healthy[-1]
    if last in fitting and load_ms(last) <= load_ms(first) + skip_ms:
        first = last
    if last.name != contingency.variant:  # what the plan wants is quarantined: stay with what can be had
        contingency = msgspec.structs.replace(contingency, variant=last.name)
    return Activation(contingency, app, first.name)


def wanted_replicas(
    target: Target, activations: Iterable[Activation], replicas: Sequence[Replica]
) -> list[Wanted]:
    """What should run on this node: its target, and beyond that what its activations call for."""
    apps = {(app.app, app.version): app for app in target.apps}
    wanted = []
    for t in target.replicas:
        app = apps.get((t.app, t.version))
        variant = app.variant(t.variant) if app else None
        if app is not None and variant is not None:
            wanted.append(Wanted(app, variant, t.role))
    covered = {wish.key for wish in wanted}
    states_of: dict[tuple[str, int], dict[str, str]] = {}
    for replica in replicas:
        states_of.setdefault(replica.key[:2], {})[replica.key[2]] = replica.state
    # While one of the apps has no answer yet, nobody's larger variant takes the processor from it.
    activations = tuple(activations)
    hold = any(a.is_silent(states_of.get((a.app.app, a.app.version), {})) for a in activations)
    for activation in activations:
        app = activation.app
        names = activation.variants(states_of.get((app.app, app.version), {}), hold=hold)
        brief = activation.first != activation.contingency.variant
        wishes = [
            Wanted(app, variant, Role.CONTINGENCY, activation.key, brief and variant.name == activation.first)
            for variant in map(app.variant, names)
            if variant is not None
        ]
        wanted += [wish for wish in wishes if wish.key not in covered]
    return wanted
