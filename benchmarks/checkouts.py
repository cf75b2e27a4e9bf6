"""Requests per second, here and in another checkout: `OTHER [ROUNDS [CONNECTIONS]]` as arguments.

Two clusters of one node run side by side, one from each source tree, and are measured in turn: an ONNX model
over JSON, one that is sent images of 600 KB, y = 2x in Python, and a model in Python that sleeps for 2 ms.
Prints medians, and that of the rounds' ratios.
Needs wrk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks import load
from benchmarks.models import Payload, write_models, write_payloads
from benchmarks.processes import ROOT

DURATION_S = 1.0
START_TIMEOUT_S = 60.0
CLUSTER = """
name = "{name}"
data_dir = "{folder}/data"
apps = ["digits.toml", "image.toml", "double.toml", "sleep.toml"]
[[nodes]]
name = "n1"
memory_mb = 2000
[[gateways]]
name = "g1"
http = "127.0.0.1:{port}"
[[controllers]]
name = "c1"
http = "127.0.0.1:{control}"
"""
APP = """
name = "{name}"
[[variants]]
name = "full"
runtime = "{runtime}"
artifact = "{artifact}"
accuracy = 0.9
"""
SPECS = """
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 4]
"""
PYTHON = """
import time

class Model:
    def load(self, path):
        pass

    def predict(self, inputs):
        time.sleep({sleep_s})
        return {{"y": 2 * inputs["x"]}}
"""


def write_apps(folder: Path) -> dict[str, Payload]:
    """The manifests, and a request to each app."""
    write_models(folder)
    for name in ("digits", "image"):
        app = APP.format(name=name, runtime="onnx", artifact=f"{name}.onnx")
        (folder / f"{name}.toml").write_text(app)
    double = PYTHON.format(sleep_s=0).replace("        time.sleep(0)\n", "")
    for name, source in (("double", double), ("sleep", PYTHON.format(sleep_s=0.002))):
        (folder / f"{name}.py").write_text(source)
        app = APP.format(name=name, runtime="python", artifact=f"{name}.py") + SPECS
        (folder / f"{name}.toml").write_text(app)
    written = write_payloads(folder)
    payloads = {"digits": written["digits"], "image": written["image as tensor"]}
    for name in ("double", "sleep"):
        file = folder / f"{name}.json"
        file.write_text('{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[0.25,0.5,0.75,1]}]}')
        payloads[name] = Payload(name, file, {"Content-Type": "application/json"})
    return payloads


@contextlib.contextmanager
def cluster(tree: Path, folder: Path, port: int) -> Iterator[str]:
    """A cluster that runs the code of `tree`; its address."""
    file = folder / f"cluster-{port}.toml"
    content = CLUSTER.format(name=f"c{port}", folder=folder / str(port), port=port, control=port + 1)
    file.write_text(content)
    env = {**os.environ, "PYTHONPATH": str(tree / "src")}
    with open(folder / f"{port}.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "understudy", "up", str(file)], env=env, stdout=log, stderr=log
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(START_TIMEOUT_S)


def wait_until_ready(url: str, payloads: dict[str, Payload]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    for payload in payloads.values():
        request = urllib.request.Request(url + payload.path, payload.file.read_bytes(), payload.headers)
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
                break
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{url}: {payload.model} doesn't answer")
            time.sleep(0.2)


def main(other: Path, rounds: int, connections: int) -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        payloads = write_apps(folder)
        urls = [
            stack.enter_context(cluster(tree, folder, port)) for tree, port in ((other, 23310), (ROOT, 23320))
        ]
        for url in urls:
            wait_until_ready(url, payloads)
        for name, payload in payloads.items():
            rates: tuple[list[float], list[float]] = [], []
            for turn in range(rounds):
                for which in (0, 1) if turn % 2 else (1, 0):
                    seen = load.closed(urls[which], payload, connections, DURATION_S)
                    rates[which].append(seen.requests_per_s)
            before, after = map(statistics.median, rates)
            ratios = sorted(b / a for a, b in zip(*rates, strict=True))
            sys.stdout.write(
                f"{name}: {before:.0f} -> {after:.0f} requests/s, ratio {statistics.median(ratios):.3f} "
                f"({ratios[0]:.3f} to {ratios[-1]:.3f}), {connections} connections\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[2:]]
    main(Path(sys.argv[1]), *(numbers + [24, 30][len(numbers) :]))
