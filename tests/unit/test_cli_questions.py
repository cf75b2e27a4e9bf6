"""Questions to the plan on the command line: what is asked, what is shown, with which exit status."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from control_api import Api, serving
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from understudy.cli import audit, questions
from understudy.cli.app import app
from understudy.cli.exits import Exit
from understudy.core.questions.records import (
    Answered,
    AnyLoss,
    Audit,
    Explanation,
    Figures,
    Fill,
    Finding,
    Kept,
    Loss,
    NewNode,
    NextPlan,
    PlanChange,
    Question,
    QuestionAnswered,
    Reason,
    Together,
)
from understudy.wire.errors import UnderstudyError

ASKING, AUDITING = "/v1/plan/what-if", "/v1/audit/spof"
COLD = Answered("digits", "standard", "cold", "cnn", "linear", "n2", 0.95, 0.0, 31.4, planned_for="node:n1")
GONE = Answered("wine", "standard", "none", accuracy_lost=1.0, why="n2: memory: needs 50 MB, 30 MB free")
LOSS = Loss(
    failure="node:n1",
    lost=("n1",),
    apps=(COLD, GONE),
    unaffected=3,
    fills=(Fill("n2", 512.0, 100.0, 300.4, 200.0),),
    next_plan=NextPlan(2, 3, 1, ("wine",), 0, 4),
)
ANY_LOSS = AnyLoss(
    "any-2",
    3,
    6,
    (msgspec.structs.replace(GONE, lost=("n1", "n2")),),
    4,
    (Together(("n1", "n2"), ("wine",), 0),),
)
BEFORE = Figures(2, 5, 1, 9.5, 0.95, 5, 4, (Kept("node", 3, 1, 0),), 0.12)
AFTER = Figures(3, 5, 1, 9.9, 0.99, 5, 5, (Kept("node", 5, 1, 1), Kept("site/1", 5, 1, 1)), 0.2)
CHANGE = PlanChange(("new-1",), (), BEFORE, AFTER, 1, ("wine/small on new-1",), ("app 'wine' is alone",), ())
WHY = Explanation("digits", 3, (Reason("place", ("It runs as 'cnn'.",)), Reason("warm", ("It is warm.",))))
FOUND = Audit(
    7,
    (
        Finding("gateway", "g1", "it is the only one", "run a second one", True),
        Finding("controller", "c1", "it is the only one", "start it again", False),
    ),
    {"app": 1, "node": 3, "artifact store": 1},
)


def shown(renderable: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return " ".join(line.split())


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as api:
        yield api


def document(answer: QuestionAnswered | Audit) -> Any:
    return msgspec.json.decode(msgspec.json.encode(answer))


def run(api: Api, *args: str) -> Any:
    return CliRunner(env={"UNDERSTUDY_URL": api.url}).invoke(app, list(args))


def test_a_loss_is_shown_with_who_answers_and_how_full_nodes_get() -> None:
    text = shown(questions.render(QuestionAnswered(7, ("n3",), loss=LOSS)))
    assert "Away already: n3." in text
    assert "If node:n1 is lost now (plan revision 7), 2 of 5 apps notice: 1 cold, 1 LOST." in text
    assert line_of(text, "digits") == "digits cnn n2 (first linear) cold 0.950 0.0% 31"
    assert line_of(text, "wine  ") == "wine nobody LOST - - -"
    assert "! wine: n2: memory: needs 50 MB, 30 MB free" in text
    assert line_of(text, "n2") == "n2 512 100 300 200"
    assert (
        "The next plan would start 2 replicas: 3 apps at full size, 1 smaller, without a place: wine." in text
    )


def test_a_loss_of_everything() -> None:
    last = msgspec.structs.replace(LOSS, failure="site:a+site:b", next_plan=None, fills=())
    text = shown(questions.render(QuestionAnswered(7, loss=last)))
    assert "If site:a and site:b are lost now" in text
    assert "No node would be left to plan for." in text


def test_of_any_two_the_worst_and_the_pairs_are_shown() -> None:
    text = shown(questions.render(QuestionAnswered(7, any_loss=ANY_LOSS)))
    assert "3 of 6 such losses were played" in text
    assert "Played were those of the nodes that hold most replicas." in text
    assert line_of(text, "wine") == "wine nobody n1 + n2 LOST - - -"
    assert line_of(text, "n1 + n2") == "n1 + n2 wine 1 0"


def test_a_change_is_shown_side_by_side() -> None:
    text = shown(questions.render(QuestionAnswered(7, change=CHANGE)))
    assert "What would change with new-1" in text
    assert line_of(text, "weighted accuracy retained").endswith("95.00% 99.00%")
    assert line_of(text, "apps that answer when any node is lost").endswith("lost 3 of 5 5 of 5")
    assert line_of(text, "critical apps warm when any node is lost").endswith("0 of 1 1 of 1")
    assert line_of(text, "apps that answer when any site of level 2").endswith("lost - 5 of 5")
    assert "Replicas that start: 1 (wine/small on new-1)." in text
    assert "No longer so:\n! app 'wine' is alone" in text


def test_an_explanation_is_sentences() -> None:
    text = shown(questions.render(QuestionAnswered(7, explanation=WHY)))
    assert "digits version 3, plan revision 7" in text
    assert "Where it runs\n  It runs as 'cnn'.\n\nWhat it takes to be warm\n  It is warm." in text


@pytest.mark.parametrize(
    ("args", "asked"),
    [
        (("--fail", "n1", "--fail", "eu/room-2"), Question(fail=("n1", "eu/room-2"))),
        (("--add-node", "512"), Question(add=(NewNode(512.0),))),
        (("--add-node", "big:1.5:eu/b"), Question(add=(NewNode(1.5, "big", "eu/b"),))),
        (
            ("--add-node", "n9:64", "--add-node", "64:eu"),
            Question(add=(NewNode(64.0, "n9"), NewNode(64.0, None, "eu"))),
        ),
        (("--add-node", "8", "--remove-node", "n1"), Question(add=(NewNode(8.0),), remove=("n1",))),
        (("--explain", "digits"), Question(explain="digits")),
    ],
)
def test_options_become_a_question(api: Api, args: tuple[str, ...], asked: Question) -> None:
    api.answers[ASKING] = document(QuestionAnswered(7, explanation=WHY))
    done = run(api, "plan", *args)
    assert (done.exit_code, done.stderr) == (Exit.OK, "")
    assert msgspec.convert(api.deployed, list[Question]) == [asked]
    assert "It runs as 'cnn'." in done.stdout
    assert json.loads(run(api, "plan", *args, "--json").stdout) == api.answers[ASKING]


@pytest.mark.parametrize("node", ["", "big", "a:b:1", "1:eu:2", "-5", "0", "a b:10", "n9:64:eu//b"])
def test_what_is_no_node_is_refused_at_once(api: Api, node: str) -> None:
    done = run(api, "plan", f"--add-node={node}")
    assert done.exit_code == Exit.USAGE
    assert "hint: a node is MEMORY_MB, NAME:MEMORY_MB" in done.stderr
    assert api.deployed == []


def test_what_is_no_question_is_refused() -> None:
    with pytest.raises(UnderstudyError, match=r"Expected `str` (of length|matching)"):
        questions.question((), (), ("no node",), None)


def test_an_answer_that_is_none_is_said_to_be_none(api: Api) -> None:
    api.answers |= {ASKING: {"revision": "x"}, AUDITING: []}
    assert "the answer is not one to a question" in run(api, "plan", "--fail", "n1").stderr
    assert "the answer is not an audit" in run(api, "audit", "spof").stderr


def test_an_audit_tells_by_its_exit_status(api: Api) -> None:
    api.answers[AUDITING] = document(FOUND)
    done = run(api, "audit", "spof")
    assert done.exit_code == Exit.UNMET
    assert (
        "2 single points of failure, 1 of which clients would notice (1 app, 3 nodes, 1 artifact store"
        in done.stdout
    )
    assert "gateway g1: it is the only one.\n  remedy: run a second one.\n" in done.stdout
    machine = run(api, "audit", "spof", "--json")
    assert machine.exit_code == Exit.UNMET
    assert json.loads(machine.stdout) == api.answers[AUDITING]
    api.answers[AUDITING] = document(msgspec.structs.replace(FOUND, findings=()))
    done = run(api, "audit", "spof")
    assert (done.exit_code, done.stdout) == (
        Exit.OK,
        "No single point of failure: 1 app, 3 nodes, 1 artifact store.\n",
    )
    assert "No single point" in shown(audit.render(msgspec.structs.replace(FOUND, findings=())))
