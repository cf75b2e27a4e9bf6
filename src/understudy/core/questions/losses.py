"""Plays the loss of nodes as it would go now: gateways choose, agents accept or refuse.

Lives here: the same decisions that gateways (`choose`) and agents (`plan_activation`) take, in the order in
which they would come, on a plan that nobody has to have made for this loss. `replay` proves what the plan
promises; this tells what happens where it promises nothing, too.

Deliberately imperfect: all replicas of the plan are taken to be up, and gateways ask for the apps in the
order of their names, as one gateway does that loses all connections at once.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass, field

import msgspec

from understudy.core.agent.progressive import Activation, plan_activation
from understudy.core.gateway.activation import choose
from understudy.core.planning.footprint import load_ms, replica_mb
from understudy.core.planning.objective import accuracy_lost
from understudy.core.planning.replay import COLD_MS, WARM_MS, silence
from understudy.core.questions.records import Answered, AnyLoss, Fill, Together
from understudy.failures import ANY
from understudy.wire.records import (
    AppVersion,
    Contingency,
    NodeInfo,
    Placement,
    Plan,
    Role,
    Variant,
    VariantKey,
)

VISITS_MAX = 20_000_000  # nodes looked at by all choices for "any-K": some seconds
HURTING_MAX = 10  # losses named
REFUSALS_NAMED_MAX = 3
HOW = ("none", "static", "cold", "warm")  # worst first


@dataclass(frozen=True, slots=True)
class Standing:
    """The plan in force and what it is about. `nodes` are all that gateways know, `away` of them are gone."""

    plan: Plan
    apps: tuple[AppVersion, ...]  # in the version that the plan is about
    nodes: tuple[NodeInfo, ...]
    away: frozenset[str] = frozenset()
    quarantined: frozenset[VariantKey] = frozenset()
    lacking: frozenset[tuple[str, str]] = frozenset()  # (node, environment) where that isn't ready
    skip_ms: float = 0.0  # a load that takes only so much longer is not preceded by a smaller one


@dataclass(slots=True)
class Played:
    answers: list[Answered] = field(default_factory=list)  # of the apps that are affected
    fills: list[Fill] = field(default_factory=list)


class Stage:
    """A standing, indexed for playing several losses."""

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.placements: dict[str, list[Placement]] = defaultdict(list)
        self.apps_on: dict[str, set[str]] = defaultdict(set)
        self._apps = {app.app: app for app in standing.apps}
        self._contingencies: dict[str, list[Contingency]] = defaultdict(list)
        self._used_mb: dict[str, float] = defaultdict(float)
        self._memory_mb = {node.name: node.memory_mb for node in standing.nodes}
        requisites = (v.requisites for app in standing.apps for v in app.variants)
        self._here = frozenset[str]().union(*requisites)  # on every node, but for what is lacking
        for placed in standing.plan.placements:
            app = self._apps.get(placed.app)
            variant = app.variant(placed.variant) if app and app.version == placed.version else None
            if variant is not None:
                self.placements[placed.app].append(placed)
                self.apps_on[placed.node].add(placed.app)
                self._used_mb[placed.node] += replica_mb(variant)
        for contingency in standing.plan.contingencies:
            self._contingencies[contingency.app].append(contingency)

    def play(self, lost: frozenset[str]) -> Played:
        """What happens to each app that has a replica on one of `lost`, or on a node that is away already."""
        gone = lost | self.standing.away
        alive = self._memory_mb.keys() - gone
        used_mb = {node: self._used_mb[node] for node in alive}
        activations: list[tuple[AppVersion, Activation]] = []
        played = Played()
        refusals: dict[str, list[str]] = {}
        for name in sorted(set().union(*(self.apps_on[node] for node in gone))):
            app = self._apps[name]
            found = self._warm(app, gone)
            if found is None:
                accepted, refusals[name] = self._activate(app, alive, used_mb)
                if accepted is not None:
                    activations.append((app, accepted))
            elif found:
                played.answers.append(found[0])
        before_mb = {node: self._used_mb[node] for node in alive}
        swapping_mb, finals = self._swap(activations, used_mb)
        for app, activation in activations:
            played.answers.append(_cold(app, activation, finals[app.app]))
        cold = {answer.app for answer in played.answers}
        played.answers += [self._silent(name, refusals[name]) for name in refusals if name not in cold]
        played.answers.sort(key=lambda answer: answer.app)
        played.fills = [
            Fill(node, self._memory_mb[node], before_mb[node], swapping_mb[node], used_mb[node])
            for node in sorted(swapping_mb)
        ]
        return played

    def _warm(self, app: AppVersion, gone: frozenset[str]) -> list[Answered] | None:
        """The replica that takes over; empty if no primary is lost; None if no replica is left."""
        placements = self.placements[app.app]
        left = [placed for placed in placements if placed.node not in gone]
        if not left:
            return None
        primaries = [placed for placed in placements if placed.role is Role.PRIMARY]
        if primaries and all(placed.node not in gone for placed in primaries):
            return []
        best = min(left, key=lambda p: (app.rank(p.variant), p.role is not Role.PRIMARY))
        variant = app.variant(best.variant)
        assert variant is not None
        return [_answered(app, "warm", variant, best.node, WARM_MS)]

    def _activate(
        self, app: AppVersion, alive: Set[str], used_mb: dict[str, float]
    ) -> tuple[Activation | None, list[str]]:
        """Ask node after node, as a gateway does. What was accepted, and what those said who refused."""
        hosts = {placed.node for placed in self.placements[app.app]}
        free_mb = {node: self._memory_mb[node] - used_mb[node] for node in alive}
        needed_mb = replica_mb(app.smallest)
        # Who has no room for anything is not asked first: it makes no difference to who is asked at last.
        refused = {n: _no_room(needed_mb, mb) for n, mb in free_mb.items() if mb < needed_mb}
        while True:
            chosen = choose(
                app, self._contingencies[app.app], self.standing.nodes, alive, hosts, refused.keys()
            )
            if chosen is None:
                emptiest = sorted(refused, key=lambda node: (-free_mb[node], node))
                return None, [f"{node}: {refused[node]}" for node in emptiest]
            activation = plan_activation(
                chosen,
                (app,),
                here=self._here_on(chosen.node),
                quarantined=self.standing.quarantined,
                free_mb=free_mb[chosen.node],
                skip_ms=self.standing.skip_ms,
            )
            if isinstance(activation, Activation):
                used_mb[chosen.node] += _mb(app, activation.first)
                return activation, []
            refused[chosen.node] = activation

    def _here_on(self, node: str) -> frozenset[str]:
        return self._here - {key for at, key in self.standing.lacking if at == node}

    def _swap(
        self, activations: list[tuple[AppVersion, Activation]], used_mb: dict[str, float]
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Load what is wanted beside what came first, as far as both fit, and let go of that.

        The most that each node that acts holds at a time, and by app the variant that runs at last.
        Changes `used_mb` to what is held afterwards.
        """
        peak_mb = {activation.contingency.node: 0.0 for _, activation in activations}
        finals = {app.app: activation.first for app, activation in activations}
        waiting = [(a, x) for a, x in activations if x.first != x.contingency.variant]
        while True:
            swapped = []
            for app, activation in waiting:
                node, target = activation.contingency.node, activation.contingency.variant
                if used_mb[node] + _mb(app, target) <= self._memory_mb[node]:
                    used_mb[node] += _mb(app, target)
                    swapped.append((app, activation))
            for node in peak_mb:
                peak_mb[node] = max(peak_mb[node], used_mb[node])
            for app, activation in swapped:
                used_mb[activation.contingency.node] -= _mb(app, activation.first)
                finals[app.app] = activation.contingency.variant
            if not swapped:
                return peak_mb, finals
            waiting = [each for each in waiting if each not in swapped]

    def _silent(self, name: str, refusals: list[str]) -> Answered:
        app = self._apps[name]
        if not refusals:
            why = "no node is left"
        else:
            more = len(refusals) - REFUSALS_NAMED_MAX
            why = "; ".join(refusals[:REFUSALS_NAMED_MAX]) + (f"; {more} more refuse" if more > 0 else "")
        if app.stand_ins:
            why += f"; asked instead: {' or '.join(app.stand_ins)}"
        return Answered(app.app, app.criticality.value, silence(app), accuracy_lost=1.0, why=why)

    # whichever K nodes

    def play_any(self, several: int) -> AnyLoss:
        """The losses of `several` nodes at once: all of them, or those of the nodes that hold most."""
        nodes = sorted(node.name for node in self.standing.nodes if node.name not in self.standing.away)
        several = min(several, len(nodes))
        possible = math.comb(len(nodes), several)
        trying = self._most_laden(nodes, several)
        worst: dict[str, Answered] = {}
        hurting: list[Together] = []
        for lost in itertools.combinations(trying, several):
            answers = self.play(frozenset(lost)).answers
            for answer in answers:
                known = worst.get(answer.app)
                if known is None or _badness(answer) < _badness(known):
                    worst[answer.app] = msgspec.structs.replace(answer, lost=lost)
            unanswered = tuple(answer.app for answer in answers if answer.how == "none")
            smaller = sum(answer.how != "none" and answer.accuracy_lost > 0 for answer in answers)
            if unanswered or smaller:
                hurting.append(Together(lost, unanswered, smaller))
        hurting.sort(key=lambda together: (-len(together.unanswered), -together.smaller, together.lost))
        return AnyLoss(
            failure=f"{ANY}{several}",
            tried=math.comb(len(trying), several),
            possible=possible,
            worst=tuple(worst[app] for app in sorted(worst, key=lambda app: (_badness(worst[app]), app))),
            unaffected=len(self._apps) - len(worst),
            hurting=tuple(hurting[:HURTING_MAX]),
        )

    def _most_laden(self, nodes: list[str], several: int) -> list[str]:
        """As many nodes as can be combined in reasonable time, those with most replicas before others."""
        each = several * sum(len(apps) for apps in self.apps_on.values()) / max(1, len(nodes))
        tries_max = VISITS_MAX / max(1.0, each * len(nodes))
        laden = sorted(nodes, key=lambda node: (-len(self.apps_on[node]), node))
        count = len(nodes)
        while count > several + 1 and math.comb(count, several) > tries_max:
            count -= 1
        return sorted(laden[:count])


