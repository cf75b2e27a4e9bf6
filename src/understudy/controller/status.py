"""What GET /v1/status answers: the cluster as the controller sees it now, on one page."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from understudy.controller.traffic import Traffic
from understudy.core.controller.environments import troubles
from understudy.core.controller.machine import ControllerMachine
from understudy.core.controller.nodes import ANSWERING, Node
from understudy.core.controller.quarantine import Case
from understudy.core.lifecycle import CasePhase, NodePhase, ReplicaPhase
from understudy.core.planning.objective import placements_by_app
from understudy.core.views import AppHealth
from understudy.wire.messages import ReplicaState
from understudy.wire.records import AppVersion, Outcome, Placement, Plan, Role, VariantKey

Observed = list[tuple[str, ReplicaState]]  # replicas of one app, by node

RECOVERED_SHOWN_MAX = 10


class StoreStatus(msgspec.Struct):
    ok: bool
    error: str = ""
    pending: int = 0  # records and events that wait to be written


class ReplicaStatus(msgspec.Struct):
    id: str
    version: int
    variant: str
    node: str
    role: str
    state: str
    pid: int
    memory_mb: float
    restarts: int
    detail: str
    proven_ago_s: float | None = None  # since an inference succeeded; up to 10 s less, in truth


class StandbyStatus(msgspec.Struct):
    """What answers when the primary's node is lost. `how`: warm, loading (it will be warm when it is ready),
    cold, unaffected, static or none.
    """

    how: str
    node: str | None = None
    variant: str | None = None


class AppStatus(msgspec.Struct):
    name: str
    version: int
    criticality: str
    weight: float
    state: str  # an `AppHealth`
    serving: str | None  # best variant that is ready; "static" for the declared answer; None: nobody
    full_size: str
    reason: str | None  # why it is not ok
    primary_nodes: list[str]  # as planned
    primary_variant: str | None
    standby: StandbyStatus
    protection: str  # of `standby`, as one phrase: "warm n2", "cold n3", "none"
    replicas: list[ReplicaStatus]
    requests: int
    failed: int
    degraded: int
    p50_ms: float | None
    p99_ms: float | None
    batching: dict[str, str] = {}  # by variant: whether its requests share batches, and why


class QuarantineStatus(msgspec.Struct):
    """A variant that crashes again and again somewhere. `state`: doubted, quarantined or on trial."""

    app: str
    version: int
    variant: str
    state: str
    why: str  # whose trouble it is, and by what evidence
    nodes: list[str]  # where it crashed
    node: str  # that is to try it now
    retry_s: float | None  # until it is tried again


class NodeStatus(msgspec.Struct):
    name: str
    site: str
    state: str
    reason: str  # of the state, where it is not ready; or what is wrong with the node itself
    connected: bool
    memory_mb: float
    memory_used_mb: float
    replicas: int
    blank_workers: int
    sandbox: str  # of its models: its tier, and in parentheses what it lacks there; empty: not known


class GatewayStatus(msgspec.Struct):
    name: str
    connected: bool
    http_address: str
    revision: int  # of the route table that it serves by
    suspects: list[str]


class ClusterStatus(msgspec.Struct):
    cluster: str
    leader: str
    revision: int  # of the plan; 0: none yet
    routes_revision: int
    planning: bool
    store: StoreStatus
    apps: list[AppStatus]
    nodes: list[NodeStatus]
    gateways: list[GatewayStatus]
    quarantined: list[VariantKey]
    quarantines: list[QuarantineStatus]
    warnings: list[str]


def cluster_status(
    machine: ControllerMachine,
    traffic: Traffic,
    store: StoreStatus,
    cluster: str,
    leader: str,
    now: float = 0.0,
) -> ClusterStatus:
    plan = machine.plan.plan if machine.plan else Plan(0)
    return ClusterStatus(
        cluster=cluster,
        leader=leader,
        revision=plan.revision,
        routes_revision=machine.table.revision if machine.table else 0,
        planning=machine.planning.running,
        store=store,
        apps=_apps(plan, machine, traffic),
        nodes=[_node(node) for _, node in sorted(machine.nodes.by_name.items())],
        gateways=[
            GatewayStatus(
                name=view.name,
                connected=view.connected,
                http_address=view.stats.http_address if view.stats else "",
                revision=view.stats.revision if view.stats else 0,
                suspects=list(view.stats.suspects) if view.stats else [],
            )
            for _, view in sorted(traffic.gateways.items())
        ],
        quarantined=sorted(machine.quarantined),
        quarantines=[_quarantine(case, now) for _, case in sorted(machine.quarantine.cases.items())],
        warnings=_warnings(machine, plan, store, traffic),
    )


def _apps(plan: Plan, machine: ControllerMachine, traffic: Traffic) -> list[AppStatus]:
    placements = placements_by_app(plan)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in plan.outcomes:
        outcomes[outcome.app].append(outcome)
    observed: dict[str, Observed] = defaultdict(list)
    for name, node in sorted(machine.nodes.by_name.items()):
        for replica in _trusted(node):
            observed[replica.app].append((name, replica))
    return [
        _app(
            app,
            placements.get(app.app, []),
            outcomes.get(app.app, []),
            observed.get(app.app, []),
            plan,
            machine,
            traffic,
        )
        for app in machine.apps.values()
    ]


def _app(
    app: AppVersion,
    placements: list[Placement],
    outcomes: list[Outcome],
    observed: Observed,
    plan: Plan,
    machine: ControllerMachine,
    traffic: Traffic,
) -> AppStatus:
    replicas = _replicas(observed, machine)
    serving = _serving(app, observed)
    seen = traffic.app(app.app)
    primaries = [p for p in placements if p.role is Role.PRIMARY]
    ready = {(node, r.variant) for node, r in observed if r.state == ReplicaPhase.READY}
    standby = _standby(placements, outcomes)
    if standby.how == "warm" and (standby.node, standby.variant) not in ready:
        standby.how = "loading"
    failing = traffic.failing(app.app) if serving else ""
    state = _health(app, serving, failing)
    reason = failing or _reason(app, plan, replicas, machine.planning.running)
    return AppStatus(
        name=app.app,
        version=app.version,
        criticality=app.criticality.value,
        weight=app.weight,
        state=state,
        serving=serving,
        full_size=app.full_size.name,
        reason=None if state == AppHealth.OK else reason,
        primary_nodes=[p.node for p in primaries],
        primary_variant=primaries[0].variant if primaries else None,
        standby=standby,
        protection=f"{standby.how} {standby.node}" if standby.node else standby.how,
        replicas=replicas,
        requests=seen.requests,
        failed=seen.failed,
        degraded=seen.degraded,
        p50_ms=seen.p50_ms,
        p99_ms=seen.p99_ms,
        batching={variant.name: variant.batching for variant in app.variants},
    )


def _health(app: AppVersion, serving: str | None, failing: str) -> AppHealth:
    if not serving:
        return AppHealth.DOWN
    if failing:
        return AppHealth.FAILING
    return AppHealth.OK if serving == app.full_size.name else AppHealth.DEGRADED


def _replicas(observed: Observed, machine: ControllerMachine) -> list[ReplicaStatus]:
    return [
        ReplicaStatus(
            id=r.id,
            version=r.version,
            variant=r.variant,
            node=name,
            role=r.role.value,
            state=r.state,
            pid=r.pid,
            memory_mb=r.memory_mb,
            restarts=r.restarts,
            detail=r.detail,
            proven_ago_s=machine.nodes.proven_ago_s(name, r.id),
        )
        for name, r in observed
    ]


def _trusted(node: Node) -> tuple[ReplicaState, ...]:
    """Replicas of a node that is there. What a lost one reported last says nothing."""
    return node.observed.replicas if node.observed and node.state in ANSWERING else ()


def _serving(app: AppVersion, observed: Observed) -> str | None:
    """Best ready variant: of the current version if there is one, else of a former one."""
    ready = [replica for _, replica in observed if replica.state == ReplicaPhase.READY]
    if ready:
        best = min(ready, key=lambda r: (r.version != app.version, app.rank(r.variant)))
        former = "" if best.version == app.version else f" (version {best.version})"
        return best.variant + former
    return "static" if app.static else None


def _reason(app: AppVersion, plan: Plan, replicas: list[ReplicaStatus], planning: bool) -> str:
    if app.app in plan.unplaced:
        return plan.unplaced[app.app]
    if planning:
        return "a new plan is being made"
    waiting = [
        r
        for r in replicas
        if r.version == app.version and r.state not in (ReplicaPhase.READY, ReplicaPhase.DRAINING)
    ]
    if waiting:
        worst = max(waiting, key=lambda r: r.restarts)
        return f"{worst.variant} on {worst.node} is {worst.state}" + (
            f": {worst.detail}" if worst.detail else ""
        )
    planned = {p.variant for p in plan.placements if p.app == app.app and p.role is Role.PRIMARY}
    if planned and app.full_size.name not in planned:
        smaller = ", ".join(sorted(planned))
        return f"planned with {smaller}: there is no room for {app.full_size.name}, or it is quarantined"
    return "its replicas are not ready"


def _standby(placements: list[Placement], outcomes: list[Outcome]) -> StandbyStatus:
    """The plan's proof for the loss of the primary's node, or else for whatever it survives that takes it.

    What a failure doesn't affect has no proof. Without any, a standby is warm all the same.
    """
    primaries = [p.node for p in placements if p.role is Role.PRIMARY]
    if not primaries:
        return StandbyStatus("none")
    nearest = [o for o in outcomes if o.failure == f"node:{primaries[0]}"] or outcomes
    if nearest:
        return StandbyStatus(nearest[0].how, nearest[0].node, nearest[0].variant)
    for placed in placements:
        if placed.role is Role.STANDBY:
            return StandbyStatus("warm", placed.node, placed.variant)
    return StandbyStatus("none")


def _node(node: Node) -> NodeStatus:
    observed = node.observed if node.connected else None
    reasons = {
        NodePhase.SUSPECT: "not heard for a moment",
        NodePhase.DEAD: "its lease was lost",
        NodePhase.RETURNING: "waits, empty, until it has been stable for long enough",
        NodePhase.DRAINED: "drained by an operator",
        NodePhase.UNKNOWN: "expected, not connected yet",
    }
    return NodeStatus(
        name=node.info.name,
        site=node.info.site,
        state=node.state,
        reason=reasons.get(node.state) or "; ".join(observed.trouble if observed else ()),
        connected=node.connected,
        memory_mb=node.info.memory_mb,
        memory_used_mb=observed.memory_used_mb if observed else 0.0,
        replicas=len(observed.replicas) if observed else 0,
        blank_workers=observed.blank_workers if observed else 0,
        sandbox=node.sandbox,
    )


def _quarantine(case: Case, now: float) -> QuarantineStatus:
    retry_s = round(max(case.retry_at_s - now, 0.0), 1) if case.state == CasePhase.QUARANTINED else None
    why = (
        case.why
        or f"crashes again and again on {' and '.join(sorted(case.witnesses))} only: that node's trouble"
    )
    return QuarantineStatus(*case.key, case.state, why, sorted(case.witnesses), case.asked, retry_s)


def _warnings(machine: ControllerMachine, plan: Plan, store: StoreStatus, traffic: Traffic) -> list[str]:
    warnings = list(plan.warnings)
    if not machine.hearing.over:
        warnings.append("just started: nothing is published before gateways and agents told what they hold")
    if machine.catalog.recovered:
        apps = ", ".join(sorted(machine.catalog.recovered)[:RECOVERED_SHOWN_MAX])
        more = len(machine.catalog.recovered) - RECOVERED_SHOWN_MAX
        apps += f" and {more} more" if more > 0 else ""
        warnings.append(f"the store had lost what became of {apps}: taken over from gateways and agents")
    warnings += [f"stored record {key} makes no sense: {why}" for key, why in machine.unreadable.items()]
    if not traffic.served:
        warnings.append("no gateway is connected: nobody is answered")
    observed = [node.observed for _, node in sorted(machine.nodes.by_name.items()) if node.connected]
    warnings += [
        f"{state.node}: {state.warning}"
        for state in observed
        if state is not None and state.warning and state.warning not in state.trouble
    ]
    warnings += troubles((node for _, node in sorted(machine.nodes.by_name.items())), machine.apps.values())
    warnings += [f"{app} has no primary: {why}" for app, why in sorted(plan.unplaced.items())]
    if machine.planning.error:
        warnings.append(f"planning failed: {machine.planning.error}")
    if not any(node.plannable for node in machine.nodes.by_name.values()):
        warnings.append("no node can take replicas")
    if not store.ok:
        warnings.append(f"the store is away, bookkeeping waits in memory: {store.error}")
    return warnings
