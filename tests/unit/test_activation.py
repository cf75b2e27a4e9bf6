"""Which contingency a gateway asks for, by what is lost."""

from __future__ import annotations

import pytest

from understudy.core.gateway.activation import choose
from understudy.failures import lost_nodes, mistake_in, to_survive
from understudy.wire.records import AppVersion, ArtifactRef, Contingency, NodeInfo, Variant

SITES = {"n1": "eu/a", "n2": "eu/a", "n3": "eu/b", "n4": "eu/b", "n5": "us/a", "n6": "us/a"}
NODES = tuple(NodeInfo(name, site, "", 100.0) for name, site in SITES.items())
APP = AppVersion("digits", 1, (Variant("small", "onnx", ArtifactRef("0" * 64, 1, "small"), 0.9),))
PLANNED = {
    "node:n1": "n2",
    "any-2": "n3",
    "any-3": "n4",
    "site:eu/a": "n4",
    "site:eu": "n5",
    "node:n1+node:n5": "n6",
}


def asked(*lost: str, planned: dict[str, str] = PLANNED) -> str | None:
    contingencies = [
        Contingency("digits", 1, failure, at, "small", "small") for failure, at in planned.items()
    ]
    choice = choose(APP, contingencies, NODES, SITES.keys() - set(lost), {"n1"}, ())
    return choice.failure if choice is not None else None


@pytest.mark.parametrize(
    ("lost", "failure"),
    [
        ((), "node:n1"),  # its worker died, its node lives
        (("n1",), "node:n1"),
        (("n1", "n6"), "node:n1"),
        (("n1", "n2"), "site:eu/a"),
        (("n1", "n2", "n3", "n4"), "site:eu"),
        (("n1", "n5"), "node:n1+node:n5"),
        (("n1", "n2", "n3", "n4", "n5"), "node:n1+node:n5"),
        (tuple(SITES), None),
    ],
)
def test_the_contingency_for_what_is_lost(lost: tuple[str, ...], failure: str | None) -> None:
    assert asked(*lost) == failure


def test_the_ways_back_from_whichever_nodes_are_lost_are_taken_in_their_order() -> None:
    planned = {"any-3": "n4", "node:n1": "n2", "any-2": "n3"}
    assert asked("n1", planned=planned) == "node:n1"
    assert asked("n1", "n2", planned={**planned, "any-2": "n5"}) == "any-2"
    assert asked("n1", "n2", "n3", planned=planned) == "any-3"
    assert asked("n1", "n2", "n3", "n4", planned=planned) == "any", "nothing planned lives: the last resort"


def test_failures_by_name() -> None:
    assert lost_nodes("site:eu", NODES) == {"n1", "n2", "n3", "n4"}
    assert lost_nodes("site:e", NODES) == frozenset()
    assert lost_nodes("site:us+node:n1", NODES) == {"n1", "n5", "n6"}
    assert list(to_survive(NODES, ("site",))) == ["site:eu", "site:us", "site:eu/a", "site:eu/b", "site:us/a"]
    assert list(to_survive(NODES, ("any-2",))) == [f"node:{name}" for name in SITES]
    assert to_survive(NODES, ("node:gone",)) == {}


@pytest.mark.parametrize(
    ("wish", "mistake"),
    [
        ("node:n1+site:eu", ""),
        ("any-2", ""),
        ("rack", "'rack' is no failure"),
        ("any-0", "'any-0' is no failure"),
        ("node:n1+any-2", "is no failure"),
        ("node:n9", "the cluster has no node 'n9'"),
        ("site:eu/c", "no node is in site 'eu/c'"),
    ],
)
def test_failures_to_survive_are_checked(wish: str, mistake: str) -> None:
    found = mistake_in((wish,), SITES)
    assert mistake in found
    assert bool(found) == bool(mistake)
