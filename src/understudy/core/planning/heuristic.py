"""A good plan in little time: greedy, then mended where it is worst. For clusters of any size.

Lives here: which replica goes where (`_Packing`), in what order (`draft_plan`). What answers which failure is
in `contingencies`, what things cost in `objective` and `choices`, the bound in `bound`.

Primaries and standbys take the variants that the relaxed problem gave them, the largest first. There are two
manners of packing, since each is right in some clusters: *even* leaves every node some room, *dense* leaves
few nodes all of it, for contingencies that are large. The better result counts. What runs already stays
where it is; only apps that lack something, or could be served better, are placed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from understudy.core.planning.bound import Bound, Prices, Relaxed
from understudy.core.planning.choices import Choices
from understudy.core.planning.contingencies import Answers, answer_failures
from understudy.core.planning.objective import (
    RELABEL,
    SAME_NODE,
    SAME_SITE,
    Problem,
    balance,
    ideal,
    place,
    score,
    worth,
)
from understudy.core.planning.room import Room
from understudy.wire.records import Contingency, Placement, Plan, Role

MANNERS = ((False, 0.0), (True, 0.01), (True, 0.02), (True, 0.0))  # dense, spared
MENDED_MAX = 24  # bins looked at to make room for one replica

Held = tuple[int, int]  # (variant, bin)


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan without revision and proof, what it loses, and what any plan loses at least."""

    plan: Plan
    loss: float
    bound: Bound


def draft_plan(
    problem: Problem, choices: list[Choices], current: Plan | None, prices: Prices | None = None
) -> Draft:
    """The heuristic's plan. `prices` of a similar problem's bound, if known, save time."""
    relaxed = Relaxed(problem, choices, prices)
    bound = relaxed.bound()
    enough = bound.loss + problem.settings.gap * max(1.0, ideal(problem) - bound.loss)
    best: Draft | None = None
    for dense, spared in MANNERS:
        packing = _Packing(problem, choices, current, dense=dense)
        packing.pack(relaxed.bound(spared) if spared else bound)
        answers = answer_failures(problem, choices, packing.room, packing.replica_bins())
        loss = packing.loss() + answers.loss
        if best is None or loss < best.loss - 1e-9:
            best = Draft(packing.plan(answers), loss, bound)
        if packing.mostly_kept or (loss <= enough and not spared):
            return best
        if loss <= enough:
            break
    assert best is not None
    return _grown(problem, choices, best)


def _grown(problem: Problem, choices: list[Choices], draft: Draft) -> Draft:
    """`draft` with use of the room that was spared for contingencies and that they don't need."""
    running, staged = frozenset(map(place, draft.plan.placements)), frozenset(draft.plan.contingencies)
    later = replace(problem, existing=running, staged=staged)
    packing = _Packing(later, choices, draft.plan, dense=True)
    packing.pack(draft.bound)
    plan = packing.plan(answer_failures(later, choices, packing.room, packing.replica_bins()))
    loss = ideal(problem) - score(problem, plan)
    return Draft(plan, loss, draft.bound) if loss < draft.loss else draft


