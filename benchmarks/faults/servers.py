"""The servers that are broken, each with two replicas of the waiting model, set up as its documentation
recommends against what it can be protected from.

Docstrings say what that is. Where a document gives no figure, one is taken that suits clients who wait for
250 ms. Nobody batches, so that all have the same capacity.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.faults import accelerator
from benchmarks.faults.accelerator import NAME
from benchmarks.faults.windows import OBJECTIVE_S
from benchmarks.models import Payload
from benchmarks.processes import Contender, MissingError, ask, environment, running
from understudy.adapters.operator_tokens import known_token
from understudy.adapters.ports import free_ports
from understudy.cli.deploy import deploy
from understudy.local.supervisor import Cluster
from understudy.wire.errors import UnderstudyError

REPLICAS = 2
START_TIMEOUT_S = 60.0
ROUND = 16  # requests by which a server is looked at

CLUSTER = """
name = "faults"
data_dir = "data"

[[nodes]]
name = "n1"
site = "s1"
memory_mb = 1024

[[nodes]]
name = "n2"
site = "s2"
memory_mb = 1024

[[gateways]]
name = "g1"
http = "127.0.0.1:{http}"

[[controllers]]
name = "c1"
http = "127.0.0.1:{controller}"

# Faults come every few seconds here and should not remember each other: a crash loop, a flapping node and a
# replica that is ejected again and again would be treated as such, and rightly.
[gateway.breaker]
open_s_max = 5

[agent]
crash_loop_window_s = 2
worker_environment = ["MODELS"]

[controller]
lease_ms = 1000
stability_window_s = 1
stability_window_s_max = 1
"""

APP = """
name = "{name}"
criticality = "critical"
deadline_ms = {deadline_ms}

[[variants]]
name = "full"
runtime = "python"
artifact = "model"
accuracy = 0.9

[batching]
rows_max = 1

[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 64]

[[outputs]]
name = "label"
datatype = "INT64"
shape = [-1]

[[outputs]]
name = "probabilities"
datatype = "FP32"
shape = [-1, 64]

[[outputs]]
name = "pid"
datatype = "INT64"
shape = [-1]
"""

HAPROXY = """
global
    nbthread 1
    maxconn 2000
defaults
    mode http
    timeout connect 100ms
    timeout client 30s
    timeout server 100ms
    timeout queue 200ms
    timeout check 100ms
    timeout http-keep-alive 60s
    option http-keep-alive
    http-reuse always
    retries 3
    retry-on all-retryable-errors
    option redispatch 1
frontend clients
    bind {address}
    default_backend workers
backend workers
    balance leastconn
    option httpchk GET /v2/health/ready
    default-server check inter 200ms fall 2 rise 1 maxconn 2 on-marked-down shutdown-sessions
    server w1 unix@{first}
    server w2 unix@{second}
"""


class Server:
    """A peer: its processes, and who answers for it."""

    def __init__(self, contender: Contender, work: Path) -> None:
        self.name = contender.name
        self.url = contender.url
        self._contender = contender
        self._work = work

    @contextmanager
    def running(self) -> Iterator[None]:
        with running(self._contender, self._work):
            yield

    def protected(self) -> bool:
        """Does the server itself say that nothing is missing?"""
        return True

    def machine_of(self, pid: int) -> str:
        """On which replica `pid` runs."""
        raise NotImplementedError

    def kill_machine(self, machine: str) -> None:
        raise NotImplementedError

    def restore_machine(self, machine: str) -> None:
        raise NotImplementedError

    def replicas(self, payload: Payload) -> set[int]:
        """Who answered a few requests, two at a time; nobody if one of those went wrong."""
        with ThreadPoolExecutor(REPLICAS) as clients:
            answers = list(clients.map(lambda _: ask(self.url, payload), range(ROUND)))
        return {_pid(body) for _, body in answers} if all(status == 200 for status, _ in answers) else set()

    def busiest(self, payload: Payload) -> int:
        """The replica that answers most at a low load: some servers have a favourite. Raises MissingError."""
        answers = [ask(self.url, payload) for _ in range(ROUND)]
        found = Counter(_pid(body) for status, body in answers if status == 200)
        if not found:
            raise MissingError("nobody answers any more")
        return found.most_common(1)[0][0]


def _pid(body: bytes) -> int:
    outputs = {output["name"]: output["data"] for output in json.loads(body)["outputs"]}
    return int(outputs["pid"][0])


class Understudy(Server):
    """Two nodes, a critical app: a replica on one and its warm standby, which answers too, on the other."""

    def __init__(self, work: Path) -> None:
        http_port = free_ports(1)[0]
        super().__init__(Contender("Understudy", f"http://127.0.0.1:{http_port}", []), work)
        folder = work / "understudy"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "model").mkdir(parents=True)
        shutil.copy(accelerator.__file__, folder / "model" / "model.py")
        self._manifest = folder / "APP.toml"
        self._manifest.write_text(APP.format(name=NAME, deadline_ms=1000 * OBJECTIVE_S))
        path = folder / "CLUSTER.toml"
        path.write_text(CLUSTER.format(http=http_port, controller=free_ports(1)[0]))
        os.environ["MODELS"] = str(work)  # of the cluster's processes
        self._cluster = Cluster(path)

    @contextmanager
    def running(self) -> Iterator[None]:
        try:
            self._cluster.start()
            nodes = {node.name for node in self._cluster.config.nodes}
            ready = self._cluster.wait_until(
                lambda views: nodes <= {n.name for n in views[0].nodes if n.state == "ready"},
                START_TIMEOUT_S,
                "nodes are ready",
            )
            asyncio.run(ready)
            (deployment,) = deploy(self._cluster.control, self._manifest)
            if deployment.state != "ready":
                raise MissingError(f"its app is {deployment.state}: {deployment.message}")
            yield
        finally:
            asyncio.run(self._cluster.stop())

    def protected(self) -> bool:
        try:
            nodes = asyncio.run(self._cluster.status()).nodes
            replicas = self._app()["replicas"]
        except (UnderstudyError, OSError):
            return False
        good = {"state": "ready", "connected": True, "suspect": False, "breaker": "closed"}
        well = [r for r in replicas if all(r[key] == value for key, value in good.items())]
        return all(n.state == "ready" for n in nodes) and len({r["node"] for r in well}) == REPLICAS

    def machine_of(self, pid: int) -> str:
        return next(str(r["node"]) for r in self._app()["replicas"] if r["pid"] == pid)

    def kill_machine(self, machine: str) -> None:
        self._cluster.kill_node(machine)

    def restore_machine(self, machine: str) -> None:
        self._cluster.start_node(machine)

    def _app(self) -> dict[str, Any]:
        """As the gateway sees it."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=5)
        try:
            token = known_token(self.url)
            connection.request("GET", "/understudy/status", headers={"Authorization": f"Bearer {token}"})
            status = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return next(app for app in status["apps"] if app["name"] == NAME)


