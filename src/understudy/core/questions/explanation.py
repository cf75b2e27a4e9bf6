"""Why an app is where it is and what it would take to do better, in sentences with the planner's figures."""

from __future__ import annotations

import msgspec

from understudy.core.planning import objective
from understudy.core.planning.footprint import replica_mb
from understudy.core.planning.plan import PlanInput, make_plan, problem_of
from understudy.core.questions.holdings import Holdings, named, some
from understudy.core.questions.records import Explanation, Reason
from understudy.failures import any_count, lost_nodes, to_survive
from understudy.wire.records import (
    AppVersion,
    Criticality,
    Outcome,
    Placement,
    Plan,
    Role,
    Variant,
)


def explain(app: AppVersion, plan: Plan, facts: PlanInput) -> Explanation:
    """Solves for another plan where it has to be told what criticality would change."""
    return _Explaining(app, plan, facts).run()


class _Explaining:
    def __init__(self, app: AppVersion, plan: Plan, facts: PlanInput) -> None:
        self._app = app
        self._plan = plan
        self._facts = facts
        usable = {usable.app: usable for usable in problem_of(facts).apps}
        self._usable = usable[app.app].variants if app.app in usable else ()
        placements = [p for p in plan.placements if p.app == app.app and p.version == app.version]
        self._primaries = [p for p in placements if p.role is Role.PRIMARY]
        self._standbys = [p for p in placements if p.role is Role.STANDBY]
        proof = plan.outcomes if self._primaries else ()  # else it is of another version, or says nothing
        self._outcomes = [outcome for outcome in proof if outcome.app == app.app]
        self._holdings = Holdings(plan, facts)

    def run(self) -> Explanation:
        reasons = {
            "place": self._place(),
            "larger": self._larger(),
            "standby": self._standby(),
            "failures": self._failures(),
            "warm": self._warm(),
            "batching": [f"{variant.name!r} {variant.batching}." for variant in self._app.variants],
        }
        found = tuple(Reason(about, tuple(said)) for about, said in reasons.items() if said)
        return Explanation(self._app.app, self._app.version, found)

    def _variant(self, name: str) -> Variant:
        return objective.variant_of(self._app, name)

    # where it runs

    def _place(self) -> list[str]:
        said = [self._held(placed) for placed in self._primaries]
        if not self._primaries:
            said = [
                f"It has no place: {self._plan.unplaced.get(self._app.app, 'it is not in the plan yet')}."
            ]
        for placed in self._primaries[:1]:
            size_mb = replica_mb(self._variant(placed.variant))
            others = self._holdings.fitting(size_mb, {p.node for p in self._primaries})
            if others:
                cost = self._facts.settings.movement_cost
                said.append(
                    f"There is room for it on {others}, too; it is not moved (plan.movement_cost = {cost:g}) "
                    "unless that protects more or spreads better by more than that."
                )
            else:
                said.append(f"No other node has {size_mb:.0f} MB free.")
        return said + self._unusable()

    def _held(self, placed: Placement) -> str:
        variant = self._variant(placed.variant)
        rank = self._app.rank(placed.variant)
        size = "its full-size variant" if rank == 0 else f"number {rank + 1} of its {_variants(self._app)}"
        at = placed.node, placed.device
        return (
            f"It runs as {placed.variant!r}, {size} (accuracy {variant.accuracy:g}, "
            f"{replica_mb(variant):.0f} MB), on {named(at)}, where {self._holdings.used_mb(at):.0f} of "
            f"{self._holdings.memory_mb[at]:.0f} MB are taken."
        )

    def _unusable(self) -> list[str]:
        said = []
        usable = {variant.name for variant in self._usable}
        for variant in self._app.variants:
            key = variant.environment_key
            without = [node.name for node in self._facts.nodes if (node.name, key) in self._facts.lacking]
            if without:
                where = "any node" if len(without) == len(self._facts.nodes) else some(without)
                said.append(f"The packages of {variant.name!r} aren't ready on {where}; the status says why.")
            if variant.name in usable:
                continue
            if (self._app.app, self._app.version, variant.name) in self._facts.quarantined:
                said.append(
                    f"{variant.name!r} is in quarantine because it kept crashing; "
                    f"`understudy quarantine clear {self._app.app} {variant.name}` lets it run again."
                )
            elif variant.profile is not None:
                said.append(
                    f"{variant.name!r} takes {variant.profile.latency_ms:.0f} ms, more than the app's "
                    f"objective_ms = {self._app.objective_ms:g}."
                )
        return said

    # what is larger

    def _larger(self) -> list[str]:
        rank = max((self._app.rank(p.variant) for p in self._primaries), default=len(self._app.variants))
        return [self._lacking(variant) for variant in self._usable if self._app.rank(variant.name) < rank]

    def _lacking(self, variant: Variant) -> str:
        """What `variant` would need, with what the app holds already given back."""
        size_mb = replica_mb(variant)
        back = {(p.node, p.device): replica_mb(self._variant(p.variant)) for p in self._primaries[:1]}
        at, free_mb = self._holdings.best(back)
        needs = f"{variant.name!r} (accuracy {variant.accuracy:g}) needs {size_mb:.0f} MB"
        if at is None:
            return f"{needs}, and no node can take replicas."
        if size_mb > free_mb:
            there = (
                f"{named(at)} has most, {free_mb:.0f} MB{' with its present replica gone' if back else ''}"
            )
            return f"{needs}; {there}: {size_mb - free_mb:.0f} MB are missing there."
        kept_mb, failure = self._holdings.kept(at)
        if size_mb > free_mb - kept_mb:
            return (
                f"{needs}; {named(at)} has {free_mb:.0f} MB free, but {kept_mb:.0f} MB of that are for those "
                f"who come back when {failure} is lost: {size_mb - free_mb + kept_mb:.0f} MB are missing."
            )
        return f"{needs}; {named(at)} has {free_mb:.0f} MB free: a later plan may take it."

    # the standby

    def _standby(self) -> list[str]:
        said = []
        for placed in self._standbys:
            said.append(f"Its standby is {placed.variant!r} on {named((placed.node, placed.device))}, warm.")
            said += self._prices(placed)
        return said

    def _prices(self, placed: Placement) -> list[str]:
        """The same sum that the planner minimises, per unit of the app's worth."""
        settings = self._facts.settings
        lost_by = to_survive(self._facts.nodes, settings.survive).values()
        homes = {p.node for p in self._primaries}
        times = sum(homes <= lost and placed.node not in lost for lost in lost_by)
        worth = objective.worth(self._app)
        prices = []
        for variant in self._usable:
            held = objective.standby_loss(self._app, variant, settings) / worth
            lacking = objective.accuracy_lost(self._app, variant) * times
            prices.append(
                f"{variant.name!r} {held:.3f} + {lacking:.3f} = {held + lacking:.3f} "
                f"({replica_mb(variant):.0f} MB)"
            )
        return [
            f"It answers in {times} of the failures to survive. A standby's price is its memory "
            f"(plan.standby_memory_cost = {settings.standby_memory_cost:g} for a full-size one) plus the "
            f"accuracy lost in these: {', '.join(prices)}. The cheapest that fits is taken."
        ]

    # failures

    def _failures(self) -> list[str]:
        several = to_survive(self._facts.nodes, self._facts.settings.survive)
        said = [self._told(outcome) for outcome in self._outcomes]
        others = len(several) - sum(outcome.failure in several for outcome in self._outcomes)
        if self._primaries and several:
            said.append(f"{others} of the {len(several)} failures to survive don't affect it.")
        return said

    def _told(self, outcome: Outcome) -> str:
        several = any_count(outcome.failure)
        when = f"If the worst {several} nodes are lost" if several else f"If {outcome.failure} is lost"
        if outcome.variant is None:
            what = "its static answer is given" if outcome.how == "static" else "nobody answers"
            return f"{when}, {what}."
        lost = objective.accuracy_lost(self._app, self._variant(outcome.variant))
        accuracy = f"with {lost:.1%} less accuracy than full size" if lost else "at full accuracy"
        return (
            f"{when}, {outcome.variant!r} answers on {outcome.node}, {outcome.how}, after about "
            f"{outcome.recovery_ms:.0f} ms, {accuracy}."
        )

    # what it takes to be warm

    def _warm(self) -> list[str]:
        if not self._primaries or not self._usable:
            return []
        if not self._outcomes:
            return ["No failure to survive silences it."]
        if all(outcome.how == "warm" for outcome in self._outcomes):
            return ["It is warm in every failure to survive."]
        if self._app.criticality is Criticality.CRITICAL:
            return [self._memory_for_warmth()]
        other = msgspec.structs.replace(self._app, criticality=Criticality.CRITICAL)
        apps = tuple(other if app.app == other.app else app for app in self._facts.apps)
        plan = make_plan(msgspec.structs.replace(self._facts, apps=apps), 1, "what if")
        said = [f"Only critical apps are kept warm; its criticality is {self._app.criticality.value!r}."]
        standbys = [p for p in plan.placements if p.app == other.app and p.role is Role.STANDBY]
        if not standbys:
            return [*said, f"Critical, it wouldn't be warm either. {self._memory_for_warmth()}"]
        return [*said, *(self._with_standby(placed, plan) for placed in standbys)]

    def _with_standby(self, placed: Placement, plan: Plan) -> str:
        cold = [o.failure for o in plan.outcomes if o.app == self._app.app and o.how != "warm"]
        worse = _silent(plan) - _silent(self._plan) - {self._app.app}
        sentence = (
            f'With criticality = "critical" it would be warm by {placed.variant!r} on {placed.node} '
            f"({replica_mb(self._variant(placed.variant)):.0f} MB); replicas that start: {plan.moved}"
        )
        if cold:
            sentence += f"; not if {' or '.join(cold)} is lost"
        if worse:
            sentence += f"; {len(worse)} other apps would lose their answer in a failure: {some(worse)}"
        return sentence + "."

    def _memory_for_warmth(self) -> str:
        smallest = min(self._usable, key=replica_mb)
        needed_mb = replica_mb(smallest)
        apart = [node for node in self._facts.nodes if self._survives(node.name)]
        if not apart:
            return "To be warm it needs a node that is not lost together with its primary's."
        at, free_mb = self._holdings.best({}, {node.name for node in apart})
        has = f"{named(at)} has most, {free_mb:.0f} MB free" if at else "none of those has any"
        missing = f": {needed_mb - free_mb:.0f} MB are missing there" if needed_mb > free_mb else ""
        kept_mb, failure = self._holdings.kept(at) if at else (0.0, "")
        if kept_mb and not missing:
            missing = f", and {kept_mb:.0f} MB of that are for those who come back when {failure} is lost"
        return (
            f"To be warm in every failure it needs {needed_mb:.0f} MB for {smallest.name!r} on a node that "
            f"isn't lost together with its primary; {has}{missing}."
        )

    def _survives(self, node: str) -> bool:
        """Is `node` left in each failure that silences the app?"""
        homes = {p.node for p in self._primaries}
        nodes = self._facts.nodes
        losses = [lost_nodes(o.failure, nodes) for o in self._outcomes if not any_count(o.failure)]
        return node not in homes and all(node not in lost or len(lost) == len(nodes) for lost in losses)


def _silent(plan: Plan) -> set[str]:
    return {outcome.app for outcome in plan.outcomes if outcome.how in ("none", "static")}


def _variants(app: AppVersion) -> str:
    return f"{len(app.variants)} variants"