class _Packing:
    """Placements in the making. Apps, variants and bins by their index."""

    def __init__(
        self, problem: Problem, choices: list[Choices], current: Plan | None, *, dense: bool
    ) -> None:
        self._problem = problem
        self._choices = choices
        self._dense = dense
        self.room = Room(problem)
        self._index = {(held.node, held.device): b for b, held in enumerate(problem.bins)}
        self._apps = {c.app.app: a for a, c in enumerate(choices)}
        self._variants = [c.index for c in choices]
        self.primaries: list[list[Held]] = [[] for _ in choices]
        self.standbys: list[Held | None] = [None] * len(choices)
        self._on: list[set[int]] = [set() for _ in problem.bins]  # apps with a replica there
        self._running: dict[int, list[Held]] = defaultdict(list)  # what exists, by app
        for app, version, variant, node, device in sorted(problem.existing):
            a = self._apps.get(app)
            b = self._index.get((node, device))
            if a is None or b is None or choices[a].app.version != version:
                continue
            if (v := self._variants[a].get(variant)) is not None:
                self._running[a].append((v, b))
        self._keep(current.placements if current is not None else ())
        self.mostly_kept = 2 * sum(map(bool, self.primaries)) > len(choices)
        self._reserved_mb = self._staged_mb()

    # keeping

    def _keep(self, placements: tuple[Placement, ...]) -> None:
        """Take over what still holds, primaries first."""
        for role in (Role.PRIMARY, Role.STANDBY):
            for placed in placements:
                if placed.role is not role:
                    continue
                a, b = self._apps.get(placed.app), self._index.get((placed.node, placed.device))
                if a is None or b is None or self._choices[a].app.version != placed.version:
                    continue
                v = self._variants[a].get(placed.variant)
                if v is not None and self._may_hold(a, v, b, role):
                    self._put(a, v, b, role)

    def _staged_mb(self) -> NDArray[np.float64]:
        """By bin: the room that its contingencies need in the worst failure."""
        needed: dict[tuple[int, str], float] = defaultdict(float)
        for c in self._problem.staged:
            a, b = self._apps.get(c.app), self._index.get((c.node, c.device))
            if a is not None and b is not None:
                sizes, variants = self._choices[a].mb, self._variants[a]
                for name in dict.fromkeys((c.first, c.variant)):
                    needed[b, c.failure] += sizes[variants[name]] if name in variants else 0.0
        reserved = np.zeros(len(self._problem.bins))
        for (b, _), mb in needed.items():
            reserved[b] = max(reserved[b], mb)
        return reserved

    def _may_hold(self, a: int, v: int, b: int, role: Role) -> bool:
        choices = self._choices[a]
        if not self.room.fits(b, choices.mb[v], choices.busy[v]):
            return False
        if not self.room.is_ready(b, choices.keys[v]):
            return False
        if role is Role.PRIMARY:
            return len(self.primaries[a]) < choices.app.replicas
        nodes = {self.room.node[at] for _, at in self.primaries[a]}
        return bool(choices.standby) and self.standbys[a] is None and self.room.node[b] not in nodes

    # placing

    def pack(self, bound: Bound) -> None:
        self._promote(bound)
        lacking = []
        for a, (choices, v) in enumerate(zip(self._choices, bound.primaries, strict=True)):
            if v >= 0:
                lacking += [(choices.mb[v], a, v)] * (choices.app.replicas - len(self.primaries[a]))
        left = []
        for _, a, v in sorted(lacking, key=lambda item: (-item[0], item[1])):
            if not self._place_primary(a, v):
                left.append((a, v))
        left += [(a, -1) for a, v in enumerate(bound.primaries) if v < 0 and not self.primaries[a]]
        for a, v in sorted(left, key=lambda item: -worth(self._choices[item[0]].app)):
            self._place_somehow(a, max(v, 0))
        self._grow(bound)
        wanted = [
            (self._choices[a].mb[v], a, v)
            for a, v in enumerate(bound.standbys)
            if v >= 0 and self.primaries[a]
        ]
        for _, a, v in sorted(wanted, key=lambda item: (-item[0], item[1])):
            self._place_standby(a, v)

    def _promote(self, bound: Bound) -> None:
        """What runs already becomes the primary of an app without one, if it is as good as a new one."""
        for a, running in self._running.items():
            if self.primaries[a]:
                continue
            for v, b in sorted(running):
                if v > max(bound.primaries[a], 0) or self.primaries[a]:
                    break
                if self.standbys[a] == (v, b):
                    self._take(a, v, b, Role.STANDBY)
                if self._may_hold(a, v, b, Role.PRIMARY):
                    self._put(a, v, b, Role.PRIMARY)

    def _place_primary(self, a: int, v: int) -> bool:
        for allowed in self._apart(a):
            b = self._pick(a, v, allowed)
            if b >= 0:
                self._put(a, v, b, Role.PRIMARY)
                return True
        return False

    def _pick(self, a: int, v: int, allowed: NDArray[np.bool_] | None, *, spare: bool = False) -> int:
        """Where to place it: where nothing that is staged counts on the room (`spare`: nowhere else)."""
        mb, busy = self._choices[a].mb[v], self._choices[a].busy[v]
        allowed = _both(allowed, self.room.ready(self._choices[a].keys[v]))
        if self._problem.staged:
            unclaimed = self.room.free_mb - self._reserved_mb >= mb
            if allowed is not None:
                unclaimed &= allowed
            b = self.room.pick(mb, busy, unclaimed, dense=self._dense)
            if b >= 0 or spare:
                return b
        return self.room.pick(mb, busy, allowed, dense=self._dense)

    def _apart(self, a: int) -> Iterable[NDArray[np.bool_] | None]:
        """Bins for the next primary: in no site of another one, on no node of another one, any."""
        bins = [b for _, b in self.primaries[a]]
        standby = self.standbys[a]
        beside = None if standby is None else self.room.node != self.room.node[standby[1]]
        if not bins:
            return (beside,)
        nodes = ~np.isin(self.room.node, self.room.node[bins])
        sites = ~np.isin(self.room.site, self.room.site[bins])
        options = [sites, nodes, np.ones(len(nodes), dtype=bool)]
        return [option if beside is None else option & beside for option in options]

    def _apart_from_all(self, a: int) -> NDArray[np.bool_]:
        """Bins on nodes without a replica of `a`."""
        return ~np.isin(self.room.node, self.room.node[self.replica_bins_of(a)])

    def _place_somehow(self, a: int, best: int) -> None:
        """A primary of the best variant for which room can be found or made."""
        choices = self._choices[a]
        if self._problem.lacking:  # a larger one may be ready where this isn't
            best = 0
        for v in sorted(range(best, len(choices.mb)), key=lambda v: choices.primary[v]):
            if self._place_primary(a, v):
                return
            if self._make_room(choices, v) and self._place_primary(a, v):
                return

    def _make_room(self, wanted: Choices, w: int) -> bool:
        """Move one replica out of the way, where that is enough."""
        room = self.room
        mb, busy = wanted.mb[w], wanted.busy[w]
        emptiest_first = np.argsort(-room.free_mb, kind="stable")[:MENDED_MAX]
        for b in emptiest_first.tolist():
            if room.memory_mb[b] < mb or room.cores[b] < busy or not room.is_ready(b, wanted.keys[w]):
                continue
            needed_mb, needed_busy = mb - room.free_mb[b], busy - room.free_busy[b]
            for a in sorted(self._on[b], key=lambda a: min(self._sizes(a, b))):
                for v in [v for v, at in self.primaries[a] if at == b]:
                    choices = self._choices[a]
                    if choices.mb[v] < needed_mb or choices.busy[v] < needed_busy:
                        continue
                    allowed = room.node != room.node[b]
                    other = self.standbys[a]
                    if other is not None:
                        allowed &= room.node != room.node[other[1]]
                    within = _both(allowed, room.ready(choices.keys[v]))
                    to = room.pick(choices.mb[v], choices.busy[v], within, dense=True)
                    if to >= 0:
                        self._take(a, v, b, Role.PRIMARY)
                        self._put(a, v, to, Role.PRIMARY)
                        return True
        return False

    def _sizes(self, a: int, b: int) -> list[float]:
        return [self._choices[a].mb[v] for v, at in self.primaries[a] if at == b] or [math.inf]

    def _grow(self, bound: Bound) -> None:
        """Primaries smaller than they could be, the most valuable gain per MB first."""
        smaller = []
        for a, choices in enumerate(self._choices):
            for v, b in self.primaries[a]:
                if v > max(bound.primaries[a], 0):
                    gain = choices.primary[v] - choices.primary[max(bound.primaries[a], 0)]
                    smaller.append((-gain / choices.mb[0], a, v, b))
        for _, a, v, b in sorted(smaller):
            self._take(a, v, b, Role.PRIMARY)
            for better in range(max(bound.primaries[a], 0), v):
                at = self._pick(a, better, self.room.node == self.room.node[b], spare=True)
                if at < 0:
                    at = self._pick(a, better, self._apart_from_all(a), spare=True)
                if at >= 0:
                    self._put(a, better, at, Role.PRIMARY)
                    break
            else:
                self._put(a, v, b, Role.PRIMARY)

    def _place_standby(self, a: int, wanted: int) -> None:
        """A standby in as few of its primary's failures as possible; smaller if need be."""
        held = self.standbys[a]
        beside = self.room.shared([b for _, b in self.primaries[a]])
        if held is not None and (beside[held[1]] == 0 or beside[held[1]] <= beside.min()):
            return
        if held is not None:
            self._take(a, *held, Role.STANDBY)
        choices = self._choices[a]
        nodes = {int(self.room.node[b]) for _, b in self.primaries[a]}
        apart = ~np.isin(self.room.node, list(nodes))
        smaller = [v for v in range(len(choices.mb)) if choices.mb[v] < choices.mb[wanted]]
        options = [wanted, *sorted(smaller, key=lambda v: -choices.mb[v])]
        for level in np.unique(beside[apart]).tolist():
            for v in options:
                allowed = apart & (beside == level)
                b = self._pick(a, v, allowed)
                if b >= 0:
                    self._put(a, v, b, Role.STANDBY)
                    return
        if held is not None:
            self._put(a, *held, Role.STANDBY)

    # bookkeeping

    def _put(self, a: int, v: int, b: int, role: Role) -> None:
        choices = self._choices[a]
        self.room.take(b, choices.mb[v], choices.busy[v])
        self._on[b].add(a)
        if role is Role.PRIMARY:
            self.primaries[a].append((v, b))
        else:
            self.standbys[a] = (v, b)

    def _take(self, a: int, v: int, b: int, role: Role) -> None:
        choices = self._choices[a]
        self.room.take(b, -choices.mb[v], -choices.busy[v])
        if role is Role.PRIMARY:
            self.primaries[a].remove((v, b))
        else:
            self.standbys[a] = None
        if b not in self.replica_bins_of(a):
            self._on[b].discard(a)

    def replica_bins_of(self, a: int) -> list[int]:
        standby = self.standbys[a]
        return [b for _, b in self.primaries[a]] + ([standby[1]] if standby is not None else [])

    def replica_bins(self) -> list[tuple[list[Held], Held | None]]:
        return list(zip(self.primaries, self.standbys, strict=True))

    # the result

    def loss(self) -> float:
        """Of the placements alone: what they lack and cost, without any failure."""
        problem = self._problem
        move = problem.settings.movement_cost
        loads = [0.0] * len(problem.bins)
        loss = 0.0
        for a, choices in enumerate(self._choices):
            primaries, standby = self.primaries[a], self.standbys[a]
            running = self._running.get(a, [])
            missing = choices.app.replicas - len(primaries)
            if not primaries:
                loss += choices.unplaced
                missing -= 1
            loss += choices.missing * missing
            for v, b in primaries:
                loss += choices.primary[v] + (0.0 if (v, b) in running else move * (1.0 + RELABEL))
                loads[b] += choices.mb[v]
            if standby is not None:
                loss += choices.standby[standby[0]] + (0.0 if standby in running else move)
            if len(primaries) > 1:
                bins = [b for _, b in primaries]
                price = worth(choices.app)
                loss += price * SAME_NODE * (len(bins) - len(set(self.room.node[bins].tolist())))
                loss += price * SAME_SITE * (len(bins) - len(set(self.room.site[bins].tolist())))
        return loss + sum(
            balance(load / held.memory_mb) for load, held in zip(loads, problem.bins, strict=True)
        )

    def plan(self, answers: Answers) -> Plan:
        problem = self._problem
        placements = []
        contingencies = []
        for a, choices in enumerate(self._choices):
            app, version = choices.app.app, choices.app.version
            names = [variant.name for variant in choices.app.variants]
            held = [(v, b, Role.PRIMARY) for v, b in self.primaries[a]]
            if (standby := self.standbys[a]) is not None:
                held.append((*standby, Role.STANDBY))
            for v, b, role in held:
                at = problem.bins[b]
                placements.append(Placement(app, version, names[v], at.node, role, at.device))
        for (a, failure), (b, w) in answers.found.items():
            spec, at, way = self._choices[a].app, problem.bins[b], self._choices[a].ways[w]
            contingencies.append(
                Contingency(spec.app, spec.version, failure, at.node, way.first, way.variant, at.device)
            )
        return Plan(
            revision=0,
            placements=tuple(sorted(placements, key=lambda p: (p.app, p.role, p.node, p.device))),
            contingencies=tuple(sorted(contingencies, key=lambda c: (c.app, c.failure))),
        )


def _both(one: NDArray[np.bool_] | None, other: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """None: all."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def moved(problem: Problem, plan: Plan) -> int:
    """Replicas of `plan` that don't run yet."""
    return sum(place(placed) not in problem.existing for placed in plan.placements)
