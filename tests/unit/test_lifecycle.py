"""The lifecycle tables are whole: every state has a way in, and none can be left by accident."""

from __future__ import annotations

import pytest

from understudy.core.lifecycle import NODE, NODE_STATES, REPLICA, REPLICA_STATES, Table, advance, permits
from understudy.invariants import InvariantBroken

TABLES = [pytest.param(REPLICA, REPLICA_STATES, id="replica"), pytest.param(NODE, NODE_STATES, id="node")]


@pytest.mark.parametrize(("table", "states"), TABLES)
def test_the_table_speaks_of_the_listed_states(table: Table, states: tuple[str, ...]) -> None:
    assert {state for state, _ in table} | set(table.values()) == set(states)


@pytest.mark.parametrize(("table", "states"), TABLES)
def test_every_state_can_be_reached(table: Table, states: tuple[str, ...]) -> None:
    reached = {states[0]}
    while more := {after for (state, _), after in table.items() if state in reached} - reached:
        reached |= more
    assert reached == set(states)


def test_a_node_can_come_back_from_every_state() -> None:
    for start in NODE_STATES:
        reached = {start}
        while more := {after for (state, _), after in NODE.items() if state in reached} - reached:
            reached |= more
        assert "ready" in reached, start


def test_a_replica_that_is_wanted_no_more_stops() -> None:
    for state in REPLICA_STATES:
        if state in {"draining", "stopped"}:
            continue
        after = advance(REPLICA, state, "released")
        assert after == "stopped" or advance(REPLICA, after, "drained") == "stopped"
    assert not any(permits(REPLICA, "stopped", event) for _, event in REPLICA)


def test_what_the_table_does_not_know_breaks_an_invariant() -> None:
    assert advance(NODE, "dead", "hello") == "returning"
    with pytest.raises(InvariantBroken, match="'stable' can't happen in state 'dead'"):
        advance(NODE, "dead", "stable")
