"""A real worker process and a client that speaks frames with it, one call at a time."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from understudy.adapters.links import parse_address
from understudy.settings.worker import WorkerTuning
from understudy.wire.frames import FrameDecoder
from understudy.wire.messages import (
    Failure,
    Infer,
    Load,
    Loaded,
    Message,
    Result,
    decode_message,
    encode_message,
)
from understudy.wire.records import BatchingVerdict
from understudy.worker.__main__ import Alone

M = TypeVar("M")
DEADLINE_S = 20.0
TIMEOUT_US = 10_000_000

# Imports the runtime and forks a worker when told to, as an agent's zygote does. Also says what became of
# it: its exit status, or RUNNING.
RUNNING = 1000
ZYGOTE = """
import os, sys
import msgspec, numpy, onnxruntime, uvloop
from understudy.worker.__main__ import Alone, run_alone

sys.dont_write_bytecode = False  # whatever the tests run with
for line in sys.stdin:
    what, _, rest = line.partition(" ")
    if what == "status":
        pid, status = os.waitpid(int(rest), os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if pid else 1000, flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        run_alone(msgspec.json.decode(rest, type=Alone))
        os._exit(0)
    print(pid, flush=True)
"""


class Zygote:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE_S)
        self._process.stdout.close()


class Client:
    """One link. Replies may be asked for in any order; each wait has a deadline."""

    def __init__(self, address: str) -> None:
        self._decoder = FrameDecoder()
        self._replies: dict[int, tuple[Message | None, bytes]] = {}
        self._stream = 0
        kind, host, port = parse_address(address)
        self._socket = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        self._socket.settimeout(DEADLINE_S)
        try:
            self._socket.connect(host if kind == "unix" else (host, port))
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, *requests: tuple[Message, bytes]) -> list[int]:
        """All requests in one write. Returns their streams."""
        first = self._stream + 1
        self._stream += len(requests)
        streams = list(range(first, self._stream + 1))
        pairs = zip(requests, streams, strict=True)
        self.send_bytes(b"".join(encode_message(m, stream, payload) for (m, payload), stream in pairs))
        return streams

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def reply(self, stream: int) -> tuple[Any, bytes]:
        """Message and payload. Raises `EOFError` when the worker closes the link first."""
        while stream not in self._replies:
            self._read()
        return self._replies.pop(stream)

    def _read(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise EOFError("the worker closed the link")
        for frame in self._decoder.feed(data):
            self._replies[frame.stream] = decode_message(frame), frame.payload

    def has_reply(self, stream: int) -> bool:
        """Whether an answer on `stream` has come, read or not."""
        while select.select([self._socket], [], [], 0)[0]:
            self._read()
        return stream in self._replies

    def closed(self) -> bool:
        """Whether the worker has closed the link; waits for it to say anything."""
        try:
            return not self._socket.recv(65536)
        except ConnectionResetError:
            return True

    def call(self, message: Message, reply: type[M]) -> M:
        (stream,) = self.send((message, b""))
        answer, _ = self.reply(stream)
        assert isinstance(answer, reply), answer
        return answer

    def infer(self, body: bytes, timeout_us: int = TIMEOUT_US) -> tuple[Any, bytes]:
        (stream,) = self.send((Infer(timeout_us), body))
        return self.reply(stream)

    def refused_binary(self, name: str, datatype: str, shape: list[int], content: bytes) -> Failure:
        """What is said about an input in binary form."""
        size = {"binary_data_size": len(content)}
        head = request({"name": name, "datatype": datatype, "shape": shape, "parameters": size})
        (stream,) = self.send((Infer(TIMEOUT_US, len(head)), head + content))
        message, _ = self.reply(stream)
        assert isinstance(message, Failure), message
        return message

    def infer_all(self, bodies: list[bytes]) -> list[tuple[Any, bytes]]:
        """Pipelined, in one write."""
        return [self.reply(s) for s in self.send(*[(Infer(TIMEOUT_US), body) for body in bodies])]

    def answer(self, body: bytes) -> dict[str, Any]:
        message, payload = self.infer(body)
        assert isinstance(message, Result), message
        parsed: dict[str, Any] = json.loads(bytes(payload))
        return parsed

    def refusal(self, body: bytes) -> Failure:
        message, _ = self.infer(body)
        assert isinstance(message, Failure), message
        return message


class WorkerProcess:
    """A worker and how to reach, load and end it."""

    def __init__(self, zygote: Zygote, folder: Path, tcp_host: str, settings: WorkerTuning) -> None:
        self.socket = folder / "w.sock"
        self._zygote = zygote
        args = Alone("w1", str(self.socket), tcp_host, settings)
        self.pid = zygote.ask("fork " + msgspec.json.encode(args).decode())
        self._status: int | None = None
        self.client = connected(self.socket)

    def exit_status(self) -> int:
        deadline_s = time.monotonic() + DEADLINE_S
        while self._status is None:
            status = self._zygote.ask(f"status {self.pid}")
            if status != RUNNING:
                self._status = status
                break
            assert time.monotonic() < deadline_s, "the worker doesn't end"
            time.sleep(0.002)
        return self._status

    def load(self, load: Load) -> Loaded:
        return self.client.call(load, Loaded)

    def end(self) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.exit_status()


def connected(path: Path) -> Client:
    """Wait for somebody to listen at `path`."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            return Client(f"unix:{path}")
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.002)


@contextmanager
def worker_process(
    zygote: Zygote, *, tcp_host: str = "", settings: WorkerTuning | None = None
) -> Iterator[WorkerProcess]:
    with tempfile.TemporaryDirectory(prefix="understudy-") as folder:  # short: it becomes a socket's path
        worker = WorkerProcess(zygote, Path(folder), tcp_host, settings or WorkerTuning())
        try:
            with worker.client:
                yield worker
        finally:
            worker.end()


def loading(runtime: str, path: Path, **more: Any) -> Load:
    """A variant whose requests may share batches."""
    more.setdefault("verdict", BatchingVerdict(True, "graph", "its graph works row by row"))
    return Load("r1", "app", 3, "small", runtime, str(path), **more)


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def request(*inputs: dict[str, Any], **more: Any) -> bytes:
    return msgspec.json.encode({"inputs": inputs, **more})