def _no_room(needed_mb: float, free_mb: float) -> str:
    return f"memory: needs {needed_mb:.0f} MB, {free_mb:.0f} MB free"


def _cold(app: AppVersion, activation: Activation, final: str) -> Answered:
    variant, first = app.variant(final), app.variant(activation.first)
    assert variant is not None
    assert first is not None
    return _answered(
        app,
        "cold",
        variant,
        activation.contingency.node,
        COLD_MS + load_ms(first),
        first=first.name,
        planned_for=activation.contingency.failure,
    )


def _answered(
    app: AppVersion,
    how: str,
    variant: Variant,
    node: str,
    recovery_ms: float,
    *,
    first: str | None = None,
    planned_for: str = "",
) -> Answered:
    return Answered(
        app.app,
        app.criticality.value,
        how,
        variant.name,
        first or variant.name,
        node,
        variant.accuracy,
        accuracy_lost(app, variant),
        recovery_ms,
        planned_for,
    )


def _badness(answer: Answered) -> tuple[int, float, float]:
    """Smaller is worse."""
    return HOW.index(answer.how), answer.accuracy, -answer.recovery_ms


def _mb(app: AppVersion, name: str) -> float:
    variant = app.variant(name)
    return replica_mb(variant) if variant is not None else 0.0
