"""The lifecycle tables are whole: every state has a way in, and none can be left by accident."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import pytest

from understudy.core.gateway.lifecycles import SEEN, Seen
from understudy.core.lifecycle import (
    CASE,
    DEPLOYMENT,
    NODE,
    REPLICA,
    WORKER,
    CasePhase,
    DeploymentPhase,
    NodePhase,
    ReplicaPhase,
    WorkerPhase,
    advance,
)
from understudy.invariants import InvariantBroken

TABLES = [
    pytest.param(table, phases, id=phases.__name__)
    for table, phases in (
        (REPLICA, ReplicaPhase),
        (NODE, NodePhase),
        (WORKER, WorkerPhase),
        (CASE, CasePhase),
        (DEPLOYMENT, DeploymentPhase),
    )
]


@pytest.mark.parametrize(("table", "phases"), TABLES)
def test_the_table_speaks_of_the_listed_states(table: Any, phases: type[StrEnum]) -> None:
    assert {state for state, _ in table} | set(table.values()) == set(phases)


@pytest.mark.parametrize(("table", "phases"), TABLES)
def test_every_state_can_be_reached(table: Any, phases: type[StrEnum]) -> None:
    assert reached_from(next(iter(phases)), table) == set(phases)


def reached_from(start: StrEnum, table: Any) -> set[StrEnum]:
    reached = {start}
    while more := {after for (state, _), after in table.items() if state in reached} - reached:
        reached |= more
    return reached


def test_a_gateway_knows_every_state_that_an_agent_tells() -> None:
    assert {phase.value for phase in ReplicaPhase} < {seen.value for seen in Seen}
    assert {seen.value for seen in Seen} - {phase.value for phase in ReplicaPhase} == {"lost", "unknown"}
    assert Seen.UNKNOWN not in reached_from(Seen.READY, SEEN)


def test_what_ended_stays_as_it_ended() -> None:
    ends: dict[StrEnum, Any] = {ReplicaPhase.STOPPED: REPLICA, CasePhase.CLOSED: CASE}
    ends |= dict.fromkeys((DeploymentPhase.READY, DeploymentPhase.FAILED, DeploymentPhase.KEPT), DEPLOYMENT)
    assert [end for end, table in ends.items() if any(state == end for state, _ in table)] == []
    for phase in {DeploymentPhase.STAGING, DeploymentPhase.PROFILING, DeploymentPhase.PLACING}:
        assert advance(DEPLOYMENT, phase, "failed") is DeploymentPhase.FAILED


def test_a_node_can_come_back_from_every_state() -> None:
    for start in NodePhase:
        assert NodePhase.READY in reached_from(start, NODE), start


def test_a_replica_that_is_wanted_no_more_stops() -> None:
    for state in set(ReplicaPhase) - {ReplicaPhase.DRAINING, ReplicaPhase.STOPPED}:
        after = advance(REPLICA, state, "released")
        assert ReplicaPhase.STOPPED in (after, REPLICA.get((after, "drained")))


def test_what_the_table_does_not_know_breaks_an_invariant() -> None:
    assert advance(NODE, NodePhase.DEAD, "hello") is NodePhase.RETURNING
    with pytest.raises(InvariantBroken, match="'stable' can't happen in state 'dead'"):
        advance(NODE, NodePhase.DEAD, "stable")
