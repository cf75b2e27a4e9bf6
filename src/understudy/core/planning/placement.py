"""The placement program: the problem as a mixed-integer program, and its solution as a plan.

Lives here: variables and rows. Does not live here: what things cost (`objective`), how a program is solved
(`solver`), when it is solved and from what start (`search`), whether the result is right (`replay`).

Variables, by indices into the problem (docs/planning.md has the formulas); a bin is a device or a whole node:

    primary[a,v,b], standby[a,v,b]   replicas; a standby only for critical apps
    warm[a,s,v]                      in scenario s the standby, of variant v, answers (continuous)
    cold[a,s,b,k]                    in scenario s bin b brings the app back by way k
    silent[a,s]                      in scenario s nobody answers (continuous)
    unplaced[a], missing[a]          no primary at all; further primaries short of the wanted number
    crowded                          primaries beyond the first on one node, or in one site (continuous)
    spread[b]                        price of the bin's load (continuous)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from understudy.core.planning import objective, solver
from understudy.core.planning.choices import Choices
from understudy.core.planning.objective import Bin, Place, Problem
from understudy.core.planning.solver import Matrix, Terms
from understudy.wire.records import Contingency, Placement, Plan, Role

Replicas = dict[tuple[int, int, int], int]  # (app, variant, bin) -> column
Used = list[Terms]  # by bin


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan and its loss, the loss that no plan can undercut, and the values to start another solve with."""

    plan: Plan
    loss: float
    loss_bound: float
    values: list[float]


