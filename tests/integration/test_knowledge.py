"""Stores that are lost, damaged or older than what is served; manifests and roles that are wrong; reboots.

What is served goes on, and whoever knows less than others asks them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from understudy.adapters.ports import free_ports
from understudy.cli.app import app as command
from understudy.cli.deploy import deploy
from understudy.cli.exits import Exit
from understudy.local.supervisor import Cluster
from understudy.wire.errors import UnderstudyError

DEADLINE_S = 30.0
MANIFEST = """name = "{name}"
deadline_ms = 5000
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 1]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 1]
[[variants]]
name = "only"
runtime = "python"
artifact = "model"
accuracy = 0.9
"""
MODEL = """class Model:
    def load(self, path):
        pass
    def predict(self, inputs):
        return {{"y": inputs["x"] * {factor}}}  # {name}
"""


def write_app(folder: Path, name: str, factor: int) -> Path:
    """An app that multiplies; the path of its manifest."""
    (folder / name / "model").mkdir(parents=True, exist_ok=True)
    (folder / name / "model" / "model.py").write_text(MODEL.format(factor=factor, name=name))
    manifest = folder / name / "APP.toml"
    manifest.write_text(MANIFEST.format(name=name))
    return manifest


def write_cluster(folder: Path, apps: tuple[str, ...] = (), gateways: int = 1) -> Path:
    control, *ports = free_ports(1 + gateways)
    for app in apps:
        write_app(folder / "apps", app, 2)
    manifests = ", ".join(f'"apps/{app}/APP.toml"' for app in apps)
    text = f'name = "known"\ndata_dir = "data"\napps = [{manifests}]\n'
    text += f'[[controllers]]\nname = "c1"\nhttp = "127.0.0.1:{control}"\n'
    for number, port in enumerate(ports, 1):
        text += f'[[gateways]]\nname = "g{number}"\nhttp = "127.0.0.1:{port}"\n'
    for name in ("n1", "n2"):
        text += f'[[nodes]]\nname = "{name}"\nmemory_mb = 1000\n'
    text += "[controller]\nstart_grace_ms = 2000\nartifacts_check_s = 0.5\n"
    path = folder / "CLUSTER.toml"
    path.write_text(text)
    return path


class Known:
    """A cluster whose parts are started and ended one by one."""

    def __init__(self, file: Path) -> None:
        self.cluster = Cluster(file)
        self.folder = file.parent
        self.store = self.folder / "data" / "controller" / "c1" / "store.sqlite"
        self.gateway = self.cluster.config.gateways[0].http

    def ask(self, app: str) -> tuple[int, Any]:
        """(status, (version, answer to 1.0))."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
        status, body, _ = self.request("POST", f"/v2/models/{app}/infer", {"inputs": [tensor]})
        if status != 200:
            return status, body
        return status, (int(body["model_version"]), body["outputs"][0]["data"][0])

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any, dict[str, str]]:
        import http.client

        connection = http.client.HTTPConnection(self.gateway, timeout=5)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            text = answer.read()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, json.loads(text) if text else None, headers
        finally:
            connection.close()

    def answers(self, app: str) -> Any:
        try:
            status, answer = self.ask(app)
        except OSError:
            return None
        return answer if status == 200 else None

    def deploy(self, manifest: Path) -> None:
        (done,) = deploy(self.cluster.control, manifest)
        assert done.state == "ready", done

    def restart_controller(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Kill it, and start another one; return when that knows what there is to know."""
        self.cluster.kill_controller("c1")
        eventually(lambda: not self.cluster.roles["controller", "c1"].pid, "the controller's end")
        meanwhile()
        self.cluster.start_controller("c1")
        eventually(self.informed, "the controller knows")

    def informed(self) -> bool:
        status = self.status()
        return status is not None and not any(w.startswith("just started") for w in status["warnings"])

    def status(self) -> Any:
        try:
            return self.cluster.control.get("/v1/status")
        except UnderstudyError:
            return None

    def versions(self) -> dict[str, int]:
        status = self.status()
        return {app["name"]: app["version"] for app in status["apps"]} if status else {}

    def events(self) -> list[str]:
        answer = self.cluster.control.get("/v1/events?limit=1000")
        return [event["kind"] for event in answer["events"] + answer["unwritten"]]

    def empty_store(self) -> None:
        for path in self.store.parent.glob("store.sqlite*"):
            path.unlink()


def eventually(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S} s"
        time.sleep(0.02)


def command_line(*args: str) -> Any:
    return CliRunner().invoke(command, args)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    """Two nodes and a gateway, and apps `a` and `b`, served."""
    folder = tmp_path_factory.mktemp("known")
    known = Known(write_cluster(folder))
    known.cluster.start_gateway("g1")
    try:
        yield known
    finally:
        asyncio.run(known.cluster.stop())


# In order: each test goes on where the one before it ended.


def test_a_gateway_without_a_table_says_that_it_does_not_know(known: Known) -> None:
    def refused() -> bool:
        with contextlib.suppress(OSError):
            return known.request("GET", "/v2/health/live")[0] == 200
        return False

    eventually(refused, "the gateway")
    for path in ("/v2/models/a/infer", "/v2/models/a", "/v2/models/a/ready", "/v2/models/b/stats"):
        status, body, headers = known.request("POST" if path.endswith("infer") else "GET", path, {})
        assert (status, "retry-after" in headers) == (503, True), (path, body)
        assert "no route table" in body["error"]
    assert known.request("GET", "/v2/health/ready")[0] == 503
    shown = command_line("status", "--cluster", str(known.cluster.config_path), "--check")
    assert "no route table" in shown.stdout
    assert shown.exit_code == Exit.UNMET


def test_a_cluster_without_apps_says_so(known: Known) -> None:
    known.cluster.start()
    eventually(lambda: known.request("GET", "/v2/health/ready")[0] == 200, "an empty table")
    assert known.ask("a")[0] == 404


def test_an_emptied_store_takes_nothing_away(known: Known) -> None:
    apps = known.folder / "apps"
    for name in ("a", "b", "gone"):
        known.deploy(write_app(apps, name, 2))
    known.deploy(write_app(apps, "b", 3))
    known.cluster.control.call("DELETE", "/v1/apps/gone")
    eventually(lambda: known.ask("gone")[0] == 404, "the removal")
    known.restart_controller(known.empty_store)
    assert known.versions() == {"a": 1, "b": 2}
    assert "app.taken_over" in known.events()
    assert any("the store had lost" in warning for warning in known.status()["warnings"])
    known.deploy(write_app(apps, "c", 5))
    assert [known.ask(app) for app in ("a", "b", "c")] == [(200, (1, 2.0)), (200, (2, 3.0)), (200, (1, 5.0))]
    known.deploy(write_app(apps, "gone", 4))
    assert known.ask("gone") == (200, (2, 4.0)), "a number was handed out twice"


def test_a_restored_older_store_learns_what_came_after_it(known: Known) -> None:
    backup = known.folder / "backup.sqlite"
    with sqlite3.connect(known.store) as source, sqlite3.connect(backup) as copy:
        source.backup(copy)
    apps = known.folder / "apps"
    known.deploy(write_app(apps, "a", 7))
    known.cluster.control.call("DELETE", "/v1/apps/gone")
    eventually(lambda: known.ask("gone")[0] == 404, "the removal")

    def restore() -> None:
        known.empty_store()
        shutil.copy(backup, known.store)

    known.restart_controller(restore)
    assert known.versions() == {"a": 2, "b": 2, "c": 1}
    known.deploy(write_app(apps, "a", 8))
    assert known.ask("a") == (200, (3, 8.0))
    assert known.ask("gone")[0] == 404


def test_lost_artifacts_are_copied_back_from_nodes(known: Known) -> None:
    folder = Path(known.cluster.config.artifacts_dir)

    def files() -> list[Path]:
        return [path for path in folder.glob("*/*") if not path.name.startswith(".")]

    before = {path.name for path in files()}

    def lose() -> None:
        known.empty_store()
        shutil.rmtree(folder)

    known.restart_controller(lose)
    eventually(lambda: "artifact.recovered" in known.events(), "the artifacts")
    eventually(lambda: len(files()) >= 3, "all that is served")
    for path in files():
        assert path.name in before
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def damages() -> dict[str, Callable[[Path], None]]:
    def garbage(path: Path) -> None:
        path.write_bytes(random.Random(1).randbytes(path.stat().st_size))

    def truncated(path: Path) -> None:
        os.truncate(path, path.stat().st_size // 2)

    def overwritten(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(random.Random(2).randbytes(8192))

    def a_directory(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def of_tomorrow(path: Path) -> None:
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 99")

    return {f.__name__: f for f in (garbage, truncated, overwritten, a_directory, of_tomorrow)}


@pytest.mark.parametrize("damage", damages().values(), ids=damages().keys())
def test_a_damaged_store_is_named_and_everything_is_served_on(
    known: Known, damage: Callable[[Path], None]
) -> None:
    before = known.versions()
    assert before

    def strike() -> None:
        with sqlite3.connect(known.store) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        for path in known.store.parent.glob("store.sqlite-*"):
            path.unlink()
        damage(known.store)

    known.restart_controller(strike)
    assert known.versions() == before
    eventually(lambda: not known.status()["store"]["ok"], "the damage is told")
    assert any("store.sqlite" in warning for warning in known.status()["warnings"])
    assert known.ask("a")[0] == 200
    # What an operator does: it is moved away, and the controller needs no restart.
    known.store.rename(known.folder / f"{damage.__name__}.damaged")
    for path in known.store.parent.glob("store.sqlite-*"):
        path.unlink()
    eventually(lambda: known.status()["store"]["ok"], "a new store")
    known.restart_controller()
    assert known.versions() == before
    assert not any("had lost" in warning for warning in known.status()["warnings"])


def test_damaged_files_of_gateways_and_agents_end_nobody(known: Known) -> None:
    """With the controller there, they are told anew."""
    chance = random.Random(3)
    for role, name, file in (("gateway", "g1", "routes.bin"), ("agent", "n1", "state")):
        path = known.folder / "data" / role / name / file
        eventually(path.exists, f"the file of {name}")
        content = bytearray(path.read_bytes())
        begin = chance.randrange(len(content))
        content[begin : begin + 40] = chance.randbytes(40)
        known.cluster.roles[role, name].send(signal.SIGKILL)
        eventually(lambda of=(role, name): not known.cluster.roles[of].pid, f"the end of {name}")
        path.write_bytes(content)
        known.cluster.roles[role, name].start()
        eventually(lambda: all(known.answers(app) for app in ("a", "b", "c")), f"service after {name}")


# `understudy up`


class Up:
    """`understudy up` in a process of its own."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known = Known(file)
        self.errors = file.parent / "up.err"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "understudy", "up", str(self.file)]
        with self.errors.open("wb") as errors, (self.file.parent / "up.out").open("wb") as out:
            self._process = subprocess.Popen(argv, stdout=out, stderr=errors)
        eventually(lambda: b"Ctrl-C" in (self.file.parent / "up.out").read_bytes() or self._ended(), "up")
        assert not self._ended(), self.told

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    @property
    def told(self) -> str:
        return self.errors.read_text() + (self.file.parent / "up.out").read_text()

    def stop(self) -> int:
        """Its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(DEADLINE_S)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Of a cluster file that names apps `calc`, `other` and `third`; they run."""
    up = Up(write_cluster(tmp_path_factory.mktemp("up"), ("calc", "other", "third"), gateways=2))
    up.start()
    try:
        yield up
    finally:
        with contextlib.suppress(Exception):
            up.stop()


