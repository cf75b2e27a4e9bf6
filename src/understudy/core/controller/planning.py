"""When a plan is made, from what, and whether it can still be used when it is there."""

from __future__ import annotations

from understudy.core.controller import events as ev
from understudy.core.controller.catalog import Catalog, VersionKey
from understudy.core.controller.environments import lacking
from understudy.core.controller.nodes import Nodes
from understudy.core.controller.quarantine import Quarantine
from understudy.core.controller.reasons import what_changed
from understudy.core.controller.stored import PlanFacts, StoredPlan
from understudy.core.planning.plan import PlanInput
from understudy.settings.plan import PlanSettings
from understudy.wire.records import Plan

PLANNING_RETRY_S = 1.0  # after the planner itself failed


class Planning:
    """One plan is in force, and at most one is being made."""

    def __init__(
        self,
        plan: StoredPlan | None,
        settings: PlanSettings,
        nodes: Nodes,
        catalog: Catalog,
        quarantine: Quarantine,
        now: float,
    ) -> None:
        self.plan = plan
        self.running = False
        self.error = ""
        self._after_s = now
        self._settings = settings
        self._nodes = nodes
        self._catalog = catalog
        self._quarantine = quarantine

    @property
    def versions(self) -> tuple[VersionKey, ...]:
        """That the plan in force is about."""
        return self.plan.facts.apps if self.plan else ()

    def facts(self) -> PlanFacts:
        live = self._catalog.live
        nodes = [node for node in self._nodes.by_name.values() if node.plannable]
        infos = [node.info for node in nodes]
        planned = self.plan.facts if self.plan else PlanFacts()
        return PlanFacts(
            nodes=tuple(sorted((info.name, info.site, info.memory_mb) for info in infos)),
            apps=tuple(sorted(live)),
            quarantined=tuple(sorted(key for key in self._quarantine.keys if key[:2] in live)),
            settings=self._settings,
            cores=tuple(sorted((i.name, i.cores, i.devices) for i in infos if i.cores or i.devices)),
            lacking=lacking(nodes, self._catalog.apps.values(), planned),
        )

    def input(self) -> PlanInput:
        """What a plan would be made from now."""
        return self._input(self.facts())

    def _input(self, facts: PlanFacts) -> PlanInput:
        infos = [node.info for node in self._nodes.by_name.values() if node.plannable]
        return PlanInput(
            nodes=tuple(sorted(infos, key=lambda info: info.name)),
            apps=tuple(self._catalog.apps.values()),
            current=self.plan.plan if self.plan else None,
            quarantined=frozenset(facts.quarantined),
            settings=facts.settings,
            lacking=frozenset(facts.lacking),
        )

    def consider(self, now: float) -> ev.MakePlan | None:
        """Ask for a plan if something changed that the one in force was made from."""
        if self.running or now < self._after_s:
            return None
        facts = self.facts()
        if self.plan is not None and facts == self.plan.facts:
            return None
        # Without an app there is nothing to plan. Without a node the plan in force is as good as any, and
        # is right at once when its nodes come back.
        if not facts.nodes or (self.plan is None and not facts.apps):
            return None
        reason = what_changed(self.plan.facts if self.plan else PlanFacts(settings=facts.settings), facts)
        self.running = True
        revision = self.plan.plan.revision + 1 if self.plan else 1
        return ev.MakePlan(self._input(facts), facts, revision, reason)

    def take(self, plan: Plan, facts: PlanFacts) -> str:
        """Put `plan` in force, or say why it can't be used any more: then the next one is asked for."""
        self.running = False
        self.error = ""
        obstacle = self._obstacle(plan)
        if not obstacle:
            self.plan = StoredPlan(plan, facts)
        return obstacle

    def failed(self, message: str, now: float) -> None:
        self.running = False
        self.error = message
        self._after_s = now + PLANNING_RETRY_S

    def _obstacle(self, plan: Plan) -> str:
        """It may miss the newest app or node: the next one has it."""
        now = self.facts()
        nodes, quarantined = {name for name, _, _ in now.nodes}, self._quarantine.keys
        for p in plan.placements:
            if p.node not in nodes:
                return f"node {p.node} went away"
            if (p.app, p.version) not in now.apps:
                return f"{p.app} was changed"
            if p.key in quarantined:
                return f"{p.variant} of {p.app} was quarantined"
        return ""