class PlacementProgram:
    """The program of one problem; can be solved several times with different things held in place."""

    def __init__(self, problem: Problem, choices: list[Choices]) -> None:
        self.spent_s = 0.0  # on all solves so far
        self._problem = problem
        self._choices = choices
        self._matrix = Matrix()
        self._primaries: Replicas = {}
        self._standbys: Replicas = {}
        self._colds: dict[tuple[int, int, int, int], int] = {}
        self._held: Used = [[] for _ in problem.bins]  # memory of replicas
        self._busy: Used = [[] for _ in problem.bins]  # compute of replicas
        self._unplaced = [self._add_app(a) for a in range(len(choices))]
        self._add_spread()
        self._add_limits(self._held, self._busy, range(len(problem.bins)))
        for s in range(len(problem.scenarios)):
            self._add_scenario(s)

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

    def _add_app(self, a: int) -> int:
        """Replicas of one app; the column that says that it has none."""
        matrix, choices = self._matrix, self._choices[a]
        replicas = choices.app.replicas
        for v, mb in enumerate(choices.mb):
            for b, held in enumerate(self._problem.bins):
                runs = self._problem.runs(choices.app.variants[v], held)
                if runs and mb <= held.memory_mb and choices.busy[v] <= held.cores:
                    self._add_replica(a, v, b)
        primaries = self._on(self._primaries, a)
        standbys = self._on(self._standbys, a)
        unplaced = matrix.column(choices.unplaced, whole=True)
        missing = matrix.column(choices.missing, replicas - 1, whole=True)
        matrix.row([*_ones(primaries), (unplaced, 1.0), (missing, 1.0)], replicas, replicas)
        if standbys:
            matrix.row(_ones(standbys), upper=1.0)
            self._keep_apart(a, replicas)
        if replicas > 1:
            self._add_crowding(a)
        return unplaced

    def _add_replica(self, a: int, v: int, b: int) -> None:
        problem, choices = self._problem, self._choices[a]
        move = 0.0 if self._place(a, v, b) in problem.existing else problem.settings.movement_cost
        price = choices.primary[v] + move * (1.0 + objective.RELABEL)
        primary = self._matrix.column(price, choices.app.replicas, whole=True)
        self._primaries[a, v, b] = primary
        columns = [primary]
        if choices.standby:
            standby = self._matrix.column(choices.standby[v] + move, whole=True)
            self._standbys[a, v, b] = standby
            columns.append(standby)
        self._held[b] += [(column, choices.mb[v]) for column in columns]
        self._busy[b] += [(column, choices.busy[v]) for column in columns]

    def _keep_apart(self, a: int, replicas: int) -> None:
        """A standby never shares its node with a primary of its app."""
        for bins in self._groups(lambda held: held.node):
            standbys = [(column, float(replicas)) for column in self._on(self._standbys, a, bins)]
            self._matrix.row(_ones(self._on(self._primaries, a, bins)) + standbys, upper=replicas)

    def _add_crowding(self, a: int) -> None:
        app = self._choices[a].app
        groups = [(bins, objective.SAME_NODE) for bins in self._groups(lambda held: held.node)]
        groups += [(bins, objective.SAME_SITE) for bins in self._groups(lambda held: held.site)]
        for bins, price in groups:
            crowded = self._matrix.column(objective.worth(app) * price, app.replicas - 1)
            self._matrix.row([*_ones(self._on(self._primaries, a, bins)), (crowded, -1.0)], upper=1.0)

    def _groups(self, key: Callable[[Bin], str]) -> list[set[int]]:
        groups: dict[str, set[int]] = defaultdict(set)
        for b, held in enumerate(self._problem.bins):
            groups[key(held)].add(b)
        return list(groups.values())

    def _add_spread(self) -> None:
        for b, held in enumerate(self._problem.bins):
            spread = self._matrix.column(1.0, math.inf)
            shares = [
                (column, objective.BALANCE * self._choices[a].mb[v] / held.memory_mb)
                for (a, v, at), column in self._primaries.items()
                if at == b
            ]
            for slope, intercept in objective.TANGENTS:
                terms = [(column, slope * share) for column, share in shares]
                self._matrix.row([*terms, (spread, -1.0)], upper=objective.BALANCE * intercept)

    def _add_limits(self, held: Used, busy: Used, bins: Iterable[int]) -> None:
        for b in bins:
            self._matrix.row(held[b], upper=self._problem.bins[b].memory_mb)
            if math.isfinite(self._problem.bins[b].cores):
                self._matrix.row(busy[b], upper=self._problem.bins[b].cores)

    # scenarios

    def _add_scenario(self, s: int) -> None:
        scenario = self._problem.scenarios[s]
        left = [b for b, at in enumerate(self._problem.bins) if at.node not in scenario.lost]
        held, busy = [list(terms) for terms in self._held], [list(terms) for terms in self._busy]
        for a, choices in enumerate(self._choices):
            silent = self._matrix.column(choices.silent * len(scenario.names))
            answers = [*self._on(self._primaries, a, left), self._unplaced[a], silent]
            if choices.standby:
                answers += self._add_warm(a, s, left)
            for b in left:
                for k, column in self._add_colds(a, s, b):
                    answers.append(column)
                    held[b].append((column, choices.ways[k].room_mb))
                    busy[b].append((column, choices.ways[k].busy))
            self._matrix.row(_ones(answers), lower=1.0)
        self._add_limits(held, busy, left)

    def _add_warm(self, a: int, s: int, left: list[int]) -> list[int]:
        """The standby as an answer, by variant."""
        names = self._problem.scenarios[s].names
        answers = []
        for v, loss in enumerate(self._choices[a].warm):
            warm = self._matrix.column(loss * len(names))
            standbys = [(self._standbys[a, v, b], -1.0) for b in left if (a, v, b) in self._standbys]
            self._matrix.row([(warm, 1.0), *standbys], upper=0.0)
            answers.append(warm)
        return answers

    def _add_colds(self, a: int, s: int, b: int) -> list[tuple[int, int]]:
        """Ways back on bin `b`, with their columns."""
        problem, names, held = self._problem, self._problem.scenarios[s].names, self._problem.bins[b]
        found = []
        for k, way in enumerate(self._choices[a].ways):
            if way.room_mb > held.memory_mb or way.busy > held.cores:
                continue
            if any((held.node, key) in problem.lacking for key in self._choices[a].way_keys[k]):
                continue
            cost = way.loss * len(names)
            for name in names:
                if self._contingency(a, name, b, k) not in problem.staged:
                    cost += objective.RESTAGE
            column = self._matrix.column(cost, whole=True)
            self._colds[a, s, b, k] = column
            found.append((k, column))
        return found

    # reading and writing plans

    def _contingency(self, a: int, failure: str, b: int, k: int) -> Contingency:
        choices, held = self._choices[a], self._problem.bins[b]
        app, way = choices.app, choices.ways[k]
        return Contingency(app.app, app.version, failure, held.node, way.first, way.variant, held.device)

    def _on(self, columns: Replicas, a: int, bins: Iterable[int] | None = None) -> list[int]:
        """The columns of app `a` on `bins` (None: all)."""
        variants = range(len(self._choices[a].mb))
        at = range(len(self._problem.bins)) if bins is None else sorted(bins)
        return [columns[a, v, b] for b in at for v in variants if (a, v, b) in columns]

    def _primaries_at(self, places: frozenset[Place]) -> list[int]:
        return [column for key, column in self._primaries.items() if self._place(*key) in places]

    def _place(self, a: int, v: int, b: int) -> Place:
        app, held = self._choices[a].app, self._problem.bins[b]
        return app.app, app.version, app.variants[v].name, held.node, held.device

    def _fix(self, matrix: Matrix, plan: Plan) -> None:
        counts = Counter((objective.place(placed), placed.role) for placed in plan.placements)
        for columns, role in ((self._primaries, Role.PRIMARY), (self._standbys, Role.STANDBY)):
            for key, column in columns.items():
                matrix.lower[column] = matrix.upper[column] = float(counts[self._place(*key), role])

    def _read(self, values: list[float]) -> Plan:
        placements = []
        for columns, role in ((self._primaries, Role.PRIMARY), (self._standbys, Role.STANDBY)):
            for key, column in columns.items():
                app, version, variant, node, device = self._place(*key)
                placed = Placement(app, version, variant, node, role, device)
                placements += [placed] * round(values[column])
        contingencies = [
            self._contingency(a, name, b, k)
            for (a, s, b, k), column in self._colds.items()
            if values[column] > 0.5
            for name in self._problem.scenarios[s].names
        ]
        return Plan(
            revision=0,
            placements=tuple(sorted(placements, key=lambda p: (p.app, p.role, p.node, p.device))),
            contingencies=tuple(sorted(contingencies, key=lambda c: (c.app, c.failure))),
        )


def _ones(columns: list[int]) -> Terms:
    return [(column, 1.0) for column in columns]
