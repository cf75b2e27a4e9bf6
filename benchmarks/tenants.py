"""A hostile tenant beside a good one: `python -m benchmarks.tenants [SECONDS [SEED]]`.

One cluster on this machine. The good app is asked at a fixed rate, first undisturbed, then while the hostile
one's clients and model do, in a seeded order, what harms: requests that crash, spin, fork, fill the scratch
directory and print; floods of connections, slow clients, large and bad bodies, manifests that are wrong.
Prints what the good app's clients saw in both, and the memory of every role before and after. Fails where a
request of the good app did, and says where its p99 or a role's memory is beyond what it should be.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import multiprocessing
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from benchmarks.models import write_models, write_payloads
from understudy.adapters.memory import pss_mb
from understudy.adapters.ports import free_ports

CALM_S = 20.0
PERIOD_S = 0.02  # of the good app's requests
REST_S = 10.0  # for memory to come back
ATTACKERS = 3  # at once
P99_TIMES, P99_MORE_MS = 3.0, 20.0  # of the undisturbed; the larger of both bounds holds
MEMORY_MORE_MB = 10.0  # that a role may have afterwards
ROLES = ("agent", "gateway", "controller")
START_TIMEOUT_S = 60.0
CLUSTER = """
name = "tenants"
data_dir = "{folder}/data"
apps = ["good.toml", "hostile.toml"]
[[nodes]]
name = "n1"
memory_mb = 2000
[[nodes]]
name = "n2"
memory_mb = 2000
[[gateways]]
name = "g1"
http = "127.0.0.1:{gateway}"
[[controllers]]
name = "c1"
http = "127.0.0.1:{control}"
"""
GOOD = """
name = "good"
criticality = "critical"
[[variants]]
name = "full"
runtime = "onnx"
artifact = "digits.onnx"
accuracy = 0.9
"""
HOSTILE = """
name = "hostile"
[[variants]]
name = "full"
runtime = "python"
artifact = "hostile.py"
accuracy = 0.9
"""
MODEL = """
import os, sys, time

class Model:
    inputs = [("x", "FP32", [-1, 1])]
    outputs = [("y", "FP32", [-1, 1])]

    def load(self, path):
        pass

    def predict(self, inputs):
        what = int(inputs["x"][0, 0]) if len(inputs["x"]) else 0
        if what == 1:
            os.abort()
        if what == 2:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                pass
        if what == 3:
            try:
                for _ in range(300):
                    if os.fork() == 0:
                        time.sleep(0.5)
                        os._exit(0)
            except OSError:
                pass
        if what == 4:
            try:
                with open(os.environ["TMPDIR"] + "/fill", "wb") as file:
                    while True:
                        file.write(bytes(1 << 20))
            except OSError:
                os.unlink(os.environ["TMPDIR"] + "/fill")
        if what == 5:
            sys.stderr.write("harm " * 2_000_000)
        if what == 6:
            kept = bytearray(300 << 20)
        return {"y": inputs["x"]}
