"""The placement program: the problem as a mixed-integer program, and its solution as a plan.

Lives here: variables and rows. Does not live here: what things cost (`objective`), how a program is solved
(`solver`), which programs are solved in which order (`planning`), whether the result is right (`replay`).

Variables, by indices into the problem (docs/planning.md has the formulas):

    primary[a,v,n], standby[a,v,n]   replicas; a standby only for critical apps
    warm[a,s,v]                      in scenario s the standby, of variant v, answers (continuous)
    cold[a,s,g,k]                    in scenario s group g of nodes brings the app back by way k
    silent[a,s]                      in scenario s nobody answers (continuous)
    unplaced[a], missing[a]          no primary at all; further primaries short of the wanted number
    crowded                          primaries beyond the first on one node, or in one site (continuous)
    spread[n]                        price of the node's load (continuous)

A group is one node. In a *pooled* program it is all nodes that are left, as if their room were one: much
smaller, and nearly right wherever variants are small beside nodes.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

from understudy.core.planning import objective, solver
from understudy.core.planning.footprint import replica_mb
from understudy.core.planning.objective import Place, Problem
from understudy.core.planning.solver import Matrix, Terms
from understudy.wire.records import AppVersion, Contingency, Criticality, Placement, Plan, Role

Replicas = dict[tuple[int, int, int], int]  # (app, variant, node) -> column


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan and its loss, the loss that no plan can undercut, and the values to start another solve with."""

    plan: Plan
    loss: float
    loss_bound: float
    values: list[float]


