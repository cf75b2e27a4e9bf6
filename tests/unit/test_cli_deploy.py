"""Deploying against a control API of a few lines: what is uploaded, and how an end is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from understudy.cli.app import app
from understudy.cli.exits import Exit

MANIFEST = """
name = "letters"
variants = [{ name = "small", runtime = "onnx", artifact = "small.onnx", accuracy = 0.8 }]
"""


class Api(ThreadingHTTPServer):
    """Walks a deployment through `states`; the last one stays."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.states: list[dict[str, Any]] = [{"state": "ready", "version": 1}]
        self.artifacts: dict[str, bytes] = {}
        self.uploads = 0
        self.deployed: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_HEAD(self) -> None:
        known = self.path.rpartition("/")[2] in self.server.artifacts
        self.send_response(200 if known else 404)
        self.end_headers()

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.artifacts[self.path.rpartition("/")[2]] = body
        self.server.uploads += 1
        self.reply(201, {})

    def do_POST(self) -> None:
        self.server.deployed.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.reply(202, {"deployment": "d1-1"})

    def do_GET(self) -> None:
        states = self.server.states
        state = states.pop(0) if len(states) > 1 else states[0]
        if "error" in state:
            self.reply(503, state)
        else:
            self.reply(200, {"deployment": "d1-1", "app": "letters", "total": 1} | state)

    def reply(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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
