"""What each app can be given, with its price: the objective, spelled out once per app.

Both planners read these tables, so that neither adds up prices in a way of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy.core.planning import objective
from understudy.core.planning.footprint import busy, replica_mb
from understudy.core.planning.objective import Problem, Way
from understudy.failures import PlanSettings
from understudy.wire.records import AppVersion, Criticality


@dataclass(frozen=True, slots=True)
class Choices:
    """Prices in weighted accuracy, by variant (best first) where there are several."""

    app: AppVersion
    mb: tuple[float, ...]
    busy: tuple[float, ...]  # cores
    primary: tuple[float, ...]  # of one primary, without its movement
    standby: tuple[float, ...]  # the same; empty for apps that get none
    warm: tuple[float, ...]  # of answering in one failure
    ways: tuple[Way, ...]  # best first
    silent: float  # of one failure
    unplaced: float
    missing: float  # of each primary short of the wanted number


def choices_of(problem: Problem) -> list[Choices]:
    memory_price = problem.settings.memory_cost / problem.memory_mb
    return [_of(app, memory_price, problem.settings) for app in problem.apps]


def _of(app: AppVersion, memory_price: float, settings: PlanSettings) -> Choices:
    mb = tuple(replica_mb(variant) for variant in app.variants)
    memory = [memory_price * size for size in mb]
    standby: tuple[float, ...] = ()
    if app.criticality is Criticality.CRITICAL:
        prices = zip(memory, (objective.standby_loss(app, v, settings) for v in app.variants), strict=True)
        standby = tuple(held + price for held, price in prices)
    return Choices(
        app=app,
        mb=mb,
        busy=tuple(busy(app, variant) for variant in app.variants),
        primary=tuple(
            held + objective.primary_loss(app, v) for held, v in zip(memory, app.variants, strict=True)
        ),
        standby=standby,
        warm=tuple(objective.warm_loss(app, v) for v in app.variants),
        ways=objective.ways(app),
        silent=objective.silent_loss(app),
        unplaced=objective.unplaced_loss(app),
        missing=objective.worth(app) * objective.REPLICA_MISSING,
    )
