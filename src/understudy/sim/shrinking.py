"""What of a failing run matters: Hypothesis leaves out whatever it fails without.

A run has parts: nodes, apps, every single fault, and so on. Each is kept or left out, and leaving out is
the simpler choice. So what Hypothesis finds first is a run that fails like the whole one, and what it ends
with is one from which nothing more can go.
"""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from understudy.sim.scenario import SimScenario
from understudy.sim.seeds import run

RUNS_MAX = 300
KEEP_MAX = 999  # one draw in so many leaves a part out, until shrinking begins


def smallest(scenario: SimScenario, *, runs_max: int = RUNS_MAX) -> SimScenario:
    """With the fewest parts that were found to fail; `scenario` itself if it doesn't, or nothing can go."""

    def fails(keeping: Mapping[str, int]) -> bool:
        return bool(run(_kept(scenario, keeping)).failure)

    choices = st.fixed_dictionaries({part: st.integers(0, KEEP_MAX) for part in scenario.parts})
    effort = settings(
        max_examples=runs_max,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    try:
        return _kept(scenario, find(choices, fails, settings=effort))
    except NoSuchExample:
        return scenario


def _kept(scenario: SimScenario, keeping: Mapping[str, int]) -> SimScenario:
    return scenario.only([part for part, kept in keeping.items() if kept])
