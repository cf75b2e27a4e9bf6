"""Questions to the plan of a real cluster: what is told beforehand is what happens."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from control_plane import control_plane, on_loop
from families import ROWS, write_linear_app
from harness import Harness, running
from typer.testing import CliRunner

from understudy.cli.app import app
from understudy.cli.exits import Exit


def test_what_is_told_of_a_loss_is_what_happens(folder: Path) -> None:
    """One app is answered warm, the other cold; both as told before the node is killed."""
    write_linear_app(folder / "apps" / "vital", "vital", "critical")

    async def test() -> None:
        async with running(folder, lease_ms=20_000) as harness:
            for name in ("vital", "plain"):
                victim = (await harness.until(lambda: as_planned(harness), 30, "all is as planned"))[name]
                told = await asyncio.to_thread(harness.cli, "plan", "--fail", victim, "--json")
                (answer,) = [answer for answer in told["loss"]["apps"] if answer["app"] == name]
                assert answer["how"] == ("warm" if name == "vital" else "cold")
                harness.cluster.kill_node(victim)
                replica = await harness.replica(name, node=answer["node"], variant=answer["variant"])
                assert replica["role"] == ("standby" if name == "vital" else "contingency")
                assert (await harness.infer(name, ROWS)).variant == answer["variant"]
                harness.cluster.start_node(victim)
                await harness.node_states()

    asyncio.run(test())


async def as_planned(harness: Harness) -> dict[str, str]:
    """By app the node of its primary, once what runs is what is planned, and nothing else."""
    plan = await asyncio.to_thread(harness.cli, "plan", "--json")
    planned = {(p["app"], p["variant"], p["node"]) for p in plan["placements"]}
    running = {
        (app["name"], replica["variant"], replica["node"])
        for app in (await harness.gateway())["apps"]
        for replica in app["replicas"]
        if replica["state"] == "ready" and replica["connected"]
    }
    primaries = {p["app"]: p["node"] for p in plan["placements"] if p["role"] == "primary"}
    return primaries if running == planned else {}


def test_questions_change_nothing(folder: Path) -> None:
    async def test() -> None:
        async with running(folder) as harness:
            await harness.until(lambda: as_planned(harness), 30, "all is as planned")
            before = await asyncio.to_thread(harness.cli, "plan", "--json")
            more = await asyncio.to_thread(harness.cli, "plan", "--add-node", "n9:600:c", "--json")
            assert (more["change"]["added"], more["change"]["after"]["nodes"]) == (["n9"], 4)
            less = await asyncio.to_thread(harness.cli, "plan", "--remove-node", "n3", "--json")
            assert less["change"]["after"]["nodes"] == 2
            why = await asyncio.to_thread(harness.cli, "plan", "--explain", "plain", "--json")
            said = {reason["about"]: reason["sentences"] for reason in why["explanation"]["reasons"]}
            assert "runs as 'big', its full-size variant" in said["place"][0]
            assert any('criticality = "critical"' in sentence for sentence in said["warm"])
            pairs = await asyncio.to_thread(harness.cli, "plan", "--fail", "any-2", "--json")
            assert pairs["any_loss"]["tried"] == 3
            assert await asyncio.to_thread(harness.cli, "plan", "--json") == before
            await asyncio.to_thread(audited, harness)

    asyncio.run(test())


def audited(harness: Harness) -> None:
    """One machine, one gateway, one controller: that is what is found, and nothing else."""
    command = ["audit", "spof", "--cluster", str(harness.cluster.config_path)]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == Exit.UNMET, done.stderr
    findings = {finding["part"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings.keys() == {"node", "gateway", "controller", "store", "artifact store"}
    assert findings["node"]["name"] == "this machine"
    assert findings["gateway"]["name"] == "g1"
    assert "the store is on the same disk" in findings["artifact store"]["problem"]
    assert all(finding["remedy"] for finding in findings.values())
    unknown = CliRunner().invoke(app, ["plan", "--fail", "n4", *command[2:]])
    assert unknown.exit_code == Exit.NOT_FOUND
    assert "did you mean 'n3'?" in unknown.stderr


@on_loop
async def test_questions_are_checked_and_answered_one_at_a_time() -> None:
    async with control_plane("n1", "n2") as (controller, _):

        def ask(question: Any) -> tuple[int, Any]:
            return controller.ask("POST", "/v1/plan/what-if", question)

        assert ask({"fail": ["n1"]}) == (
            503,
            {"error": "there is no plan yet: nothing is deployed", "code": "unavailable"},
        )
        await controller.deploy(controller.manifest())
        for question, expected, message in (
            ({}, (400, "invalid-argument"), "ask one thing at a time"),
            ({"fial": ["n1"]}, (400, "invalid-argument"), "fial: unknown field; did you mean 'fail'?"),
            ({"add": [{"memory_mb": -1}]}, (400, "invalid-argument"), "add"),
            ({"fail": ["n3"]}, (404, "not-found"), "did you mean 'n2'?"),
            ({"explain": "digit"}, (404, "not-found"), "did you mean 'digits'?"),
        ):
            status, answer = ask(question)
            assert (status, answer["code"]) == expected, answer
            assert message in answer["error"]
        several = await asyncio.gather(*(asyncio.to_thread(ask, {"remove": ["n1"]}) for _ in range(8)))
        assert {status for status, _ in several} <= {200, 503}
        assert {answer["code"] for status, answer in several if status == 503} <= {"busy"}
        assert ask({"remove": ["n1"]})[0] == 200
