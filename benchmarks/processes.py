"""Environments and processes of contenders: set up once, started, answering, and gone afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.models import Payload

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / "build" / "bench"
INSTALL_TIMEOUT_S = 600.0
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 5.0
MARK = "UNDERSTUDY_BENCHMARK"  # inherited by every process of a contender, also by those that leave its group


class MissingError(Exception):
    """A contender, or one of its loads, can't be measured. The first line says why, the others explain."""


@dataclass
class Contender:
    """`url` answers inference requests once all `commands` run."""

    name: str
    url: str
    commands: list[list[str]]
    env: dict[str, str] = field(default_factory=dict)
    json: str = "digits"  # the small request; the others are in the Open Inference Protocol
    image: str = "image as bytes"  # the encoding in which this server takes an image best
    grpc: str = ""  # address; empty: it has no gRPC for this model
    closed_only: bool = False  # another set-up of a contender that is measured in full


def environment(peer: str) -> Path:
    """The folder of programs of a peer's own virtual environment, set up if it isn't yet.

    Raises MissingError if that fails.
    """
    requirements = PEERS / peer / "requirements.txt"
    folder = ENVIRONMENTS / peer
    stamp = folder / "stamp"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install: list[str | Path] = [
            folder / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--only-binary=:all:",
        ]
        create: list[str | Path] = [sys.executable, "-m", "venv", folder]
        for command in (create, [*install, "--requirement", requirements]):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
            except subprocess.SubprocessError as error:
                words = getattr(error, "stderr", None) or str(error)
                raise MissingError(f"its environment can't be set up\n{words[-500:]}") from error
        stamp.write_text(wanted)
    return folder / "bin"


def version(peer: str, package: str) -> str:
    """Of `package`, as pinned for `peer`."""
    lines = (PEERS / peer / "requirements.txt").read_text().splitlines()
    return next(line.split()[0].partition("==")[2] for line in lines if line.startswith(f"{package}=="))


@contextlib.contextmanager
def running(contender: Contender, work: Path) -> Iterator[None]:
    """The contender, started. All its processes are gone afterwards."""
    mark = uuid.uuid4().hex
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
        "MODELS": str(work),
        **contender.env,
        MARK: mark,
    }
    log_path = work / f"{contender.name.replace(' ', '-')}.log"
    with log_path.open("wb") as log:
        processes = [
            subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            for command in contender.commands
        ]
        try:
            _wait_until_open(contender, processes, log_path)
            yield
        finally:
            for process in reversed(processes):
                _stop(process)
            _kill_marked(mark)


def _wait_until_open(contender: Contender, processes: list[subprocess.Popen[bytes]], log_path: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    address = urlsplit(contender.url)
    while time.monotonic() < deadline_s:
        if any(process.poll() is not None for process in processes):
            break
        with contextlib.suppress(OSError):
            socket.create_connection((address.hostname, address.port), timeout=1).close()
            return
        time.sleep(0.05)
    raise MissingError(f"it did not start\n{log_path.read_text()[-1000:]}")


def answer(url: str, payload: Payload) -> bytes:
    """The first successful answer. Raises MissingError if there is none in time."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    status, reply = 0, b""
    while time.monotonic() < deadline_s:
        status, reply = ask(url, payload)
        if status == 200:
            return reply
        if 400 <= status <= 500 and status != 404:  # 404: a model that isn't loaded yet
            break
        time.sleep(0.1)
    raise MissingError(f"it answered {status}\n{reply[:300]!r}")


def ask(url: str, payload: Payload) -> tuple[int, bytes]:
    """Status and body of one POST; status 0 when nobody answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ASK_TIMEOUT_S)
    try:
        connection.request("POST", payload.path, payload.file.read_bytes(), payload.headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _kill_marked(mark: str) -> None:
    """Some servers leave processes behind, in groups of their own."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
