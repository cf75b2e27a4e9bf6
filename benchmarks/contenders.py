"""The servers that are compared, each a few processes that start, answer and end."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.digits_model import NAME, is_right

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
PATH = f"/v2/models/{NAME}/infer"

HAPROXY = """
global
    nbthread {threads}
    maxconn 2000
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s
    timeout http-keep-alive 60s
    option http-keep-alive
    http-reuse always
    retries 3
    option redispatch
frontend clients
    bind {address}
    default_backend workers
backend workers
    balance leastconn
    server w1 {worker} check inter 500ms pool-max-conn 100
"""

CLUSTER = """
name = "benchmark"
data_dir = "data"
apps = ["app.toml"]

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
http = "{gateway}"

[[controllers]]
name = "c1"
http = "{controller}"
"""

# One replica, as the others have one worker; what happens when it is lost is planned, on the other node.
APP = """
name = "{name}"

[[variants]]
name = "full"
runtime = "onnx"
artifact = "{model}"
accuracy = 0.9
"""


@dataclass
class Contender:
    """`url` answers inference requests once all `commands` run."""

    name: str
    url: str
    commands: list[list[str]]
    env: dict[str, str] = field(default_factory=dict)


def fastapi(work: Path, workers: int) -> Contender:
    port = str(free_port())
    command = [sys.executable, "-m", "uvicorn", "benchmarks.fastapi_server:app", "--port", port]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    command += ["--workers", str(workers)]
    env = {"MODEL": str(work / "model.onnx")}
    return Contender(f"FastAPI, uvicorn x {workers}", f"http://127.0.0.1:{port}{PATH}", [command], env)


def http_worker(work: Path) -> Contender:
    address = f"127.0.0.1:{free_port()}"
    return Contender("worker over HTTP", f"http://{address}{PATH}", [_worker_command(work, f"tcp:{address}")])


def haproxy(work: Path, threads: int) -> Contender:
    address = f"127.0.0.1:{free_port()}"
    worker = work / "worker.sock"
    config = work / f"haproxy-{threads}.cfg"
    config.write_text(HAPROXY.format(threads=threads, address=address, worker=f"unix@{worker}"))
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "haproxy"
    commands = [_worker_command(work, f"unix:{worker}"), [program, "-db", "-f", str(config)]]
    return Contender(f"HAProxy x {threads} + worker", f"http://{address}{PATH}", commands)


def understudy(work: Path) -> Contender:
    gateway = f"127.0.0.1:{free_port()}"
    cluster = work / "cluster.toml"
    cluster.write_text(CLUSTER.format(gateway=gateway, controller=f"127.0.0.1:{free_port()}"))
    (work / "app.toml").write_text(APP.format(name=NAME, model=work / "model.onnx"))
    command = [sys.executable, "-m", "understudy", "up", str(cluster)]
    return Contender("Understudy", f"http://{gateway}{PATH}", [command])


def _worker_command(work: Path, address: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.http_worker", str(work / "model.onnx"), address]


@contextlib.contextmanager
def running(contender: Contender, work: Path, body: bytes, expected: list[float]) -> Iterator[None]:
    """The contender, started and seen to answer right. All its processes are gone afterwards."""
    log_path = work / f"{contender.name.replace(' ', '-')}.log"
    with log_path.open("wb") as log:
        processes = [
            subprocess.Popen(
                command, env={**os.environ, **contender.env}, stdout=log, stderr=log, start_new_session=True
            )
            for command in contender.commands
        ]
        try:
            _wait_until_right(contender, processes, body, expected, log_path)
            yield
        finally:
            for process in reversed(processes):
                _stop(process)


def _wait_until_right(
    contender: Contender,
    processes: list[subprocess.Popen[bytes]],
    body: bytes,
    expected: list[float],
    log_path: Path,
) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if any(process.poll() is not None for process in processes):
            break
        status, reply = ask(contender.url, body)
        if status == 200:
            if not is_right(reply, expected):
                raise RuntimeError(f"{contender.name} gave a wrong answer: {reply.decode()}")
            return
        time.sleep(0.05)
    raise RuntimeError(f"{contender.name} did not start:\n{log_path.read_text()[-4000:]}")


def ask(url: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of one POST; status 0 when nobody answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request("POST", parts.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
