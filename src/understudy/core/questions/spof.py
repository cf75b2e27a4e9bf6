"""Looks for single points of failure from the app down to its artifacts, each with its remedy.

Lives here: what follows from facts. Does not live here: how the facts are come by (`controller.questions`).
Weaknesses against failures that the plan was made for are found by playing the loss of each node and site
as it would go now, whether the plan was asked to survive it or not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from understudy.core.planning.footprint import replica_mb
from understudy.core.questions.losses import Stage, Standing
from understudy.core.questions.records import Answered, Audit, Finding
from understudy.failures import to_survive
from understudy.wire.records import AppVersion, NodeInfo

FAILURES_NAMED_MAX = 3
LOOPBACK = ("127.", "localhost", "[::1]")


@dataclass(frozen=True, slots=True)
class GatewayFacts:
    name: str
    http: str  # "host:port"
    processes: int
    connected: bool


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What there is around nodes and apps, as configured and as seen now."""

    gateways: tuple[GatewayFacts, ...]
    controllers: tuple[str, ...]
    store: str  # where it is
    artifacts: str
    one_disk: bool  # store and artifacts are on the same file system
    recallable: frozenset[str] = frozenset()  # apps that their previous version may answer for


def audit(standing: Standing, around: Surroundings) -> Audit:
    """Every single point of failure that the facts show, in the order of a request's way."""
    findings = [
        *_apps(standing),
        *_variants(standing, around),
        *_nodes(standing),
        *_sites(standing),
        *_gateways(around),
        *_controllers(around),
        *_storage(around),
    ]
    looked_at = {
        "app": len(standing.apps),
        "variant": sum(len(app.variants) for app in standing.apps),
        "node": len(_present(standing)),
        "site": len({node.site for node in _present(standing)}),
        "gateway": len(around.gateways),
        "controller": len(around.controllers),
        "store": 1,
        "artifact store": 1,
    }
    return Audit(standing.plan.revision, tuple(findings), looked_at)


def _present(standing: Standing) -> tuple[NodeInfo, ...]:
    return tuple(node for node in standing.nodes if node.name not in standing.away)


def _apps(standing: Standing) -> Iterator[Finding]:
    """Apps without an answer of their own, in a single loss or already."""
    for app, why in sorted(standing.plan.unplaced.items()):
        yield Finding(
            "app", app, f"it has no place: {why}", "add memory, or deploy a smaller variant", answers=True
        )
    nodes = _present(standing)
    stage = Stage(standing)
    failures = {
        failure: lost
        for failure, lost in to_survive(nodes, ("node", "site")).items()
        if len(lost) < len(nodes)
    }
    silent: dict[str, list[tuple[str, Answered]]] = defaultdict(list)
    for failure, lost in failures.items():
        for answer in stage.play(lost).answers:
            if answer.how in ("none", "static"):
                silent[answer.app].append((failure, answer))
    apps = {app.app: app for app in standing.apps}
    for name in sorted(silent):
        yield _silenced(apps[name], silent[name])


def _silenced(app: AppVersion, answers: list[tuple[str, Answered]]) -> Finding:
    failures = [failure for failure, _ in answers]
    more = len(failures) - FAILURES_NAMED_MAX
    named = " or ".join(failures[:FAILURES_NAMED_MAX]) + (f" or {more} more" if more > 0 else "")
    what = "nobody answers" if answers[0][1].how == "none" else "only its static answer is left"
    smallest_mb = min(replica_mb(variant) for variant in app.variants)
    return Finding(
        "app",
        app.app,
        f"{what} if {named} is lost ({answers[0][1].why})",
        f"keep {smallest_mb:.0f} MB free on a node that stays (`understudy plan --add-node` tells how much "
        "is enough), or deploy a smaller variant",
        answers=True,
    )