"""


class Hostile:
    """What a tenant does that means harm. Every act ends by itself, and its own failures are its own."""

    def __init__(self, gateway: int, command: list[str], folder: Path, seed: int) -> None:
        self._gateway = gateway
        self._command = command
        self._folder = folder
        self._random = random.Random(seed)
        self.done: dict[str, int] = {}
        bomb = gzip.compress(b" " * 60_000_000)
        self.acts: dict[str, Callable[[], None]] = {
            **{f"model {name}": self._ask(number) for number, name in enumerate(MODELS, 1)},
            "flood": self._flood,
            "slow client": self._slow,
            "deep body": lambda: self._post(b'{"inputs":' + b"[" * 4_000_000 + b"]" * 4_000_000 + b"}"),
            "wide body": lambda: self._post(b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":['
                                            + b"[]," * 8_000_000 + b"[]]}]}"),
            "zipped bomb": lambda: self._post(bomb, {"Content-Encoding": "gzip"}),
            "garbage": lambda: self._post(self._random.randbytes(100_000)),
            "bad manifest": self._deploy,
        }  # fmt: skip

    def run(self, stop: Any) -> None:
        while not stop.is_set():
            name = self._random.choice(list(self.acts))
            with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
                self.acts[name]()
            self.done[name] = self.done.get(name, 0) + 1

    def _ask(self, number: int) -> Callable[[], None]:
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [number]}]}
        return lambda: self._post(json.dumps(body).encode())

    def _post(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        connection = HTTPConnection("127.0.0.1", self._gateway, timeout=5)
        with contextlib.closing(connection):
            connection.request("POST", "/v2/models/hostile/infer", body, headers or {})
            connection.getresponse().read()

    def _flood(self) -> None:
        with contextlib.ExitStack() as opened:
            for _ in range(200):
                link = opened.enter_context(socket.create_connection(("127.0.0.1", self._gateway), 2))
                link.sendall(
                    b"POST /v2/models/hostile/infer HTTP/1.1\r\n"
                    b"Host: localhost\r\nContent-Length: 9\r\n\r\n{}"
                )

    def _slow(self) -> None:
        with socket.create_connection(("127.0.0.1", self._gateway), 2) as link:
            for byte in b"POST /v2/models/hostile/infer HTTP/1.1\r\n":
                link.sendall(bytes([byte]))
                time.sleep(0.01)

    def _deploy(self) -> None:
        text = self._random.choice(
            [
                HOSTILE.replace("0.9", "1e400"),
                HOSTILE + "probe = {}\n" * 2,
                "name = " + "[" * 10_000,
                "\0" * 1000,
            ]
        )
        path = self._folder / "bad.toml"
        path.write_text(text)
        cluster = str(self._folder / "c.toml")
        command = [*self._command, "deploy", str(path), "--cluster", cluster]
        subprocess.run(command, capture_output=True, timeout=30, check=False)


MODELS = ("aborts", "spins", "forks", "fills its scratch", "prints", "takes memory")


class Good:
    """Asks at a fixed rate, each time on a connection that stays."""

    def __init__(self, gateway: int, body: bytes, headers: dict[str, str]) -> None:
        self._connection = HTTPConnection("127.0.0.1", gateway, timeout=10)
        self._body, self._headers = body, headers
        self.latencies_ms: list[float] = []
        self.failed: list[str] = []

    def run(self, seconds: float) -> None:
        begin = time.monotonic()
        number = 0
        while (due := begin + number * PERIOD_S) < begin + seconds:
            time.sleep(max(due - time.monotonic(), 0.0))
            number += 1
            try:
                self._connection.request("POST", "/v2/models/good/infer", self._body, self._headers)
                response = self._connection.getresponse()
                answer = response.read()
            except OSError as error:
                self.failed.append(repr(error))
                self._connection.close()
                continue
            self.latencies_ms.append((time.monotonic() - due) * 1000)  # from when it was due
            if response.status != 200 or response.headers["Understudy-Degraded"]:
                self.failed.append(f"{response.status} {answer[:100]!r}")

    def percentile(self, fraction: float) -> float:
        return sorted(self.latencies_ms)[int(fraction * (len(self.latencies_ms) - 1))]


@contextlib.contextmanager
def cluster(command: list[str], file: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(file.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen([*command, "up", str(file)], stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(START_TIMEOUT_S)


def memory_mb(cluster: int) -> dict[str, float]:
    """Of each role, which `up` has as its children."""
    found: dict[str, float] = {}
    for path in Path(f"/proc/{cluster}/task").glob("*/children"):
        for pid in path.read_text().split():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                name = next((word for word in words if word in ROLES), words[0])
                name = f"{name} {words[words.index(name) + 1]}" if name in ROLES else name[:40]
                found[name] = round(pss_mb(int(pid)), 1)
    return found


def attack(
    gateway: int, command: list[str], folder: Path, seed: int, ready: Any, stop: Any, told: Any
) -> None:
    """In a process of its own, and politely: real attackers have machines of their own."""
    os.nice(10)
    hostile = Hostile(gateway, command, folder, seed)
    ready.wait()
    hostile.run(stop)
    told.put(hostile.done)


def main(seconds: float, seed: int) -> int:
    with tempfile.TemporaryDirectory(prefix="tenants-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        write_models(folder)
        payload = write_payloads(folder)["digits"]
        for file, text in (("good.toml", GOOD), ("hostile.toml", HOSTILE), ("hostile.py", MODEL)):
            (folder / file).write_text(text)
        gateway, control = free_ports(2)
        (folder / "c.toml").write_text(CLUSTER.format(folder=folder, gateway=gateway, control=control))
        command = [sys.executable, "-m", "understudy"]
        context = multiprocessing.get_context("spawn")
        process = stack.enter_context(cluster(command, folder / "c.toml"))
        body = payload.file.read_bytes()
        _until_answered(gateway, body, payload.headers)
        calm = Good(gateway, body, payload.headers)
        calm.run(CALM_S)
        before = memory_mb(process.pid)
        ready, stop, told = context.Barrier(ATTACKERS + 1), context.Event(), context.SimpleQueue()
        attackers = [
            context.Process(target=attack, args=(gateway, command, folder, seed + number, ready, stop, told))
            for number in range(ATTACKERS)
        ]
        for attacker in attackers:
            attacker.start()
        ready.wait()
        disturbed = Good(gateway, body, payload.headers)
        disturbed.run(seconds)
        stop.set()
        acts: Counter[str] = Counter()
        for attacker in attackers:
            acts.update(told.get())
            attacker.join()
        time.sleep(REST_S)
        after = memory_mb(process.pid)
    for title, seen in (("undisturbed", calm), ("disturbed", disturbed)):
        sys.stdout.write(
            f"{title}: {len(seen.latencies_ms)} requests, {len(seen.failed)} failed, "
            f"p50 {statistics.median(seen.latencies_ms):.1f}, p99 {seen.percentile(0.99):.1f}, "
            f"max {max(seen.latencies_ms):.0f} ms\n"
        )
    sys.stdout.write(f"acts: {dict(acts)}\nmemory before, MB: {before}\nmemory after, MB: {after}\n")
    for failure in disturbed.failed[:5]:
        sys.stdout.write(f"failed: {failure}\n")
    problems = [f"{len(disturbed.failed)} requests failed"] if disturbed.failed else []
    p99_ms = calm.percentile(0.99)
    bound_ms = max(P99_TIMES * p99_ms, p99_ms + P99_MORE_MS)
    if disturbed.percentile(0.99) > bound_ms:
        problems.append(f"p99 {disturbed.percentile(0.99):.1f} ms, and {bound_ms:.1f} is the bound")
    for role, was_mb in before.items():
        if after.get(role, float("inf")) > was_mb + MEMORY_MORE_MB:
            problems.append(f"{role} had {was_mb} MB, and has {after.get(role, 'ended')}")
    for problem in problems:
        sys.stdout.write(f"not met: {problem}\n")
    return bool(calm.failed or disturbed.failed)


def _until_answered(gateway: int, body: bytes, headers: dict[str, str]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError), contextlib.closing(HTTPConnection("127.0.0.1", gateway)) as asked:
            asked.request("POST", "/v2/models/good/infer", body, headers)
            response = asked.getresponse()
            response.read()
            if response.status == 200 and not response.headers["Understudy-Degraded"]:
                return
        if time.monotonic() > deadline_s:
            raise RuntimeError("the good app doesn't answer")
        time.sleep(0.2)


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    sys.exit(main(float(given.get(0, "300")), int(given.get(1, "1"))))
