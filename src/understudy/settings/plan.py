"""Settings of the planner."""

from __future__ import annotations

from typing import Literal

from understudy.settings import Fraction, NonNegative, Positive, Settings


class PlanSettings(Settings, frozen=True):
    # Each node, each site at every level, "any-2" nodes at once; or losses by name: "node:n1+site:eu/room-2".
    survive: tuple[str, ...] = ("node", "site")
    method: Literal["auto", "exact", "heuristic"] = "auto"  # auto: exact where the cluster is small
    time_limit_s: Positive = 5.0  # for the exact method
    gap: Fraction = 0.001
    movement_cost: NonNegative = 0.01  # per replica moved, in units of weighted accuracy
    memory_cost: NonNegative = 0.001  # per GB that replicas use
    standby_memory_cost: NonNegative = 0.1  # of a full-size standby; a smaller one costs less, in accuracy
    node_reserve_mb: NonNegative = 0.0  # kept free on each node