def test_a_reboot_changes_no_version(up: Up, tmp_path: Path) -> None:
    """What CI deployed later stays, what was removed stays removed, what was edited is deployed."""
    known = up.known
    assert [known.answers(app) for app in ("calc", "other", "third")] == [(1, 2.0)] * 3
    known.deploy(write_app(tmp_path, "calc", 3))
    known.cluster.control.call("DELETE", "/v1/apps/other")
    write_app(up.file.parent / "apps", "third", 9)
    assert up.stop() == 0
    up.start()
    assert known.answers("calc") == (2, 3.0)
    assert "calc: left as it is: version 2, deployed since" in up.told
    assert known.ask("other")[0] == 404
    assert "other: left as it is: removed" in up.told
    eventually(lambda: known.answers("third") == (2, 9.0), "what was edited")
    write_app(up.file.parent / "apps", "calc", 4)
    assert up.stop() == 0
    up.start()
    eventually(lambda: known.answers("calc") == (3, 4.0), "what was edited after the other one")


def test_one_bad_part_does_not_stop_the_good_ones(up: Up) -> None:
    """A typo, a file that is gone, a port that is taken, a damaged store: each is named, the rest runs."""
    known, apps = up.known, up.file.parent / "apps"
    assert up.stop() == 0
    calc = apps / "calc" / "APP.toml"
    calc.write_text(calc.read_text().replace("deadline_ms", "deadlin_ms"))
    shutil.rmtree(apps / "third" / "model")
    known.store.write_bytes(b"this is no database" * 1000)
    for path in known.store.parent.glob("store.sqlite-*"):
        path.unlink()
    host, _, port = known.cluster.config.gateways[1].http.rpartition(":")
    with socket.create_server((host, int(port))):
        up.start()
        assert known.answers("calc") == (3, 4.0)
        assert known.answers("third") == (2, 9.0)
        parts = ("deadlin_ms", "does not exist", "gateway g2 can't start", "store.sqlite")
        for part in parts:
            eventually(lambda part=part: part in up.told, f"{part} in what up says")
            eventually(lambda part=part: part in str(known.status()["warnings"]), f"{part} in the status")
    eventually(lambda: "g2" in {g["name"] for g in known.status()["gateways"]}, "the port is free again")
    assert up.stop() == Exit.FAILED