def _variants(standing: Standing, around: Surroundings) -> Iterator[Finding]:
    """Apps that one faulty model takes down, since nothing else can answer."""
    for app in standing.apps:
        usable = [v for v in app.variants if (app.app, app.version, v.name) not in standing.quarantined]
        distinct = {variant.artifact.digest for variant in usable}
        if len(distinct) > 1 or not usable or app.links_beyond_replicas or app.app in around.recallable:
            continue
        if len(app.variants) == 1:
            problem = f"{usable[0].name!r} is its only variant: a fault in that model leaves nobody to answer"
        elif len(usable) > 1:
            problem = "all of its variants are the same file: a fault in it leaves nobody to answer"
        else:
            problem = f"all of its variants but {usable[0].name!r} are in quarantine"
        remedy = "deploy a smaller variant, or declare a static answer or another app in `fallback`"
        if len(usable) < len(app.variants):
            remedy = f"`understudy quarantine clear {app.app} VARIANT` once the cause is mended; or {remedy}"
        yield Finding("variant", app.app, problem, remedy, answers=True)


def _nodes(standing: Standing) -> Iterator[Finding]:
    nodes = _present(standing)
    if len(nodes) == 1:
        problem = "it is the only node: nothing answers while it is down"
        yield Finding("node", nodes[0].name, problem, "add a node", answers=True)
        return
    if nodes and all(node.address.startswith(("unix:", "tcp:127.", "tcp:localhost")) for node in nodes):
        yield Finding(
            "node",
            "this machine",
            f"all {len(nodes)} nodes are processes of one machine",
            "run `understudy agent` on other machines, with `listen` and `worker_host` in the cluster file",
            answers=True,
        )
    for name in sorted(standing.away):
        problem = "it is away: what it held runs elsewhere or not at all, and one more loss is one too many"
        yield Finding(
            "node", name, problem, "bring it back, or take it out of the cluster file", answers=True
        )


def _sites(standing: Standing) -> Iterator[Finding]:
    nodes = _present(standing)
    sites = {node.site.split("/")[0] for node in nodes}
    if len(sites) == 1 and len(nodes) > 1:
        yield Finding(
            "site",
            sites.pop(),
            f"all {len(nodes)} nodes are in it: nothing answers when it is lost",
            "add a node in another site; if the nodes are in different ones, say so (`site` of each node)",
            answers=True,
        )


def _gateways(around: Surroundings) -> Iterator[Finding]:
    connected = [gateway for gateway in around.gateways if gateway.connected]
    if not around.gateways:
        yield Finding("gateway", "none", "the cluster file names no gateway", "add one", answers=True)
        return
    if len(around.gateways) == 1:
        only = around.gateways[0]
        dies = "its machine" if only.processes > 1 else "its process or machine"
        problem = f"it is the only gateway: no client is answered while {dies} is down"
    elif len(connected) < 2:
        only = (connected or around.gateways)[0]
        names = ", ".join(gateway.name for gateway in around.gateways if not gateway.connected)
        problem = f"of {len(around.gateways)} gateways only {len(connected)} is connected: {names} not"
    elif all(gateway.http.startswith(LOOPBACK) for gateway in around.gateways):
        yield Finding(
            "gateway",
            "this machine",
            f"all {len(around.gateways)} gateways listen on the loopback of one machine",
            "run one on another machine, with an address that clients reach",
            answers=True,
        )
        return
    else:
        return
    remedy = (
        "run a second one, on another machine, and give clients both addresses (`understudy.Client` does)"
    )
    yield Finding("gateway", only.name, problem, remedy, answers=True)


def _controllers(around: Surroundings) -> Iterator[Finding]:
    if len(around.controllers) == 1:
        yield Finding(
            "controller",
            around.controllers[0],
            "it is the only one: while it is down nothing is deployed and no lost replica is replaced; "
            "clients are answered, and what is lost then is answered by the contingencies",
            "run it under an init system that starts it again; it takes up where it was",
            answers=False,
        )


def _storage(around: Surroundings) -> Iterator[Finding]:
    yield Finding(
        "store",
        around.store,
        "plan, versions and events are in one file on one disk; without it the cluster serves on, but the "
        "controller, started anew, doesn't know what was deployed",
        "put `data_dir` on mirrored storage, and keep a copy of the manifests",
        answers=False,
    )
    shared = "; the store is on the same disk" if around.one_disk else ""
    yield Finding(
        "artifact store",
        around.artifacts,
        f"artifacts are in one directory{shared}; without it nodes have only what is on their own disks",
        "put `artifacts_dir` on mirrored or network storage other than the store's, and keep the files you "
        "deployed",
        answers=False,
    )
