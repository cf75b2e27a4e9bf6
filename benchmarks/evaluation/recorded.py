"""The rows of evaluation.json, by what they are about. Tables and plots read them through this."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.evaluation.figures import Case

ROW = re.compile(
    r"(?P<nodes>\d+) nodes, (?P<apps>\d+) apps, (?P<mix>\w+), headroom (?P<headroom>[\d.]+) %, "
    r"(?P<kind>[\w ]+) lost(?:, (?P<scheme>[^:]+))?: (?P<figure>.+)"
)
Sweep = tuple[int, int, str]  # nodes, apps, mix


@dataclass(frozen=True, slots=True)
class Recorded:
    """`figures`: case -> scheme ("" for the plan itself) -> figure -> row."""

    figures: dict[Case, dict[str, dict[str, dict[str, Any]]]]

    def sweeps(self) -> list[Sweep]:
        return sorted({(case.nodes, case.apps, case.mix) for case in self.figures})

    def kinds(self, sweep: Sweep) -> list[str]:
        return list(dict.fromkeys(c.kind for c in self.figures if (c.nodes, c.apps, c.mix) == sweep))

    def cases(self, sweep: Sweep, kind: str) -> list[Case]:
        """By headroom."""
        return sorted(c for c in self.figures if (c.nodes, c.apps, c.mix) == sweep and c.kind == kind)

    def value(self, case: Case, scheme: str, figure: str, of: str = "median") -> float | None:
        row = self.figures.get(case, {}).get(scheme, {}).get(figure)
        return None if row is None else float(row[of])


def recorded(rows: Iterable[dict[str, Any]]) -> Recorded:
    figures: dict[Case, dict[str, dict[str, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found = ROW.fullmatch(row["figure"])
        assert found is not None, row["figure"]
        headroom = round(float(found["headroom"]) / 100, 6)
        case = Case(int(found["nodes"]), int(found["apps"]), found["mix"], found["kind"], headroom)
        figures[case][found["scheme"] or ""][found["figure"]] = row
    return Recorded(figures)
