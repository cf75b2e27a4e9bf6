"""What each app can be given, with its price: the objective, spelled out once per app.

Both planners read these tables, so that neither adds up prices in a way of its own.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

from understudy.core.planning import objective
from understudy.core.planning.footprint import busy, replica_mb
from understudy.core.planning.objective import Problem, Way
from understudy.settings.plan import PlanSettings
from understudy.wire.records import AppVersion, Criticality


@dataclass(frozen=True, slots=True)
class Choices:
    """Prices in weighted accuracy, by variant (best first) where there are several."""

    app: AppVersion
    index: dict[str, int]  # of variants, by name
    mb: tuple[float, ...]
    keys: tuple[str, ...]  # of environments
    busy: tuple[float, ...]  # cores
    primary: tuple[float, ...]  # of one primary, without its movement
    standby: tuple[float, ...]  # the same; empty for apps that get none
    warm: tuple[float, ...]  # of answering in one failure
    ways: tuple[Way, ...]  # best first
    way_keys: tuple[frozenset[str], ...]  # of the environments that it takes
    way_index: dict[tuple[str, str], int]  # by first and variant
    silent: float  # of one failure
    unplaced: float
    missing: float  # of each primary short of the wanted number


def choices_of(problem: Problem, known: dict[str, Choices] | None = None) -> list[Choices]:
    """By app. What is `known` of the very same version is used again, for the same settings."""
    known = known or {}
    found = []
    for app in problem.apps:
        before = known.get(app.app)
        same = before is not None and before.app is app
        found.append(before if before is not None and same else _of(app, problem.settings))
    return found


def _of(app: AppVersion, settings: PlanSettings) -> Choices:
    memory = [objective.memory_loss(v, settings) for v in app.variants]
    standby: list[float] = []
    if app.criticality is Criticality.CRITICAL:
        standby = [objective.standby_loss(app, v, settings) for v in app.variants]
    primary = [objective.primary_loss(app, v) for v in app.variants]
    ways = objective.ways(app)
    keys = {variant.name: variant.environment_key for variant in app.variants}
    return Choices(
        app=app,
        index={variant.name: v for v, variant in enumerate(app.variants)},
        mb=tuple(replica_mb(variant) for variant in app.variants),
        keys=tuple(variant.environment_key for variant in app.variants),
        busy=tuple(busy(app, variant) for variant in app.variants),
        primary=tuple(map(operator.add, primary, memory)),
        standby=tuple(map(operator.add, standby, memory)),
        warm=tuple(objective.warm_loss(app, v) for v in app.variants),
        ways=ways,
        way_keys=tuple(frozenset({keys[way.first], keys[way.variant]}) for way in ways),
        way_index={(way.first, way.variant): w for w, way in enumerate(ways)},
        silent=objective.silent_loss(app),
        unplaced=objective.unplaced_loss(app),
        missing=objective.worth(app) * objective.REPLICA_MISSING,
    )
