"""Where nothing of a variant is planned because its packages aren't ready there."""

from __future__ import annotations

import asyncio

import pytest

from understudy.controller.deployments import with_setting
from understudy.controller.preparing import Preparer
from understudy.core.controller.environments import lacking, troubles
from understudy.core.controller.nodes import Node
from understudy.core.controller.stored import PlanFacts
from understudy.core.planning.plan import PlanInput, make_plan
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import NodeState
from understudy.wire.records import AppVersion, ArtifactRef, Environment, NodeInfo, Variant

PYTHON = Environment(python="/opt/venv/bin/python")
FILE = ArtifactRef("0" * 64, 1000, "model.py")
APP = AppVersion("sorter", 3, (Variant("full", "python", FILE, 0.9, environment=PYTHON),))


def node(name: str, environments: dict[str, str] | None) -> Node:
    """`environments` None: it isn't heard at present."""
    observed = None if environments is None else NodeState(name, 1, 1, 0, environments=environments)
    return Node(NodeInfo(name, "a", "", 500.0), "ready", 0.0, observed is not None, observed=observed)


def test_a_node_counts_when_it_says_that_the_environment_is_ready() -> None:
    nodes = [node("n1", {PYTHON.key: ""}), node("n2", {PYTHON.key: "it is being built"}), node("n3", {})]
    found = lacking(nodes, [APP], PlanFacts())
    assert found == (("n2", PYTHON.key), ("n3", PYTHON.key))


def test_a_node_that_is_not_heard_is_as_it_was_when_the_plan_was_made() -> None:
    planned = PlanFacts(
        nodes=(("n1", "a", 500.0), ("n2", "a", 500.0)), apps=(("sorter", 3),), lacking=(("n2", PYTHON.key),)
    )
    nodes = [node("n1", None), node("n2", None), node("new", None)]
    assert lacking(nodes, [APP], planned) == (("n2", PYTHON.key), ("new", PYTHON.key))
    of_an_older_version = PlanFacts(nodes=planned.nodes, apps=(("sorter", 2),))
    assert len(lacking(nodes, [APP], of_an_older_version)) == 3


def test_a_plan_uses_the_nodes_that_are_ready_and_says_which_are_not() -> None:
    nodes = tuple(NodeInfo(f"n{i}", f"s{i}", "", 500.0) for i in (1, 2, 3))
    gone = frozenset({("n1", PYTHON.key), ("n3", PYTHON.key)})
    plan = make_plan(PlanInput(nodes, (APP,), lacking=gone), 1, "test")
    assert {p.node for p in plan.placements} == {"n2"}
    assert plan.contingencies == ()
    assert any("packages of its variants aren't ready on n1, n3" in warning for warning in plan.warnings)
    everywhere = gone | {("n2", PYTHON.key)}
    plan = make_plan(PlanInput(nodes, (APP,), lacking=everywhere), 1, "test")
    assert "packages of its variants aren't ready on n1, n2, n3" in plan.unplaced["sorter"]


@pytest.mark.parametrize(
    ("said", "helps"),
    [
        ("No module named 'nowhere'", "from a requirements.txt beside model.py)"),
        ("not enough memory to load", "not enough memory to load (memory_limit_mb = 64)"),
        ("killed; memory_limit_mb of the variant sets it", "killed; memory_limit_mb of the variant sets it"),
    ],
)
def test_a_model_that_cant_be_measured_is_told_with_what_helps(said: str, helps: str) -> None:
    variant = Variant("full", "python", FILE, 0.9, memory_limit_mb=64)
    told = with_setting(variant, UnderstudyError(Code.LOAD_FAILED, said))
    assert told.message.startswith(f"variant 'full': {said}")
    assert told.message.endswith(helps)


def test_the_status_names_node_app_and_reason() -> None:
    nodes = [node("n1", {PYTHON.key: ""}), node("n2", {PYTHON.key: "it can't be run"})]
    assert troubles(nodes, [APP]) == ["n2: the packages of sorter/full aren't ready: it can't be run"]


def prepare(**behaviour: UnderstudyError | None) -> list[str]:
    async def on_node(name: str, environment: Environment) -> None:
        assert environment == PYTHON
        if (error := behaviour[name]) is not None:
            raise error

    return asyncio.run(Preparer(lambda: list(behaviour), on_node).prepare(APP))


def test_a_deployment_goes_on_where_some_node_has_the_packages_and_warns_of_the_others() -> None:
    bad = UnderstudyError(Code.LOAD_FAILED, "it is too old")
    assert prepare(n1=None, n2=bad) == ["'full' can't run on n2: it is too old"]
    assert prepare(n1=None, n2=None) == []


def test_a_deployment_ends_where_no_node_can_have_the_packages() -> None:
    bad = UnderstudyError(Code.LOAD_FAILED, "it is too old")
    with pytest.raises(UnderstudyError, match="'full': its packages can't be had on n1, n2: it is too old"):
        prepare(n1=bad, n2=bad)
