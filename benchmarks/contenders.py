"""The servers that are compared, each at what its documentation recommends for two cores.

Where that leaves a choice, the fastest of what was tried is taken; docstrings say what (trials of seconds on
two busy cores: good for the order, not for figures). Every server has both models and answers the same paths.
None writes a log of accesses.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import Contender, environment
from understudy.adapters.ports import free_ports

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
apps = ["digits.toml", "image.toml"]

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
http = "{http}"
grpc = "{grpc}"
processes = {processes}

[[controllers]]
name = "c1"
http = "{controller}"
"""

# What happens when a replica is lost is planned, on the other node.
APP = """
name = "{name}"
replicas = {processes}

[[variants]]
name = "full"
runtime = "onnx"
artifact = "{name}.onnx"
accuracy = 0.9
"""


def understudy(work: Path, processes: int) -> Contender:
    """So many processes of the gateway, and as many replicas."""
    http, grpc = _address(), _address()
    cluster = work / "cluster.toml"
    cluster.write_text(CLUSTER.format(http=http, grpc=grpc, controller=_address(), processes=processes))
    for name in ("digits", "image"):
        (work / f"{name}.toml").write_text(APP.format(name=name, processes=processes))
    command = [sys.executable, "-m", "understudy", "up", str(cluster)]
    name = "Understudy" if processes == 1 else f"Understudy x {processes}"
    url = f"http://{http}"
    return Contender(name, url, [command], image="image as tensor", grpc=grpc, closed_only=processes > 1)


def fastapi(work: Path, workers: int) -> Contender:
    """uvicorn's page on deployment: uvloop, httptools, and one worker process for each core."""
    port = str(free_ports(1)[0])
    command = [str(environment("fastapi") / "uvicorn"), "benchmarks.peers.fastapi.serve:app", "--port", port]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    command += ["--workers", str(workers)]
    name = f"FastAPI, uvicorn x {workers}"
    return Contender(name, f"http://127.0.0.1:{port}", [command], closed_only=workers == 1)


def mlserver(work: Path) -> Contender:
    """Its guide recommends `parallel_workers` as cores for models that take their time; 0 infers in the
    server's own process, which answered this model some four times as often as 1 or 2, and more often
    without adaptive batching. Metrics, compression and the debug log are off. REST has no binary form, so
    that an image is one BYTES element in base64.
    """
    port, grpc_port = free_ports(2)
    folder = work / "mlserver"
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": grpc_port,
        "debug": False,
        "parallel_workers": 0,
        "metrics_endpoint": None,
        "gzip_enabled": False,
    }
    for name in ("digits", "image"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        model = {"name": name, "implementation": "benchmarks.peers.mlserver.runtime.OnnxModel"}
        (folder / name / "model-settings.json").write_text(json.dumps(model))
    (folder / "settings.json").write_text(json.dumps(settings))
    command = [str(environment("mlserver") / "mlserver"), "start", str(folder)]
    url, grpc = f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}"
    return Contender("MLServer", url, [command], image="image as base64", grpc=grpc)


def litserve(work: Path) -> Contender:
    """Its pages on speed: as many workers and API servers as cores, and batches, with which its fast queue
    was slower.
    """
    port = str(free_ports(1)[0])
    command = [str(environment("litserve") / "python"), "-m", "benchmarks.peers.litserve.serve", port]
    return Contender("LitServe", f"http://127.0.0.1:{port}", [command])


def bentoml(work: Path) -> Contender:
    """Its page on workers: one for each core. An array in its own JSON form was answered a third more often
    than a request of the Open Inference Protocol. Its services have no gRPC any more (`serve-grpc` refuses).
    """
    port = str(free_ports(1)[0])
    command = [str(environment("bentoml") / "bentoml"), "serve", "benchmarks.peers.bentoml.serve:Models"]
    command += ["--host", "127.0.0.1", "--port", port]
    env = {"BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": str(work / "bentoml")}
    return Contender("BentoML", f"http://127.0.0.1:{port}", [command], env, json="digits as array")


def ray_serve(work: Path, tuned: bool) -> Contender:
    """A replica for each core. Tuned: with what its page on high throughput says, two variables that put an
    HAProxy of its own in front of the replicas; it answered some ten times as often as its proxy in Python.
    """
    port, grpc_port = map(str, free_ports(2))
    command = [
        str(environment("rayserve") / "python"),
        "-m",
        "benchmarks.peers.rayserve.serve",
        port,
        grpc_port,
    ]
    env = {"RAY_USAGE_STATS_ENABLED": "0"}
    if tuned:
        env |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        }
    name = "Ray Serve" if tuned else "Ray Serve, as installed"
    grpc = f"127.0.0.1:{grpc_port}"
    return Contender(name, f"http://127.0.0.1:{port}", [command], env, grpc=grpc, closed_only=not tuned)


def http_worker(work: Path) -> Contender:
    address = _address()
    command = _worker_command(work, f"tcp:{address}")
    return Contender("worker over HTTP", f"http://{address}", [command], closed_only=True)


def haproxy(work: Path, threads: int) -> Contender:
    """Connections to the worker are kept and shared; on two cores one thread was as fast as two."""
    address = _address()
    worker = work / f"worker-{threads}.sock"
    config = work / f"haproxy-{threads}.cfg"
    config.write_text(HAPROXY.format(threads=threads, address=address, worker=f"unix@{worker}"))
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "haproxy"
    commands = [_worker_command(work, f"unix:{worker}"), [program, "-db", "-f", str(config)]]
    name = f"HAProxy x {threads} + worker"
    return Contender(name, f"http://{address}", commands, image="image as tensor", closed_only=threads == 2)


def _worker_command(work: Path, address: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.http_worker", str(work), address]


def _address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


# More than one set-up of some: which is best depends on the machine, and not
# everybody tunes.
LINE_UP: dict[str, Callable[[Path], Contender]] = {
    "Understudy": lambda work: understudy(work, processes=1),
    "Understudy x 2": lambda work: understudy(work, processes=2),
    "FastAPI, uvicorn x 1": lambda work: fastapi(work, workers=1),
    "FastAPI, uvicorn x 2": lambda work: fastapi(work, workers=2),
    "HAProxy x 1 + worker": lambda work: haproxy(work, threads=1),
    "HAProxy x 2 + worker": lambda work: haproxy(work, threads=2),
    "worker over HTTP": http_worker,
    "MLServer": mlserver,
    "LitServe": litserve,
    "BentoML": bentoml,
    "Ray Serve": lambda work: ray_serve(work, tuned=True),
    "Ray Serve, as installed": lambda work: ray_serve(work, tuned=False),
}
