"""Deploying against a control API of a few lines: what is uploaded, and how an end is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_api import Api, serving
from typer.testing import CliRunner, Result

from understudy.cli.app import app
from understudy.cli.exits import Exit

MANIFEST = """
name = "letters"
variants = [{ name = "small", runtime = "onnx", artifact = "small.onnx", accuracy = 0.8 }]
"""


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as server:
        yield server


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    (tmp_path / "small.onnx").write_bytes(b"weights")
    (tmp_path / "APP.toml").write_text(MANIFEST)
    return tmp_path / "APP.toml"


def run(api: Api, *args: str) -> Result:
    return CliRunner().invoke(app, args, env={"UNDERSTUDY_URL": api.url})


def test_what_is_missing_is_uploaded_once(api: Api, manifest: Path) -> None:
    first = run(api, "deploy", str(manifest))
    assert first.exit_code == Exit.OK, first.stderr
    assert first.stdout == "letters version 1 is ready\n"
    assert list(api.artifacts.values()) == [b"weights"]
    variant = api.deployed[0]["variants"][0]
    assert variant["artifact"]["digest"] in api.artifacts
    run(api, "deploy", str(manifest))
    assert (api.uploads, len(api.deployed)) == (1, 2)


def test_progress_is_told_on_standard_error(api: Api, manifest: Path) -> None:
    api.states = [
        {"state": "profiling"},
        {"error": "away", "code": "unavailable"},
        {"state": "ready", "version": 4},
    ]
    done = run(api, "deploy", str(manifest))
    assert done.stdout == "letters version 4 is ready\n"
    assert done.stderr.splitlines() == [
        "small.onnx: uploaded",
        "letters: profiling 0/1",
        "letters: ready 0/1",
    ]


def test_a_failed_deployment_fails_the_command(api: Api, manifest: Path) -> None:
    api.states = [{"state": "failed", "message": "variant 'small': no such operator"}]
    done = run(api, "deploy", str(manifest), "--json")
    assert done.exit_code == Exit.FAILED
    (deployment,) = json.loads(done.stdout)["deployments"]
    assert (deployment["app"], deployment["state"]) == ("letters", "failed")
    assert deployment["message"] == "variant 'small': no such operator"


def test_waiting_has_an_end(api: Api, manifest: Path) -> None:
    api.states = [{"state": "placing", "message": "waiting for its primary"}]
    done = run(api, "deploy", str(manifest), "--timeout", "0.2", "--json")
    assert done.exit_code == Exit.TIMEOUT
    assert done.stdout == ""
    told = json.loads(done.stderr)
    assert told["code"] == "timeout"
    assert "letters (placing 0/1: waiting for its primary)" in told["error"]


def test_nobody_waits_with_no_wait(api: Api, manifest: Path) -> None:
    api.states = [{"state": "placing"}]
    done = run(api, "deploy", str(manifest), "--no-wait")
    assert done.exit_code == Exit.OK
    assert done.stdout == "letters accepted as deployment d1-1\n"


def test_nothing_is_sent_when_one_manifest_is_wrong(api: Api, manifest: Path) -> None:
    (manifest.parent / "other.toml").write_text(MANIFEST.replace("small.onnx", "lost.onnx"))
    done = run(api, "deploy", str(manifest.parent))
    assert done.exit_code == Exit.USAGE
    assert "other.toml: variants[0].artifact" in done.stderr
    assert " hint: the path is relative to the manifest" in done.stderr
    assert (api.uploads, api.deployed) == (0, [])


def test_an_app_is_sent_after_those_that_stand_in_for_it(api: Api, manifest: Path) -> None:
    (manifest.parent / "a.toml").write_text(
        MANIFEST.replace("letters", "able") + 'fallback = ["app:letters"]'
    )
    (manifest.parent / "b.toml").write_text(MANIFEST.replace("letters", "baker") + 'fallback = ["app:able"]')
    done = run(api, "deploy", str(manifest.parent))
    assert done.exit_code == Exit.OK, done.stderr
    assert [deployed["name"] for deployed in api.deployed] == ["letters", "able", "baker"]


def test_warnings_are_told_and_a_traceback_where_it_is_wanted(api: Api, manifest: Path) -> None:
    api.states = [{"state": "ready", "version": 1, "warnings": ["variant 'small' is never placed"]}]
    assert "letters: warning: variant 'small' is never placed" in run(api, "deploy", str(manifest)).stderr
    trace = 'Traceback (most recent call last):\n  File "model.py", line 9'
    api.states = [{"state": "failed", "message": "KeyError", "traceback": trace}]
    brief = run(api, "deploy", str(manifest))
    assert trace not in brief.stderr
    assert "--verbose shows the traceback" in brief.stderr
    assert trace in run(api, "deploy", str(manifest), "--verbose").stderr
    assert (
        json.loads(run(api, "deploy", str(manifest), "--json").stdout)["deployments"][0]["traceback"] == trace
    )


def test_a_controller_with_too_much_to_do_is_waited_for(api: Api, manifest: Path) -> None:
    api.refusals = [(503, {"error": "too many deployments", "code": "busy"})] * 3
    done = run(api, "deploy", str(manifest))
    assert done.exit_code == Exit.OK, done.stderr
    assert len(api.deployed) == 4


def test_of_several_one_that_is_refused_keeps_none_back(api: Api, manifest: Path) -> None:
    (manifest.parent / "more.toml").write_text(MANIFEST.replace('"letters"', '"more"'))
    api.refusals = [(400, {"error": "static: no such output", "code": "invalid-argument"})]
    done = run(api, "deploy", str(manifest.parent))
    assert done.exit_code == Exit.FAILED
    assert "letters failed: static: no such output" in done.stdout
    assert done.stdout.count("is ready") == 1
    (manifest.parent / "twice.toml").write_text(MANIFEST)
    assert "name: 'letters' is that of" in run(api, "deploy", str(manifest.parent)).stderr


def test_a_deployment_that_is_forgotten_has_an_end_too(api: Api, manifest: Path) -> None:
    api.states = [{"error": "no deployment 'd1-1'", "code": "not-found"}]
    done = run(api, "deploy", str(manifest))
    assert done.exit_code == Exit.FAILED
    assert "the controller no longer knows how it ended" in done.stdout


def test_who_interrupts_a_deployment_is_told_that_it_goes_on(
    api: Api, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    api.states = [{"state": "profiling"}]
    monkeypatch.setattr("understudy.cli.deploy.time.sleep", interrupt)
    done = run(api, "deploy", str(manifest))
    assert done.exit_code == 130
    assert "letters accepted as deployment d1-1, which goes on by itself" in done.stderr
    assert "`understudy events --app letters`" in done.stderr