class PlacementProgram:
    """The program of one problem; can be solved several times with different things held in place."""

    def __init__(self, problem: Problem, *, pooled: bool = False) -> None:
        self.spent_s = 0.0  # on all solves so far
        self._problem = problem
        self._pooled = pooled
        self._matrix = Matrix()
        self._primaries: Replicas = {}
        self._standbys: Replicas = {}
        self._colds: dict[tuple[int, int, int, int], int] = {}
        self._ways = [objective.ways(app) for app in problem.apps]
        self._used: list[Terms] = [[] for _ in problem.nodes]  # memory by replicas, per node
        self._unplaced = [self._add_app(a, app) for a, app in enumerate(problem.apps)]
        self._add_spread()
        for s in range(len(problem.scenarios)):
            self._add_scenario(s)
        if pooled or not problem.scenarios:
            for node, used in zip(problem.nodes, self._used, strict=True):
                self._matrix.row(used, upper=node.memory_mb)

    def solve(
        self,
        time_limit_s: float,
        gap: float,
        *,
        keep: frozenset[Place] = frozenset(),
        fixed: Plan | None = None,
        start: list[float] | None = None,
    ) -> Solution | None:
        """The best plan found in time, to within `gap` of the least loss unless time ran out.

        Primaries in `keep` stay where they are. With `fixed` all placements are as in that
        plan, and only contingencies are chosen. None if what must hold can't hold, or time was too short.
        """
        matrix = self._matrix.copy()
        if fixed is not None:
            self._fix(matrix, fixed)
        for column in self._primaries_at(keep):
            matrix.lower[column] = 1.0
        solved = solver.solve(matrix, time_limit_s=time_limit_s, gap=gap, start=start)
        self.spent_s += solved.solve_s
        if solved.values is None:
            return None
        return Solution(self._read(solved.values), solved.cost, solved.bound, solved.values)

    # replicas

    def _add_app(self, a: int, app: AppVersion) -> int:
        """Replicas of one app; the column that says that it has none."""
        matrix = self._matrix
        for v, variant in enumerate(app.variants):
            for n, node in enumerate(self._problem.nodes):
                if replica_mb(variant) <= node.memory_mb:
                    self._add_replica(a, v, n)
        primaries = self._on(self._primaries, a)
        standbys = self._on(self._standbys, a)
        unplaced = matrix.column(objective.unplaced_loss(app), whole=True)
        price = objective.worth(app) * objective.REPLICA_MISSING
        missing = matrix.column(price, app.replicas - 1, whole=True)
        matrix.row([*_ones(primaries), (unplaced, 1.0), (missing, 1.0)], app.replicas, app.replicas)
        if standbys:
            matrix.row(_ones(standbys), upper=1.0)
            self._keep_apart(a, app)
        if app.replicas > 1:
            self._add_crowding(a, app)
        return unplaced

    def _add_replica(self, a: int, v: int, n: int) -> None:
        problem, app = self._problem, self._problem.apps[a]
        variant = app.variants[v]
        move = 0.0 if self._place(a, v, n) in problem.existing else problem.settings.movement_cost
        memory = problem.settings.memory_cost * replica_mb(variant) / problem.memory_mb
        primary = self._matrix.column(
            memory + move * (1.0 + objective.RELABEL) + objective.primary_loss(app, variant),
            app.replicas,
            whole=True,
        )
        self._primaries[a, v, n] = primary
        self._used[n].append((primary, replica_mb(variant)))
        if app.criticality is Criticality.CRITICAL:
            price = objective.standby_loss(app, variant, problem.settings)
            standby = self._matrix.column(memory + move + price, whole=True)
            self._standbys[a, v, n] = standby
            self._used[n].append((standby, replica_mb(variant)))

    def _keep_apart(self, a: int, app: AppVersion) -> None:
        """A standby never shares its node with a primary of its app."""
        for n in range(len(self._problem.nodes)):
            standbys = [(column, float(app.replicas)) for column in self._on(self._standbys, a, {n})]
            self._matrix.row(_ones(self._on(self._primaries, a, {n})) + standbys, upper=app.replicas)

    def _add_crowding(self, a: int, app: AppVersion) -> None:
        sites: dict[str, set[int]] = defaultdict(set)
        for n, node in enumerate(self._problem.nodes):
            sites[node.site].add(n)
        groups = [({n}, objective.SAME_NODE) for n in range(len(self._problem.nodes))]
        groups += [(members, objective.SAME_SITE) for members in sites.values()]
        for members, price in groups:
            crowded = self._matrix.column(objective.worth(app) * price, app.replicas - 1)
            self._matrix.row([*_ones(self._on(self._primaries, a, members)), (crowded, -1.0)], upper=1.0)

    def _add_spread(self) -> None:
        for n, node in enumerate(self._problem.nodes):
            spread = self._matrix.column(1.0, math.inf)
            shares = [
                (column, objective.BALANCE * replica_mb(self._problem.apps[a].variants[v]) / node.memory_mb)
                for (a, v, at), column in self._primaries.items()
                if at == n
            ]
            for slope, intercept in objective.TANGENTS:
                terms = [(column, slope * share) for column, share in shares]
                self._matrix.row([*terms, (spread, -1.0)], upper=objective.BALANCE * intercept)

    # scenarios

    def _add_scenario(self, s: int) -> None:
        scenario = self._problem.scenarios[s]
        left = {n for n, node in enumerate(self._problem.nodes) if node.name not in scenario.lost}
        groups = [left] if self._pooled else [{n} for n in sorted(left)]
        needed = [[term for n in group for term in self._used[n]] for group in groups]
        for a, app in enumerate(self._problem.apps):
            silent = self._matrix.column(objective.silent_loss(app) * scenario.weight)
            answers = [*self._on(self._primaries, a, left), self._unplaced[a], silent]
            if app.criticality is Criticality.CRITICAL:
                answers += self._add_warm(a, s, left)
            for g, group in enumerate(groups):
                for column, room_mb in self._add_colds(a, s, min(group), self._largest_mb(group)):
                    answers.append(column)
                    needed[g].append((column, room_mb))
            self._matrix.row(_ones(answers), lower=1.0)
        for group, terms in zip(groups, needed, strict=True):
            self._matrix.row(terms, upper=sum(self._problem.nodes[n].memory_mb for n in group))

    def _largest_mb(self, group: set[int]) -> float:
        return max(self._problem.nodes[n].memory_mb for n in group)

    def _add_warm(self, a: int, s: int, left: set[int]) -> list[int]:
        """The standby as an answer, by variant."""
        app, weight = self._problem.apps[a], self._problem.scenarios[s].weight
        answers = []
        for v, variant in enumerate(app.variants):
            warm = self._matrix.column(objective.warm_loss(app, variant) * weight)
            standbys = [(self._standbys[a, v, n], -1.0) for n in sorted(left) if (a, v, n) in self._standbys]
            self._matrix.row([(warm, 1.0), *standbys], upper=0.0)
            answers.append(warm)
        return answers

    def _add_colds(self, a: int, s: int, n: int, largest_mb: float) -> Terms:
        """Ways back on the group that node `n` stands for, each with the room that it needs."""
        problem, scenario = self._problem, self._problem.scenarios[s]
        found: Terms = []
        for k, way in enumerate(self._ways[a]):
            if way.room_mb > largest_mb:
                continue
            cost = way.loss * scenario.weight
            for name in scenario.names:
                if self._contingency(a, name, n, k) not in problem.staged:
                    cost += objective.RESTAGE
            column = self._matrix.column(cost, whole=True)
            self._colds[a, s, n, k] = column
            found.append((column, way.room_mb))
        return found

    # reading and writing plans

    def _contingency(self, a: int, failure: str, n: int, k: int) -> Contingency:
        app, way = self._problem.apps[a], self._ways[a][k]
        return Contingency(app.app, app.version, failure, self._problem.nodes[n].name, way.first, way.variant)

    def _on(self, columns: Replicas, a: int, nodes: set[int] | None = None) -> list[int]:
        """The columns of app `a` on `nodes` (None: all)."""
        variants = range(len(self._problem.apps[a].variants))
        at = range(len(self._problem.nodes)) if nodes is None else sorted(nodes)
        return [columns[a, v, n] for n in at for v in variants if (a, v, n) in columns]

    def _primaries_at(self, places: frozenset[Place]) -> list[int]:
        return [column for key, column in self._primaries.items() if self._place(*key) in places]

    def _place(self, a: int, v: int, n: int) -> Place:
        app = self._problem.apps[a]
        return app.app, app.version, app.variants[v].name, self._problem.nodes[n].name

    def _fix(self, matrix: Matrix, plan: Plan) -> None:
        counts = Counter((objective.place(placed), placed.role) for placed in plan.placements)
        for columns, role in ((self._primaries, Role.PRIMARY), (self._standbys, Role.STANDBY)):
            for key, column in columns.items():
                matrix.lower[column] = matrix.upper[column] = float(counts[self._place(*key), role])

    def _read(self, values: list[float]) -> Plan:
        problem = self._problem
        placements = []
        for columns, role in ((self._primaries, Role.PRIMARY), (self._standbys, Role.STANDBY)):
            for key, column in columns.items():
                placements += [Placement(*self._place(*key), role)] * round(values[column])
        contingencies = [
            self._contingency(a, name, n, k)
            for (a, s, n, k), column in self._colds.items()
            if values[column] > 0.5 and not self._pooled
            for name in problem.scenarios[s].names
        ]
        return Plan(
            revision=0,
            placements=tuple(sorted(placements, key=lambda p: (p.app, p.role, p.node))),
            contingencies=tuple(sorted(contingencies, key=lambda c: (c.app, c.failure))),
        )


def _ones(columns: list[int]) -> Terms:
    return [(column, 1.0) for column in columns]
