"""A cluster of real processes for one test, with traffic from outside and logs when something fails."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import httptools
import msgspec

from understudy.adapters.operator_tokens import known_token
from understudy.adapters.ports import free_ports
from understudy.local.supervisor import Cluster
from understudy.wire.errors import UnderstudyError

Rows = list[list[float]]
ASK_TIMEOUT_S = 10
PERIOD_S = 0.005
CALIBRATING_REQUESTS = 20
OFFERED_FRACTION = 0.5  # of one request after the other, each on a new connection


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes
    sent_at: float = 0.0
    latency_s: float = 0.0

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def variant(self) -> str:
        return self.headers.get("understudy-variant", "")

    @property
    def degraded(self) -> str:
        return self.headers.get("understudy-degraded", "")


class AnswerReader:
    """HTTP answers from a stream, one after another, however they were cut."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._ready: list[Answer] = []
        self._headers: dict[str, str] = {}
        self._body = b""

    async def next(self) -> Answer:
        """Raises `ConnectionError` if the server closes before the end of an answer."""
        while not self._ready:
            data = await self._reader.read(65536)
            if not data:
                raise ConnectionError("closed before the end of the answer")
            self._parser.feed_data(data)
        return self._ready.pop(0)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != 100:
            self._ready.append(Answer(self._parser.get_status_code(), self._headers, self._body))
        self._headers, self._body = {}, b""


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """The only answer that is due on a connection."""
    return await AnswerReader(reader).next()


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def request_bytes(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def infer_body(rows: Rows, datatype: str = "FP32") -> bytes:
    shape = [len(rows), len(rows[0])]
    data = [value for row in rows for value in row]
    tensor = {"name": "x", "datatype": datatype, "shape": shape, "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


class Traffic:
    """Open loop: a request every `period_s`, each on a connection of its own from a pool.

    `tries` above 1: a request whose connection ends before its answer is sent again, as clients do because
    a server may close an idle connection while they write to it (RFC 9112, 9.3.1).
    """

    def __init__(
        self, ports: list[int], app: str, body: bytes, period_s: float = 0.005, tries: int = 1
    ) -> None:
        self._ports = ports * tries
        self._wire = request_bytes("POST", f"/v2/models/{app}/infer", body)
        self._period_s = period_s
        self._idle: dict[int, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = defaultdict(list)
        self._stop = asyncio.Event()
        self.answers: list[Answer] = []

    async def run(self) -> None:
        start, count = time.monotonic(), 0
        try:
            async with asyncio.TaskGroup() as tasks:
                while not self._stop.is_set():
                    while time.monotonic() >= start + count * self._period_s:
                        tasks.create_task(self._one(start + count * self._period_s))
                        count += 1
                    await asyncio.sleep(self._period_s / 2)
        finally:
            for _, writer in chain.from_iterable(self._idle.values()):
                await closed(writer)

    async def _one(self, due: float) -> None:
        answer = Answer(0, {}, b"no gateway answered")
        for attempt, port in enumerate(self._ports):  # a client that knows several gateways asks the next one
            try:
                answer = await self._ask(port, fresh=attempt > 0)
                break
            except OSError:
                continue
        answer.sent_at, answer.latency_s = due, time.monotonic() - due
        self.answers.append(answer)

    async def _ask(self, port: int, *, fresh: bool) -> Answer:
        """`fresh`: on a new connection, since what ended one may end all that are idle."""
        idle = self._idle[port]
        while idle and not fresh:
            reader, writer = idle.pop()
            if not writer.is_closing() and not reader.at_eof():
                break
            writer.close()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(self._wire)
            answer = await read_answer(reader)
        except BaseException:  # the end of a failed test, too
            writer.close()
            raise
        if answer.headers.get("connection") == "close":
            writer.close()
        else:
            idle.append((reader, writer))
        return answer

    def stop(self) -> None:
        self._stop.set()

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    def since(self, moment: float) -> list[Answer]:
        return sorted((a for a in self.answers if a.sent_at >= moment), key=lambda a: a.sent_at)


async def bearable_period_s(ask: Callable[[], Awaitable[object]]) -> float:
    """Between two requests of which this machine does `OFFERED_FRACTION` of what it can at the moment."""
    began_s = time.monotonic()
    for _ in range(CALIBRATING_REQUESTS):
        await ask()
    return (time.monotonic() - began_s) / CALIBRATING_REQUESTS / OFFERED_FRACTION


class Harness:
    """What a test does to a cluster, and what it sees of it."""

    def __init__(self, cluster: Cluster, ports: list[int], folder: Path) -> None:
        self.cluster = cluster
        self.ports = ports
        self.folder = folder
        self.tls: ssl.SSLContext | None = None
        self.credentials = ""  # header lines of every request that is asked here

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: str = "", gateway: int = 0
    ) -> Answer:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            name = "localhost" if self.tls else None
            if path.startswith("/understudy/") and not self.credentials:
                control = self.cluster.control
                headers += f"Authorization: Bearer {known_token(control.urls[0], control.data_dir)}\r\n"
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.ports[gateway], ssl=self.tls, server_hostname=name
            )
            try:
                start = time.monotonic()
                writer.write(request_bytes(method, path, body, headers + self.credentials))
                answer = await read_answer(reader)
                answer.latency_s = time.monotonic() - start
                return answer
            finally:
                await closed(writer)

    async def infer(self, app: str, rows: Rows, datatype: str = "FP32", gateway: int = 0) -> Answer:
        return await self.ask("POST", f"/v2/models/{app}/infer", infer_body(rows, datatype), gateway=gateway)

    @asynccontextmanager
    async def traffic(
        self, app: str, body: bytes, period_s: float | None = None, tries: int = 1
    ) -> AsyncIterator[Traffic]:
        """Traffic while the block runs; at its end everything sent has been answered.

        By default a request every 5 ms, or as often as this machine bears just now.
        """
        if period_s is None:
            period_s = max(PERIOD_S, await bearable_period_s(lambda: self.ask("GET", "/v2/health/live")))
        traffic = Traffic(self.ports, app, body, period_s, tries)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(traffic.run())
            try:
                await self.until(lambda: len(traffic.answers) >= 20, 10, "traffic flows")
                yield traffic
            finally:
                traffic.stop()

    async def until(self, holds: Callable[[], Any], timeout_s: float, what: str) -> Any:
        """Poll until `holds()` (maybe a coroutine) is true; its value. Fails the test otherwise."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                value = holds()
                value = await value if isinstance(value, Awaitable) else value
            except (OSError, UnderstudyError):
                value = None
            if value:
                return value
            await asyncio.sleep(0.02)
        raise AssertionError(f"not within {timeout_s} s: {what}")

    async def gateway(self) -> dict[str, Any]:
        """What the first gateway says of everything."""
        content: dict[str, Any] = (await self.ask("GET", "/understudy/status")).json
        return content

    async def app(self, name: str) -> dict[str, Any]:
        """What the first gateway says of an app."""
        apps = (await self.gateway())["apps"]
        return next((app for app in apps if app["name"] == name), {"ready": False, "replicas": []})

    async def node_states(self, **states: str) -> None:
        """Wait until the controller has these nodes in these states; all of them `ready` if none is named."""
        wanted = states or {node.name: "ready" for node in self.cluster.config.nodes}

        async def reached() -> bool:
            found = {node.name: node.state for node in (await self.cluster.status()).nodes}
            return all(found.get(name) == state for name, state in wanted.items())

        await self.until(reached, 20, f"nodes {wanted}")

    async def replica(self, name: str, **facts: Any) -> dict[str, Any]:
        """A ready replica of `name` with these facts (variant, node, role)."""

        async def found() -> Any:
            for replica in (await self.app(name))["replicas"]:
                wanted = {"state": "ready", "connected": True, **facts}
                if all(replica[key] == value for key, value in wanted.items()):
                    return replica
            return None

        return await self.until(found, 15, f"a replica of {name} with {facts}")

    async def full_size(self, *names: str, timeout_s: float = 30) -> None:
        """Wait until each app is served undegraded."""
        for name in names:

            async def good(name: str = name) -> bool:
                app = await self.app(name)
                return bool(app["ready"] and not app["degraded"])

            await self.until(good, timeout_s, f"{name} is served by its full-size variant")

    async def protected(self, *names: str) -> None:
        """Wait until each app has its warm standby too."""
        for name in names:

            async def good(name: str = name) -> bool:
                replicas = (await self.app(name))["replicas"]
                return len({r["node"] for r in replicas if r["state"] == "ready" and r["connected"]}) >= 2

            await self.until(good, 30, f"{name} has a warm standby")

    async def events(self, kind: str) -> list[dict[str, Any]]:
        done = await asyncio.to_thread(self.cli, "events", "--limit", "500", "--json")
        return [event for event in done if event["kind"] == kind]

    def cli(self, *arguments: str) -> Any:
        """Run the command line against this cluster; its JSON output."""
        command = [sys.executable, "-m", "understudy", *arguments, "--cluster", str(self.cluster.config_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr or done.stdout}"
        content = json.loads(done.stdout)
        return content["events"] if isinstance(content, dict) and "events" in content else content

    def logs(self) -> str:
        parts = []
        for path in sorted(self.cluster.logs_dir.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-40:]
            parts.append("\n".join([f"--- {path.name}", *lines]))
        return "\n".join(parts)


def open_folder(path: Path) -> Path:
    """Where models that are to be told something, and tests, both read and write."""
    path.mkdir(exist_ok=True)
    path.chmod(0o777)
    return path


def write_cluster(
    folder: Path,
    gateways: int,
    nodes: dict[str, str],
    extra: str,
    lease_ms: int,
    processes: int = 1,
    of_gateway: str = "",
    grpc: bool = False,
) -> tuple[Path, list[int]]:
    control, *ports = free_ports(2 * gateways + 1)
    ports, grpc_ports = ports[:gateways], ports[gateways:]
    text = f'name = "test"\ndata_dir = "data"\n\n[[controllers]]\nname = "c1"\nhttp = "127.0.0.1:{control}"\n'
    for i, port in enumerate(ports, 1):
        text += f'\n[[gateways]]\nname = "g{i}"\nhttp = "127.0.0.1:{port}"\nprocesses = {processes}\n'
        text += f'grpc = "127.0.0.1:{grpc_ports[i - 1]}"\n' if grpc else ""
        text += f"{of_gateway}\n"
    for name, site in nodes.items():
        text += f'\n[[nodes]]\nname = "{name}"\nsite = "{site}"\nmemory_mb = 600\n'
    text += f"\n[controller]\nlease_ms = {lease_ms}\nstability_window_s = 1\nstart_grace_ms = 1500\n{extra}\n"
    text += f"\n[agent.sandbox]\nwritable = [{str(open_folder(folder / 'orders'))!r}]\n"
    path = folder / "CLUSTER.toml"
    path.write_text(text)
    return path, ports


THREE_NODES = {"n1": "a", "n2": "b", "n3": "b"}


@asynccontextmanager
async def running(
    folder: Path,
    *,
    gateways: int = 1,
    nodes: dict[str, str] = THREE_NODES,
    extra: str = "",
    lease_ms: int = 800,
    processes: int = 1,
    of_gateway: str = "",
    tls: ssl.SSLContext | None = None,
    credentials: str = "",
    grpc: bool = False,
) -> AsyncIterator[Harness]:
    """A started cluster with the apps of `folder / "apps"` deployed and fully protected."""
    path, ports = write_cluster(folder, gateways, nodes, extra, lease_ms, processes, of_gateway, grpc)
    cluster = Cluster(path)
    harness = Harness(cluster, ports, folder)
    harness.tls, harness.credentials = tls, credentials
    try:
        cluster.start()
        apps = sorted(p.parent.name for p in (folder / "apps").glob("*/APP.toml"))
        await harness.node_states()
        if apps:
            await asyncio.to_thread(harness.cli, "deploy", str(folder / "apps"), "--json")
            await harness.full_size(*apps)
        yield harness
    except BaseException:
        sys.stderr.write(harness.logs())
        raise
    finally:
        await cluster.stop()
        assert not cluster.pids(), "processes are left"
