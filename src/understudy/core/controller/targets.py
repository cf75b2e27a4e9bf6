"""From the plan and what is observed to what each node shall run now. Pure and stateless.

Make before break: what an app runs on is kept until all its planned primaries have been ready for a while;
then the rest goes, and the activations that gateways made are released. Keeping costs memory that the plan
gave to others: see `displacing`.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from understudy.core.controller.displacing import Displacement
from understudy.core.controller.drafts import LIVE, NodeDraft, TargetFacts, observed_on
from understudy.core.controller.nodes import Node
from understudy.core.lifecycle import NodePhase, ReplicaPhase
from understudy.wire.messages import Target, TargetReplica
from understudy.wire.records import ArtifactRef, Contingency, Placement, Role, VariantKey


def make_targets(facts: TargetFacts) -> dict[str, Target]:
    """A target for each node that reported what it runs; all with revision 0."""
    placements: dict[str, list[Placement]] = defaultdict(list)
    for placed in facts.plan.placements:
        if facts.is_planned(placed.app, placed.version):
            placements[placed.node].append(placed)
    drafts = [
        _draft(node, facts, placements[name])
        for name, node in sorted(facts.nodes.items())
        if node.connected and node.observed is not None and node.state != NodePhase.DEAD
    ]
    Displacement(drafts, facts).make()
    contingencies: dict[str, list[Contingency]] = defaultdict(list)
    for c in facts.plan.contingencies:
        if facts.is_planned(c.app, c.version):
            contingencies[c.node].append(c)
    names = [draft.node.info.name for draft in drafts]
    return {
        name: _target(draft, facts, tuple(contingencies[name]))
        for name, draft in zip(names, drafts, strict=True)
    }


def _draft(node: Node, facts: TargetFacts, placements: list[Placement]) -> NodeDraft:
    planned = [TargetReplica(p.app, p.version, p.variant, p.role) for p in placements if node.plannable]
    asked = facts.asked.get(node.info.name, ()) if node.plannable else ()
    planned += [TargetReplica(*what, Role.STANDBY) for what in asked if what not in [r.key for r in planned]]
    draft = NodeDraft(node, planned)
    missing = Counter(replica.key for replica in planned)
    # An activation that the plan wants too is re-labelled, but a replica of the plan's own comes first.
    for replica in sorted(
        observed_on(node), key=lambda r: (bool(r.activation), r.state != ReplicaPhase.READY, r.id)
    ):
        what = replica.key
        needed = replica.app in facts.apps and replica.app not in facts.stable
        # A version that had to be called back stays until the next: the current one may pass its probes.
        previous = facts.previous.get(replica.app)
        recalled = previous is not None and replica.version == previous.version
        if missing[what] > 0 and replica.state in LIVE:
            missing[what] -= 1
            draft.running.append(replica)
        elif replica.activation and (needed or recalled):
            draft.activated.append(replica)
        elif replica.activation:
            draft.released.add(replica.activation)
        elif needed and replica.state in LIVE and what[:2] in facts.versions:
            draft.kept.append(replica)
    return draft


# The message


def _target(draft: NodeDraft, facts: TargetFacts, contingencies: tuple[Contingency, ...]) -> Target:
    kept = [
        TargetReplica(r.app, r.version, r.variant, Role.STANDBY if r.role is Role.CONTINGENCY else r.role)
        for r in draft.kept
    ]
    replicas = (*draft.planned, *kept, *draft.bridges)
    # Former versions first: who looks an app up by its name alone finds the one that is planned.
    former = {r.key[:2] for r in replicas} | {r.key[:2] for r in draft.activated}
    former |= {(app.app, app.version) for app in facts.previous.values()}
    former -= {(app.app, app.version) for app in facts.apps.values()}
    apps = [facts.versions[key] for key in sorted(former) if key in facts.versions]
    apps += [facts.apps[app] for app in sorted(facts.apps)]
    wanted = [replica.key for replica in replicas]
    wanted += [(c.app, c.version, variant) for c in contingencies for variant in (c.first, c.variant)]
    # Any node can become the last resort, so it has the smallest variant of every app on its disk.
    last_resorts = (*facts.apps.values(), *facts.previous.values())
    wanted += [(app.app, app.version, app.smallest.name) for app in last_resorts]
    return Target(
        revision=0,
        apps=tuple(apps),
        replicas=replicas,
        contingencies=contingencies,
        stage=_artifacts(wanted, facts),
        released=tuple(sorted(draft.released)),
        quarantined=tuple(sorted(facts.quarantined - set(facts.asked.get(draft.node.info.name, ())))),
    )


def _artifacts(wanted: list[VariantKey], facts: TargetFacts) -> tuple[ArtifactRef, ...]:
    found: dict[str, ArtifactRef] = {}
    for app_name, version, variant_name in wanted:
        app = facts.versions.get((app_name, version))
        variant = app.variant(variant_name) if app else None
        if variant is not None:
            found.setdefault(variant.artifact.digest, variant.artifact)
    return tuple(found[digest] for digest in sorted(found))
