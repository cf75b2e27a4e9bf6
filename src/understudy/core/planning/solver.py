"""Mixed-integer programs, and the one call of HiGHS. The only module that imports highspy, when it is needed.

HiGHS runs in the calling thread, single-threaded and from a fixed seed, so that the same program gives the
same answer unless time runs out. It doesn't hold the interpreter's lock while it runs.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from typing import Any

from understudy.wire.errors import ConfigError

Terms = list[tuple[int, float]]  # (column, coefficient)


@dataclass(frozen=True, slots=True)
class Solved:
    """`values` by column (None: nothing was found) and their cost. No solution costs less than `bound`."""

    values: list[float] | None
    cost: float
    bound: float
    solve_s: float


@dataclass(slots=True)
class Matrix:
    """Columns with costs to minimise, and rows, in the form that HiGHS takes."""

    cost: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)
    start: list[int] = field(default_factory=lambda: [0])
    index: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

    def column(self, cost: float, upper: float = 1.0, *, whole: bool = False) -> int:
        """A variable between 0 and `upper`; its index."""
        self.cost.append(cost)
        self.lower.append(0.0)
        self.upper.append(upper)
        self.whole.append(whole)
        return len(self.cost) - 1

    def row(self, terms: Terms, lower: float = -math.inf, upper: float = math.inf) -> None:
        self.index.extend(column for column, _ in terms)
        self.value.extend(value for _, value in terms)
        self.start.append(len(self.index))
        self.row_lower.append(lower)
        self.row_upper.append(upper)

    def copy(self) -> Matrix:
        """A copy that can be given bounds and rows of its own."""
        return Matrix(*(list(getattr(self, name)) for name in self.__dataclass_fields__))


def solve(matrix: Matrix, *, time_limit_s: float, gap: float, start: list[float] | None = None) -> Solved:
    """Minimise, to within `gap` of the least cost (absolute) unless time runs out first.

    `start` is a complete solution to begin with; then little time goes into finding another one and most
    into the bound. Raises `ConfigError` if HiGHS isn't installed.
    """
    highspy = _import_highspy()
    solver = highspy.Highs()
    options = {
        "output_flag": False,
        "threads": 1,
        "random_seed": 0,
        "time_limit": max(time_limit_s, 0.01),
        "mip_rel_gap": 0.0,
        "mip_abs_gap": gap,
        # Measured: presolve finds next to nothing to remove in these programs, and was most of the time of a
        # solve that starts from a good solution. The search for a first one does profit from what it learns.
        "presolve": "choose" if start is None else "off",
    }
    for option, value in options.items():
        solver.setOptionValue(option, value)
    solver.passModel(_model(highspy, matrix))
    if start is not None:
        solution = highspy.HighsSolution()
        solution.col_value = start
        solver.setSolution(solution)
    solver.run()
    info = solver.getInfo()
    feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    values = list(solver.getSolution().col_value) if feasible else None
    return Solved(values, info.objective_function_value, info.mip_dual_bound, solver.getRunTime())


def _model(highspy: Any, matrix: Matrix) -> Any:
    model = highspy.HighsLp()
    model.num_col_ = len(matrix.cost)
    model.num_row_ = len(matrix.row_lower)
    model.col_cost_ = matrix.cost
    model.col_lower_ = matrix.lower
    model.col_upper_ = matrix.upper
    integer, continuous = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
    model.integrality_ = [integer if whole else continuous for whole in matrix.whole]
    model.row_lower_ = matrix.row_lower
    model.row_upper_ = matrix.row_upper
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = matrix.start
    model.a_matrix_.index_ = matrix.index
    model.a_matrix_.value_ = matrix.value
    return model


def is_installed() -> bool:
    return importlib.util.find_spec("highspy") is not None


def _import_highspy() -> Any:
    try:
        import highspy
    except ImportError as error:
        raise ConfigError(
            "the exact planner needs HiGHS: pip install '/path/to/understudy[controller]'"
        ) from error
    return highspy