def mlserver(work: Path) -> Server:
    """Two parallel workers, which it starts anew when they die."""
    port = free_ports(1)[0]
    folder = work / "mlserver"
    (folder / NAME).mkdir(parents=True, exist_ok=True)
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_ports(1)[0],
        "debug": False,
        "parallel_workers": REPLICAS,
        "metrics_endpoint": None,
        "gzip_enabled": False,
    }
    model = {"name": NAME, "implementation": "benchmarks.peers.mlserver.waiting.WaitingModel"}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / NAME / "model-settings.json").write_text(json.dumps(model))
    command = [str(environment("mlserver") / "mlserver"), "start", str(folder)]
    return Server(Contender("MLServer", f"http://127.0.0.1:{port}", [command]), work)


def litserve(work: Path) -> Server:
    """Two workers that are started anew when they die, which is an option."""
    port = str(free_ports(1)[0])
    command = [str(environment("litserve") / "python"), "-m", "benchmarks.peers.litserve.waiting", port]
    return Server(Contender("LitServe", f"http://127.0.0.1:{port}", [command]), work)


def ray_serve(work: Path) -> Server:
    """As in the comparison of speed, with its HAProxy in front of two replicas."""
    port = str(free_ports(1)[0])
    command = [str(environment("rayserve") / "python"), "-m", "benchmarks.peers.rayserve.waiting", port]
    env = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return Server(Contender("Ray Serve", f"http://127.0.0.1:{port}", [command], env), work)


def haproxy(work: Path) -> Server:
    """Health checks five times a second, whatever may be retried is retried on the other worker, and what has
    waited for 200 ms is refused. A worker that dies is started anew, as an init system does it.
    """
    address = f"127.0.0.1:{free_ports(1)[0]}"
    sockets = [work / "worker-1.sock", work / "worker-2.sock"]
    config = work / "haproxy.cfg"
    config.write_text(HAPROXY.format(address=address, first=sockets[0], second=sockets[1]))
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "haproxy"
    worker = f"{sys.executable} -m benchmarks.faults.http_worker unix:"
    commands = [["sh", "-c", f"while :; do {worker}{socket}; done"] for socket in sockets]
    contender = Contender(
        "HAProxy + 2 workers", f"http://{address}", [*commands, [program, "-db", "-f", str(config)]]
    )
    return Server(contender, work)


LINE_UP: dict[str, Callable[[Path], Server]] = {
    "Understudy": Understudy,
    "HAProxy + 2 workers": haproxy,
    "MLServer": mlserver,
    "Ray Serve": ray_serve,
    "LitServe": litserve,
}
# Who loses everything with a machine, or nothing but a worker, and why.
ONE_MACHINE = {
    "HAProxy + 2 workers": "a worker's machine is lost as the worker is",
    "MLServer": "all of a server is on one machine",
    "Ray Serve": "all of this server is on one machine",
    "LitServe": "all of a server is on one machine",
}
