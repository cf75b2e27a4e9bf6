"""What status, plan and events show: the truth of the documents, on one line each, at any width."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from control_api import serving
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from understudy.cli import events, plan, status
from understudy.cli.app import app
from understudy.cli.exits import Exit
from understudy.controller.status import (
    AppStatus,
    ClusterStatus,
    GatewayStatus,
    NodeStatus,
    QuarantineStatus,
    ReplicaStatus,
    StandbyStatus,
    StoreStatus,
)
from understudy.core.questions.records import Held
from understudy.core.views import AppHealth, from_controller, from_gateway
from understudy.wire.errors import ProtocolError
from understudy.wire.records import Outcome, Placement, Role

APP = AppStatus(
    name="digits",
    version=3,
    criticality="critical",
    weight=1.0,
    state="ok",
    serving="cnn",
    full_size="cnn",
    reason=None,
    primary_nodes=["n1"],
    primary_variant="cnn",
    standby=StandbyStatus("warm", "n3", "tree"),
    protection="warm n3",
    replicas=[ReplicaStatus("r1", 3, "cnn", "n1", "primary", "ready", 4711, 60.5, 0, "", 3.2)],
    requests=120,
    failed=0,
    degraded=0,
    p50_ms=1.23,
    p99_ms=8.9,
)
FALLEN = msgspec.structs.replace(
    APP,
    name="a-name-that-is-much-longer-than-anybody-would-choose-it",
    state="degraded",
    serving="tree",
    reason="cnn on n1 is backoff: exit status 1",
    protection="none",
    p50_ms=None,
    p99_ms=None,
)
GONE = msgspec.structs.replace(
    APP, name="wine", state="down", serving=None, reason="its replicas are not ready"
)
NODE = NodeStatus("n1", "east", "ready", "", True, 512.0, 130.2, 2, 2, "landlock (no namespaces: refused)")
DEAD = NodeStatus("n2", "east", "dead", "its lease was lost", False, 512.0, 0.0, 0, 0, "")
CLUSTER = ClusterStatus(
    cluster="shop",
    leader="c1",
    revision=7,
    routes_revision=12,
    planning=False,
    store=StoreStatus(True),
    apps=[APP, FALLEN, GONE],
    nodes=[NODE, DEAD],
    gateways=[GatewayStatus("g1", True, "127.0.0.1:8080", 12, [])],
    quarantined=[("digits", 3, "forest")],
    quarantines=[
        QuarantineStatus("digits", 3, "forest", "quarantined", "crashed on n1 and n2", ["n1", "n2"], "", 60.0)
    ],
    warnings=["losing n3 leaves wine without an answer"],
)
GATEWAY: dict[str, Any] = {
    "revision": 12,
    "draining": False,
    "nodes": [
        {"name": "n1", "site": "east", "connected": True, "suspect": False, "replicas": ["r1"]},
        {"name": "n2", "site": "east", "connected": True, "suspect": True, "replicas": []},
        {"name": "n3", "site": "west", "connected": False, "suspect": False, "replicas": []},
    ],
    "apps": [
        {
            "name": "digits",
            "version": 3,
            "criticality": "critical",
            "ready": True,
            "serving": "tree",
            "full_size": "cnn",
            "degraded": "failover",
            "p50_ms": 0.0,
            "p99_ms": 0.0,
            "requests": 5,
            "failed": 0,
            "replicas": [
                {"id": "r2", "node": "n1", "variant": "tree", "version": 3, "role": "standby"}
                | {"state": "ready", "pid": 12, "connected": True}
            ],
        },
        {
            "name": "wine",
            "version": 1,
            "criticality": "standard",
            "ready": False,
            "serving": "static",
            "full_size": "forest",
            "degraded": "down",
            "p50_ms": 1.0,
            "p99_ms": 2.0,
            "requests": 5,
            "failed": 0,
            "replicas": [],
        },
    ],
}


def shown(renderable: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    return text


def controller_view() -> Any:
    return from_controller(msgspec.to_builtins(CLUSTER), "http://127.0.0.1:8090")


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


def test_the_controllers_status_is_understood() -> None:
    view = controller_view()
    assert (view.source, view.cluster, view.leader, view.revision) == ("controller", "shop", "c1", 7)
    assert view.apps[0].replicas[0].pid == 4711
    assert view.quarantined == [("digits", 3, "forest")]
    assert not view.met


@pytest.mark.parametrize("width", [80, 120])
def test_each_app_has_a_line_with_what_matters(width: int) -> None:
    text = shown(status.render(controller_view()), width)
    assert " ".join(line_of(text, "digits ").split()) == "digits cnn ok warm n3 critical 3s 1.2 8.9"
    assert "nobody" in line_of(text, "wine ")
    assert "down" in line_of(text, "wine ")
    assert "degraded  none       critical" in line_of(text, "a-name-t")


def test_a_wide_terminal_says_what_should_serve() -> None:
    assert "tree (not cnn)" in shown(status.render(controller_view()), 200)


def test_what_needs_attention_is_said_once_below() -> None:
    text = shown(status.render(controller_view()), 120)
    assert "1 ok  1 degraded  1 down" in text
    for sentence in (
        "wine: its replicas are not ready",
        "n2: its lease was lost",
        "digits/forest: in quarantine",
        "losing n3 leaves wine without an answer",
    ):
        assert f"! {sentence}" in text
    assert "130 / 512" in line_of(text, "n1 ")


def test_an_empty_cluster_says_what_to_do() -> None:
    empty = msgspec.structs.replace(CLUSTER, apps=[], quarantined=[], quarantines=[], warnings=[])
    text = shown(status.render(from_controller(msgspec.to_builtins(empty), "")))
    assert "understudy deploy" in text


def test_a_gateways_view_stands_in() -> None:
    view = from_gateway(GATEWAY, "http://127.0.0.1:8080")
    assert view.source == "gateway"
    assert [(app.state, app.reason) for app in view.apps] == [
        ("degraded", "failover"),
        ("degraded", "down"),
    ]
    assert [node.state for node in view.nodes] == ["ready", "suspect", "lost"]
    assert view.apps[0].p50_ms is None
    assert view.apps[0].protection is None
    assert "No controller answers" in shown(status.render(view), 80)


def test_both_views_have_the_same_keys() -> None:
    seen_by_gateway = msgspec.to_builtins(from_gateway(GATEWAY, "a"))
    seen_by_controller = msgspec.to_builtins(controller_view())
    assert seen_by_gateway.keys() == seen_by_controller.keys()
    assert seen_by_gateway["apps"][0].keys() == seen_by_controller["apps"][0].keys()


@pytest.mark.parametrize(
    "document", [{}, {"revision": 1, "apps": 3, "nodes": []}, {"apps": [{}], "revision": 1}]
)
def test_anything_else_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="something else than a status"):
        from_gateway(document, "http://127.0.0.1:1")
    with pytest.raises(ProtocolError, match="something else than a status"):
        from_controller(document, "http://127.0.0.1:1")


def planned(nodes: int) -> plan.PlanView:
    hows = {"node:n1": "warm", "site:east": "cold"}
    others = [f"node:n{n}" for n in range(3, nodes + 1)]
    return plan.PlanView(
        revision=4,
        reason="n3 joined",
        placements=(
            Placement("digits", 1, "cnn", "n1", Role.PRIMARY),
            Placement("digits", 1, "tree", "n2", Role.STANDBY),
            Placement("wine", 1, "forest", "n2", Role.PRIMARY),
        ),
        outcomes=(
            *(Outcome(failure, "digits", how, "tree", "n2", 0.9, 12.4) for failure, how in hows.items()),
            Outcome("node:n2", "wine", "none", None, None, 0.0, 0.0),
            *(Outcome(failure, "news", "cold", "bert", "n1", 0.9, 30.0) for failure in others),
        ),
        unplaced={"huge": "no room for its smallest variant"},
        warnings=("losing n2 leaves wine without an answer",),
        gap=0.0005,
        solve_ms=41.0,
        memory_overhead=0.137,
        method="heuristic",
        moved=1,
        held=(
            Held("n1", "gpu0", "eu/room-2", 512.0, 130.0, 60.0, "node:n2"),
            Held("n2", "", "eu/room-3", 512.0, 90.0),
        ),
    )


def test_the_plan_shows_each_loss() -> None:
    text = shown(plan.render(planned(3)), 80)
    assert "protection takes 14% of the primaries' memory on top" in text
    assert " ".join(line_of(text, "digits").split()) == "digits cnn n1 tree n2 warm cold - - 12"
    assert "heuristic in 41 ms, at most 0.05% from the optimum; 1 replica started anew" in text
    assert " ".join(line_of(text, "n1 gpu0").split()) == "n1 gpu0 eu/room-2 512 130 60 n2"
    assert " ".join(line_of(text, "n2").split()) == "n2 eu/room-3 512 90 0 -"
    assert "LOST" in line_of(text, "wine")
    assert "! losing n2 leaves wine without an answer" in text
    assert "LOST" in line_of(text, "huge"), "it answers in no loss, since it never does"
    assert "Every app answers" not in text


def test_many_losses_are_counted() -> None:
    text = shown(plan.render(planned(40)), 80)
    assert "1 warm, 1 cold" in line_of(text, "digits")
    assert "38 cold" in line_of(text, "news")


def test_a_plan_that_loses_nothing_says_so() -> None:
    whole = msgspec.structs.replace(planned(2), warnings=(), unplaced={})
    assert "Every app answers in all of these losses" in shown(plan.render(whole), 120)


def test_no_plan_yet() -> None:
    assert "No plan yet" in shown(plan.render(plan.PlanView(revision=0)))


def test_a_remark_is_one_line() -> None:
    several = msgspec.structs.replace(APP, reason="the model raised Fail: in Div\r\n  at line 692")
    cluster = msgspec.structs.replace(CLUSTER, apps=[several])
    assert "Fail: in Div at line 692" in shown(
        status.render(from_controller(msgspec.to_builtins(cluster), ""))
    )


def test_an_event_is_one_line() -> None:
    event = {
        "serial": 3,
        "kind": "node.suspected",
        "at_unix_ms": 1_700_000_000_123,
        "message": "no heartbeat\nfor 150 ms [not markup]",
        "app": "",
        "node": "n2",
    }
    text = events.line(event).plain
    assert ".123  node.suspected" in text
    assert text.endswith("n2            no heartbeat for 150 ms [not markup]")


def test_without_any_gateway_nothing_is_ok() -> None:
    gone = msgspec.structs.replace(CLUSTER.gateways[0], connected=False)
    with serving() as api:
        runner = CliRunner(env={"UNDERSTUDY_URL": api.url})
        for gateways in ([], [gone]):
            api.states = [
                msgspec.to_builtins(msgspec.structs.replace(CLUSTER, apps=[APP], gateways=gateways))
            ]
            assert runner.invoke(app, ["status", "--check"]).exit_code == Exit.UNMET


def test_an_app_that_fails_its_users_is_not_ok_whoever_tells_so() -> None:
    why = "201 of 201 requests failed in the last 60 s: model-failed: too old"
    failing = msgspec.structs.replace(APP, state="failing", reason=why)
    view = from_controller(msgspec.to_builtins(msgspec.structs.replace(CLUSTER, apps=[failing])), "")
    assert not view.met
    assert f"digits: {why}" in shown(status.render(view))
    told = {**GATEWAY["apps"][0], "degraded": "", "failing": why}
    view = from_gateway({**GATEWAY, "apps": [told]}, "")
    assert (view.apps[0].state, view.apps[0].reason, view.met) == ("failing", why, False)


@pytest.mark.parametrize("health", AppHealth)
def test_whatever_an_app_is_can_be_shown_and_only_ok_is_ok(health: AppHealth) -> None:
    told = msgspec.structs.replace(APP, state=health)
    view = from_controller(msgspec.to_builtins(msgspec.structs.replace(CLUSTER, apps=[told])), "")
    assert f"1 {health.value}" in shown(status.render(view))
    assert view.met == (health is AppHealth.OK)


@pytest.mark.parametrize(
    ("apps", "expected"), [([APP], Exit.OK), ([APP, FALLEN], Exit.UNMET), ([GONE], Exit.UNMET), ([], Exit.OK)]
)
def test_check_tells_by_its_exit_status(apps: list[AppStatus], expected: Exit) -> None:
    with serving() as api:
        api.states = [msgspec.to_builtins(msgspec.structs.replace(CLUSTER, apps=apps))]
        runner = CliRunner(env={"UNDERSTUDY_URL": api.url})
        assert runner.invoke(app, ["status", "--check"]).exit_code == expected
        assert runner.invoke(app, ["status", "--json"]).exit_code == Exit.OK
