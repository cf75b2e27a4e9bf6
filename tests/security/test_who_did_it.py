"""Every action on the control API, and every refusal, leaves a record: who, from where, what, and its end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from attacked import Attacked, ask


def records(attacked: Attacked) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "understudy", "audit", "log", "--limit", "1000", "--json"]
    command += ["--url", f"http://127.0.0.1:{attacked.control}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def until_refusals_are_recorded(attacked: Attacked) -> None:
    """Others may have used up what is written of them in a second."""
    deadline = time.monotonic() + 30
    number = 0
    while True:
        number += 1
        assert ask(attacked.control, "GET", f"/v1/number-{number}")[0] == 401
        if records(attacked)[-1]["action"] == f"GET /v1/number-{number}":
            return
        assert time.monotonic() < deadline


def test_actions_and_refusals_are_recorded_and_questions_are_not(attacked: Attacked) -> None:
    token = {"Authorization": f"Bearer {attacked.token}"}
    until_refusals_are_recorded(attacked)
    before = len(records(attacked))
    assert ask(attacked.control, "DELETE", "/v1/apps/nobody-at-all", **token)[0] == 404
    assert ask(attacked.control, "POST", "/v1/nodes/n1/undrain", **token)[0] == 200
    assert ask(attacked.control, "GET", "/v1/status", **token)[0] == 200
    assert ask(attacked.control, "POST", "/v1/nodes/n1/drain")[0] == 401
    assert ask(attacked.control, "GET", "/v1/status", Host="evil.example")[0] == 421
    assert ask(attacked.control, "DELETE", "/v1/apps/%1b%5b2Jx", **token)[0] == 404
    new = records(attacked)[before:]
    seen = [(r.get("who"), r["action"], r["status"]) for r in new]
    assert seen == [
        ("operator", "DELETE /v1/apps/nobody-at-all", 404),
        ("operator", "POST /v1/nodes/n1/undrain", 200),
        ("", "POST /v1/nodes/n1/drain", 401),
        ("", "GET /v1/status", 421),
        ("operator", "DELETE /v1/apps/\\x1b[2Jx", 404),
    ]
    assert all(str(r["origin"]).startswith("127.0.0.1:") for r in new)
    assert "token" in str(new[2]["why"])


def test_the_deployments_of_this_cluster_are_there(attacked: Attacked) -> None:
    folder = Path(attacked.harness.cluster.config.data_dir) / "controller" / "c1"
    assert (folder / "audit.log").stat().st_mode & 0o777 == 0o600
    deployed = [r for r in records(attacked) if r["action"] == "POST /v1/apps"]
    assert len(deployed) >= 2


def test_a_gateway_records_whom_it_refused(attacked: Attacked) -> None:
    path = Path(attacked.harness.cluster.config.data_dir) / "gateway" / "g1" / "audit.log"
    deadline = time.monotonic() + 30
    number = 0
    while True:
        number += 1
        assert ask(attacked.gateway, "GET", f"/understudy/number-{number}?api_key=s3cret-key")[0] == 401
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        mine = [r for r in found if r["action"] == f"GET /understudy/number-{number}"]
        if mine:
            break
        assert time.monotonic() < deadline
    assert (mine[0]["status"], mine[0]["origin"]) == (401, "127.0.0.1")
    assert path.stat().st_mode & 0o777 == 0o600
    assert "s3cret-key" not in path.read_text()
    origin = {"Origin": "https://evil.example"}
    assert ask(attacked.gateway, "GET", "/v2", **origin)[0] == 403
