"""Answers questions to the plan in force without touching anything.

Lives here: which question it is, names that are looked up, and what another plan would change. How a loss
goes is in `losses`, why an app is where it is in `explanation`. Solves for as long as `make_plan` does: run
it in a thread.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import msgspec

from understudy.core.planning import objective
from understudy.core.planning.objective import place
from understudy.core.planning.plan import PlanInput, make_plan, overhead, problem_of
from understudy.core.questions.explanation import explain
from understudy.core.questions.losses import Stage, Standing
from understudy.core.questions.records import (
    Figures,
    Kept,
    Loss,
    NewNode,
    NextPlan,
    PlanChange,
    Question,
    QuestionAnswered,
)
from understudy.failures import ANY, any_count, any_of, kind_of, lost_nodes, sites_of, to_survive
from understudy.wire.errors import Code, InvalidArgument, UnderstudyError
from understudy.wire.records import AppVersion, Criticality, NodeInfo, Outcome, Plan, Role

NAMED_MAX = 20  # replicas that start
SILENT = ("none", "static")


def answer(question: Question, standing: Standing, facts: PlanInput) -> QuestionAnswered:
    """What `question` asks. `facts` are those that the next plan would be made from.

    Raises `InvalidArgument` for a question that makes no sense, NOT_FOUND for unknown names.
    """
    asked = bool(question.fail) + bool(question.add or question.remove) + bool(question.explain)
    if asked != 1:
        raise InvalidArgument("ask one thing at a time: fail, add and remove, or explain")
    found = QuestionAnswered(standing.plan.revision, tuple(sorted(standing.away)))
    if question.explain:
        app = named_app(question.explain, facts.apps)
        return msgspec.structs.replace(found, explanation=explain(app, standing.plan, facts))
    if question.add or question.remove:
        return msgspec.structs.replace(found, change=changed(question, standing.plan, facts))
    failure = failure_of(question.fail, standing.nodes)
    if several := any_count(failure):
        return msgspec.structs.replace(found, any_loss=Stage(standing).play_any(several))
    return msgspec.structs.replace(found, loss=lose(failure, standing, facts))


# Names


def failure_of(domains: Iterable[str], nodes: tuple[NodeInfo, ...]) -> str:
    """The failure that these make up, as `understudy.failures` names it.

    A name alone is a node's, or else a site's. Raises NOT_FOUND, and `InvalidArgument` for a mixture with
    "any-K".
    """
    names = list(dict.fromkeys(part.strip() for domain in domains for part in domain.split("+")))
    if len(names) == 1 and names[0].startswith(ANY):
        count = names[0].removeprefix(ANY)
        if count.isascii() and count.isdigit() and int(count) > 0:
            return names[0]
    if any(name.startswith(ANY) for name in names):
        raise InvalidArgument(f'"any-K" stands alone, with a K of 1 or more: not {"+".join(names)!r}')
    return "+".join(dict.fromkeys(_domain(name, nodes) for name in names))


def _domain(name: str, nodes: tuple[NodeInfo, ...]) -> str:
    sites = {site for node in nodes for site in sites_of(node.site)}
    known = {"node": {node.name for node in nodes}, "site": sites}
    kind, _, rest = name.partition(":")
    if kind in known and rest in known[kind]:
        return name
    for kind, names in known.items():
        if name in names:
            return f"{kind}:{name}"
    raise _unknown("node or site", rest or name, known["node"] | sites)


def named_app(name: str, apps: tuple[AppVersion, ...]) -> AppVersion:
    """Raises NOT_FOUND."""
    for app in apps:
        if app.app == name:
            return app
    raise _unknown("app", name, {app.app for app in apps})


def _unknown(what: str, name: str, known: set[str]) -> UnderstudyError:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there is {', '.join(sorted(known)[:5]) or 'none'}"
    return UnderstudyError(Code.NOT_FOUND, f"no {what} is called {name!r}{hint}")


# A loss


def lose(failure: str, standing: Standing, facts: PlanInput) -> Loss:
    lost = lost_nodes(failure, standing.nodes)
    played = Stage(standing).play(lost)
    left = tuple(node for node in facts.nodes if node.name not in lost)
    return Loss(
        failure=failure,
        lost=tuple(sorted(lost)),
        apps=tuple(played.answers),
        unaffected=len(standing.apps) - len(played.answers),
        fills=tuple(played.fills),
        next_plan=_next_plan(msgspec.structs.replace(facts, nodes=left)) if left else None,
    )


def _next_plan(facts: PlanInput) -> NextPlan:
    plan = make_plan(facts, 1, "what if")
    full_size = _full_size(plan, facts.apps)
    placed = {p.app for p in plan.placements if p.role is Role.PRIMARY}
    return NextPlan(
        moved=plan.moved,
        full_size=len(full_size),
        smaller=len(placed - full_size),
        unplaced=tuple(sorted(plan.unplaced)),
        unanswered=len({outcome.app for outcome in plan.outcomes if outcome.how in SILENT}),
        warnings=len(plan.warnings),
        method=plan.method,
        solve_ms=plan.solve_ms,
    )


# Nodes that come or go


def changed(question: Question, plan: Plan, facts: PlanInput) -> PlanChange:
    """What the planner would do with other nodes. Raises `InvalidArgument` and NOT_FOUND for their names."""
    known = {node.name for node in facts.nodes}
    for name in question.remove:
        if name not in known:
            raise _unknown("node", name, known)
    added = _new_nodes(question.add, facts.nodes)
    nodes = (*(node for node in facts.nodes if node.name not in question.remove), *added)
    other = msgspec.structs.replace(facts, nodes=nodes)
    new = make_plan(other, plan.revision + 1, "what if")
    had = {place(placed) for placed in plan.placements}
    starts = [f"{p.app}/{p.variant} on {p.node}" for p in new.placements if place(p) not in had]
    return PlanChange(
        added=tuple(node.name for node in added),
        removed=question.remove,
        before=figures(plan, facts),
        after=figures(new, other),
        moved=len(starts),
        starts=tuple(starts[:NAMED_MAX]),
        warnings_gone=_unlike(plan.warnings, new.warnings),
        warnings_new=_unlike(new.warnings, plan.warnings),
    )


def _new_nodes(wanted: tuple[NewNode, ...], nodes: tuple[NodeInfo, ...]) -> tuple[NodeInfo, ...]:
    names = {node.name for node in nodes}
    site = nodes[0].site if nodes else "default"
    added = []
    for new in wanted:
        if new.name in names:
            raise InvalidArgument(f"there is a node {new.name!r} already")
        name = new.name or next(free for i in range(1, len(names) + 2) if (free := f"new-{i}") not in names)
        names.add(name)
        added.append(NodeInfo(name, new.site or site, "", new.memory_mb))
    return tuple(added)


def figures(plan: Plan, facts: PlanInput) -> Figures:
    """What `plan`, which was replayed, achieves with `facts`."""
    placed = {p.app for p in plan.placements if p.role is Role.PRIMARY}
    critical = {app.app for app in facts.apps if app.criticality is Criticality.CRITICAL}
    best = objective.ideal(problem_of(facts))
    return Figures(
        nodes=len(facts.nodes),
        apps=len(facts.apps),
        critical=len(critical),
        objective=plan.objective,
        retained=plan.objective / best if best else 0.0,
        placed=len(placed),
        full_size=len(_full_size(plan, facts.apps)),
        kept=tuple(_kept(kind, plan, placed, critical) for kind in _kinds(facts)),
        memory_overhead=overhead(plan, facts.apps),
    )


def _kept(kind: str, plan: Plan, placed: set[str], critical: set[str]) -> Kept:
    of_kind = [outcome for outcome in plan.outcomes if _kind(outcome) == kind]
    answered = placed - {outcome.app for outcome in of_kind if outcome.how in SILENT}
    warm = answered - {outcome.app for outcome in of_kind if outcome.how != "warm"}
    return Kept(kind.removesuffix("/0"), len(answered), len(warm), len(warm & critical))


def _kind(outcome: Outcome) -> str:
    return kind_of(outcome.failure)


def _kinds(facts: PlanInput) -> list[str]:
    """Of the failures to survive: node/0, site/0 (the largest places), site/1, …, any-2."""
    survive = facts.settings.survive
    kinds = [kind_of(failure) for failure in to_survive(facts.nodes, survive)]
    several = min(any_of(survive), len(facts.nodes) - 1)
    return list(dict.fromkeys([*kinds, *([f"{ANY}{several}"] if several > 0 else [])]))


def _full_size(plan: Plan, apps: tuple[AppVersion, ...]) -> set[str]:
    """Apps with a primary, and none that is smaller."""
    full_size = {app.app: app.full_size.name for app in apps}
    variants: dict[str, set[str]] = {}
    for placed in plan.placements:
        if placed.role is Role.PRIMARY:
            variants.setdefault(placed.app, set()).add(placed.variant)
    return {app for app, names in variants.items() if names == {full_size.get(app)}}


def _unlike(sentences: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """Those of `sentences` that `others` don't say as well, with whatever figures after the colon."""
    said = {other.partition(": ")[0] for other in others}
    return tuple(sentence for sentence in sentences if sentence.partition(": ")[0] not in said)
