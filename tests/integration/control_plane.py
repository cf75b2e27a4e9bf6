"""One real controller, with the test as its agents and its gateway."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from understudy.adapters.links import FrameLink, dial
from understudy.adapters.operator_tokens import known_token
from understudy.adapters.ports import free_ports
from understudy.config import load_cluster
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import UnderstudyError
from understudy.wire.frames import Frame
from understudy.wire.messages import (
    Heartbeat,
    Hello,
    Measure,
    Measured,
    NodeState,
    ReplicaState,
    Target,
    decode_message,
)
from understudy.wire.records import BatchingVerdict, Profile, RouteTable, TensorSpec

DEADLINE_S = 15.0
HTTP_TIMEOUT_S = 5.0
START = """
import sys
from pathlib import Path
from understudy.config import load_cluster
from understudy.controller.process import run_controller
run_controller(load_cluster(Path(sys.argv[1])), "c1")
"""
CLUSTER = """
data_dir = "data"
run_dir = "run"
{nodes}
[[controllers]]
name = "c1"
http = "127.0.0.1:{port}"
[controller]
stability_window_s = 1.0
release_after_s = 0.2
start_grace_ms = 1500
placing_timeout_s = 20
"""
X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 2))


class RealController:
    """The process, and its HTTP API. Calls block: the controller never waits for what the test plays."""

    def __init__(self, folder: Path, nodes: tuple[str, ...], settings: str = "") -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        tables = "\n".join(f'[[nodes]]\nname = "{name}"\nmemory_mb = 1000' for name in nodes)
        (folder / "cluster.toml").write_text(CLUSTER.format(nodes=tables, port=self.port) + settings)
        self.config: ClusterConfig = load_cluster(folder / "cluster.toml")
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "error", "-c", START, str(self.folder / "cluster.toml")]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, stderr=log)

    async def start(self) -> None:
        self._process = process = self.spawn()
        await until(lambda: process.poll() is not None or self._answers(), "the controller answers")
        assert process.poll() is None, self.log

    def kill(self) -> None:
        """With SIGKILL. No error when it is dead already."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """Its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(DEADLINE_S)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid if self._process.poll() is None else 0

    @property
    def address(self) -> str:
        return self.config.controller_addresses()[0]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/v1/health")[0] == 200
        except OSError:
            return False

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=HTTP_TIMEOUT_S)
        try:
            content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            token = known_token(f"http://127.0.0.1:{self.port}", Path(self.config.data_dir))
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            if path.startswith("/v1/artifacts/"):
                headers["Content-Type"] = "application/octet-stream"
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, document = self.ask("GET", path)
        assert status == 200, document
        return document

    def status_of(self, app: str) -> dict[str, Any]:
        found: dict[str, Any] = next(a for a in self.get("/v1/status")["apps"] if a["name"] == app)
        return found

    def events(self) -> list[str]:
        return [event["kind"] for event in self.get("/v1/events")["events"]]

    def upload(self, content: bytes) -> dict[str, Any]:
        """A reference to the artifact, as in a manifest."""
        digest = hashlib.sha256(content).hexdigest()
        status, answer = self.ask("PUT", f"/v1/artifacts/{digest}", content)
        assert status == 201, answer
        return {"digest": digest, "size_bytes": len(content), "file_name": "model.onnx"}

    def manifest(self, **fields: Any) -> dict[str, Any]:
        full, small = self.upload(b"full" * 100), self.upload(b"small")
        variants = [
            {"name": "small", "runtime": "onnx", "artifact": small, "accuracy": 0.8},
            {"name": "full", "runtime": "onnx", "artifact": full, "accuracy": 0.9},
        ]
        return {"name": "digits", "variants": variants, **fields}

    async def deploy(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """The deployment at its end."""
        status, answer = self.ask("POST", "/v1/apps", manifest)
        assert status == 202, answer
        return await self.finished(answer["deployment"])

    async def finished(self, deployment: str) -> dict[str, Any]:
        path = f"/v1/deployments/{deployment}"
        await until(lambda: self.get(path)["state"] in ("ready", "failed"), f"{deployment} ends")
        answer: dict[str, Any] = self.get(path)
        return answer


class PlayedAgent:
    """Speaks for a node: heartbeats, does what its targets say, measures what it is asked to."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.target = Target(0)
        self.measured: list[str] = []
        self.measures: Callable[[Measure], Measured | None] = measure  # None: no answer, ever
        self._address = address
        self._replicas: list[ReplicaState] = []
        self._serial = 0

    async def run(self) -> None:
        """Connected until cancelled, again and again."""
        while True:
            with contextlib.suppress(UnderstudyError):
                link = await dial(self._address, lambda: FrameLink(self._on_frame))
                link.send(Hello("agent", self.name, memory_mb=1000, revision=self.target.revision))
                self._report(link)
                while not link.closed:
                    link.send(Heartbeat(self.name, 1, self._serial, 50.0))
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.02)

    def _report(self, link: FrameLink) -> None:
        self._serial += 1
        link.send(NodeState(self.name, 1, self._serial, self.target.revision, tuple(self._replicas)))

    def _on_frame(self, link: FrameLink, frame: Frame) -> None:
        message = decode_message(frame)
        if isinstance(message, Target):
            assert message.revision >= self.target.revision
            self.target = message
            self._replicas = [
                ReplicaState(f"{self.name}-{i}", r.app, r.version, r.variant, r.role, "ready", pid=i)
                for i, r in enumerate(message.replicas)
            ]
            self._report(link)
        elif isinstance(message, Measure):
            self.measured.append(message.variant)
            try:
                measured = self.measures(message)
            except UnderstudyError as error:
                link.fail(frame.stream, error)
            else:
                if measured is not None:
                    link.send(measured, frame.stream)


def measure(asked: Measure) -> Measured:
    memory_mb = 60.0 if asked.variant == "full" else 10.0
    verdict = BatchingVerdict(True, "graph", "its graph works row by row")
    return Measured(Profile(40.0, memory_mb, 20.0, 1.0, "test"), (X,), (Y,), verdict=verdict)


class PlayedGateway:
    def __init__(self, address: str) -> None:
        self.tables: list[RouteTable] = []
        self._address = address
        self.link: FrameLink | None = None

    async def connect(self) -> None:
        self.link = await dial(self._address, lambda: FrameLink(self._on_frame))
        self.link.send(Hello("gateway", "g1", revision=self.tables[-1].revision if self.tables else 0))

    def _on_frame(self, link: FrameLink, frame: Frame) -> None:
        message = decode_message(frame)
        if isinstance(message, RouteTable):
            self.tables.append(message)


async def until(holds: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if holds():
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {DEADLINE_S:g} s: {what}")


@contextlib.asynccontextmanager
async def control_plane(
    *names: str, folder: Path | None = None, settings: str = ""
) -> AsyncIterator[tuple[RealController, dict[str, PlayedAgent]]]:
    """A controller and agents of these names; `settings` are of its table.

    When the test fails, the controller's log is in the report.
    """
    with _short_folder(folder) as place:
        controller = RealController(place, names, settings)
        agents = {name: PlayedAgent(name, controller.address) for name in names}
        try:
            await controller.start()
            async with asyncio.TaskGroup() as tasks:
                playing = [tasks.create_task(agent.run()) for agent in agents.values()]
                yield controller, agents
                for task in playing:
                    task.cancel()
        except BaseException:
            sys.stderr.write(controller.log)
            raise
        finally:
            controller.kill()


@contextlib.contextmanager
def _short_folder(given: Path | None) -> Iterator[Path]:
    """Sockets live below it, and their paths are limited."""
    if given is not None:
        yield given
        return
    path = Path(tempfile.mkdtemp(prefix="us-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine as a test."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run
