"""The worker without a gateway that benchmarks compare with is still a worker."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks import models
from benchmarks.models import Payload
from benchmarks.processes import ROOT, answer

from understudy.adapters.ports import free_ports

START_TIMEOUT_S = 30.0


def test_it_answers_as_onnx_runtime_does(tmp_path: Path) -> None:
    models.write_models(tmp_path)
    payload = models.write_payloads(tmp_path)["digits"]
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [sys.executable, "-m", "benchmarks.http_worker", str(tmp_path), f"tcp:{address}"]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            body = first_answer(f"http://{address}", payload, process)
            assert models.is_right(body, models.right_answer(tmp_path, "digits"))
        finally:
            process.terminate()


def first_answer(url: str, payload: Payload, process: subprocess.Popen[bytes]) -> bytes:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return answer(url, payload)
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
