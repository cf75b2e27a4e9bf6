"""A client that takes all it can get of a gateway leaves room for others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attacked import Attacked, ask
from families import write_linear_app, write_python_app
from harness import infer_body, running

from understudy.wire.inference import SERVICE, ModelInferRequest

CONNECTIONS_MAX = 40
BYTES_MAX = 40_000_000
BODY_BYTES_MAX = 8_000_000
ANSWER_ROWS = 250_000  # of four FP32
TIMEOUT_S = 20.0
EXTRA = f"""
[gateway.http]
connections_max = {CONNECTIONS_MAX}
body_bytes_total_max = {BYTES_MAX}
body_bytes_max = {BODY_BYTES_MAX}
"""
WIDE = """
import numpy as np

class Model:
    def load(self, path):
        pass

    def predict(self, inputs):
        return {"y": np.zeros((int(inputs["x"][0, 0]), 4), np.float32)}
"""
SETTINGS = """
batching = {mode = "never"}
probe = {inputs = [{name = "x", datatype = "FP32", shape = [1, 4], data = [1, 0, 0, 0]}]}
"""
ROW = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [ANSWER_ROWS, 0, 0, 0]}


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder: Path = tmp_path_factory.mktemp("crowded")
    write_linear_app(folder / "apps" / "plain", "plain", "standard")
    write_python_app(folder / "apps" / "wide", "wide", {"full": WIDE}, SETTINGS, datatype="FP32")
    with asyncio.Runner() as runner:
        context = running(folder, nodes={"n1": "a"}, extra=EXTRA, grpc=True)
        harness = runner.run(context.__aenter__())
        yield Attacked(harness, 0, harness.ports[0])
        runner.run(context.__aexit__(None, None, None))


def status(crowded: Attacked) -> Any:
    headers = {"Authorization": f"Bearer {crowded.token}"}
    return ask(crowded.gateway, "GET", "/understudy/status", **headers)[2]


def until(holds: Callable[[], Any], what: str) -> None:
    due = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < due, what
        time.sleep(0.05)


@pytest.fixture
def greedy(crowded: Attacked) -> Iterator[Callable[[], socket.socket]]:
    """Connections of one address, to either port; afterwards nothing is left of them."""
    with contextlib.ExitStack() as opened:

        def connect(port: int = crowded.gateway) -> socket.socket:
            one = socket.create_connection(("127.0.0.1", port), TIMEOUT_S, source_address=("127.0.0.2", 0))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            return opened.enter_context(one)

        yield connect
    until(lambda: status(crowded)["bytes_held"] == 0, "all is let go")


def answered(crowded: Attacked) -> None:
    """Another client."""
    code, _, answer = ask(
        crowded.gateway, "POST", "/v2/models/plain/infer", infer_body([[0.0, 0.0, 0.0, 0.0]])
    )
    assert code == 200, answer


def test_of_connections(crowded: Attacked, greedy: Callable[[], socket.socket]) -> None:
    held = [greedy() for _ in range(2 * CONNECTIONS_MAX)]
    for _ in range(5):
        answered(crowded)
    held[-1].settimeout(TIMEOUT_S)
    assert b"503" in held[-1].recv(1000), "more than its share it doesn't get"


def test_of_what_is_sent(crowded: Attacked, greedy: Callable[[], socket.socket]) -> None:
    head = b"POST /v2/models/wide/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    for _ in range(10):
        with contextlib.suppress(OSError):  # it may be refused by then
            greedy().sendall(head % BODY_BYTES_MAX + bytes(BODY_BYTES_MAX - 1))
    until(lambda: status(crowded)["bytes_held"] > 0.2 * BYTES_MAX, "it took what it could")
    assert status(crowded)["bytes_held"] <= 0.8 * BYTES_MAX
    for _ in range(5):
        answered(crowded)


def test_of_answers_that_are_not_read_over_http(
    crowded: Attacked, greedy: Callable[[], socket.socket]
) -> None:
    body = json.dumps({"inputs": [ROW], "parameters": {"binary_data_output": True}}).encode()
    head = b"POST /v2/models/wide/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    hoards = [greedy() for _ in range(4)]
    for hoard in hoards:
        hoard.sendall((head % len(body) + body) * 30)
    worst = 0
    due = time.monotonic() + TIMEOUT_S
    while not any(ended(hoard) for hoard in hoards):
        assert time.monotonic() < due, "one that reads nothing ends"
        worst = max(worst, status(crowded)["bytes_held"])
        answered(crowded)
    assert worst <= BYTES_MAX
    answered(crowded)


def ended(hoard: socket.socket) -> bool:
    """Whether the peer has ended the connection; nothing is read for it."""
    try:
        hoard.send(b"\r\n")
    except OSError:
        return True
    return False


def test_of_answers_that_are_not_read_over_grpc(
    crowded: Attacked, greedy: Callable[..., socket.socket]
) -> None:
    request = ModelInferRequest(model_name="wide")
    x = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    x.contents.fp32_contents.extend([ANSWER_ROWS, 0, 0, 0])
    port = int(crowded.harness.cluster.config.gateways[0].grpc.rpartition(":")[2])
    hoard = DeafGrpcClient(greedy(port))
    for _ in range(30):
        hoard.call(f"/{SERVICE}/ModelInfer", request.SerializeToString())
    until(lambda: status(crowded)["bytes_held"] > 0.2 * BYTES_MAX, "it took what it could")
    for _ in range(5):
        answered(crowded)
        assert status(crowded)["bytes_held"] <= BYTES_MAX


class DeafGrpcClient:
    """Speaks just enough HTTP/2 to ask, and permits no byte of an answer."""

    HEADERS, SETTINGS, END_STREAM, END_HEADERS = 1, 4, 1, 4
    INITIAL_WINDOW_SIZE = 4

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = 1
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._frame(self.SETTINGS, 0, 0, struct.pack(">HI", self.INITIAL_WINDOW_SIZE, 0))

    def call(self, path: str, message: bytes) -> None:
        fields = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
            "content-type": "application/grpc", "te": "trailers",
        }  # fmt: skip
        block = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in fields.items()
        )
        self._frame(self.HEADERS, self.END_HEADERS, self._stream, block)
        self._frame(0, self.END_STREAM, self._stream, b"\0" + struct.pack(">I", len(message)) + message)
        self._stream += 2

    def _frame(self, kind: int, flags: int, stream: int, content: bytes) -> None:
        head = struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
        self._connection.sendall(head + content)
