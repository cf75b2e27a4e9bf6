"""A worker around its model: what it does while loading and inferring, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from worker_process import (
    DEADLINE_S,
    Client,
    WorkerProcess,
    Zygote,
    connected,
    loading,
    request,
    tensor,
    worker_process,
)

from understudy.settings.worker import WorkerTuning
from understudy.wire.errors import Code
from understudy.wire.frames import encode_frame
from understudy.wire.messages import (
    Cancel,
    Drain,
    Drained,
    Failure,
    Infer,
    Load,
    Loaded,
    Ping,
    Pong,
    Probe,
    Probed,
    Result,
    Stats,
    WorkerStats,
    encode_message,
)
from understudy.wire.records import TensorSpec
from understudy.worker.__main__ import Alone
from understudy.worker.serving import PROBES_QUEUED_MAX

SPECS: dict[str, Any] = {
    "inputs": (TensorSpec("x", "INT64", (-1,)),),
    "outputs": (TensorSpec("y", "INT64", (-1,)),),
}
TIMEOUT_US = 10_000_000
# Slower than a hop to the thread. Stands still while the file `hold` lies beside it.
SLOW_MODEL = """
import sys, time
from pathlib import Path

HOLD = Path(__file__).parent / "hold"

def wait():
    while HOLD.exists():
        time.sleep(0.001)

class Model:
    def load(self, path):
        wait()

    def predict(self, inputs):
        time.sleep(0.002)
        wait()
        if HOLD.with_name("fail").exists():
            raise RuntimeError("told to")
        x = inputs["x"]
        match x.tolist():
            case [1]: raise MemoryError("no room")
            case [2]: sys.exit("enough")
            case [3]: raise ValueError("x" * 10_000)
            case [4]: return {"y": [4]}
            case [5]: raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        x += 1
        return {"y": x}
"""


def x(*values: int) -> bytes:
    return request(tensor("x", "INT64", [len(values)], list(values)))


@pytest.fixture
def slow(tmp_path: Path) -> Load:
    (tmp_path / "model.py").write_text(SLOW_MODEL)
    return loading("python", tmp_path, queue_rows_max=3, **SPECS)


@pytest.fixture
def hold(slow: Load) -> Iterator[Path]:
    """While the file exists, the model stands still."""
    path = Path(slow.path) / "hold"
    yield path
    path.unlink(missing_ok=True)


def stats(client: Client) -> WorkerStats:
    return client.call(Stats(), WorkerStats)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.002)


def test_a_loading_worker_answers(blank: WorkerProcess, slow: Load, hold: Path) -> None:
    hold.touch()
    (load,) = blank.client.send((slow, b""))
    assert stats(blank.client).state == "loading"
    assert blank.client.refusal(x(0)).code is Code.UNAVAILABLE
    assert blank.client.call(slow, Failure).code is Code.CONFLICT
    blank.client.call(Ping(), Pong)
    hold.unlink()
    assert isinstance(blank.client.reply(load)[0], Loaded)


def held_at_work(worker: WorkerProcess, hold: Path) -> int:
    """Have one inference stand still in the thread. Returns its stream."""
    requests = stats(worker.client).requests
    hold.touch()
    (stream,) = worker.client.send((Infer(TIMEOUT_US), x(0)))
    wait_until(lambda: (seen := stats(worker.client)).requests == requests + 1 and seen.queued == 0)
    return stream


def test_a_long_inference_does_not_hold_up_the_rest(blank: WorkerProcess, slow: Load, hold: Path) -> None:
    blank.load(slow)
    running = held_at_work(blank, hold)
    client = blank.client
    first, cancelled, expired = client.send(
        (Infer(TIMEOUT_US), x(10)), (Infer(TIMEOUT_US), x(20)), (Infer(1), x(30))
    )
    busy = client.refusal(x(40))
    assert (busy.code, busy.context) == (Code.BUSY, {"queued_rows": 3})
    assert stats(client).queued == 3
    (probe,) = client.send((Probe(), b""))
    client.send_bytes(encode_message(Cancel(), cancelled))
    client.call(Ping(), Pong)
    assert stats(client).queued == 3, "the probe came, the cancelled one went"
    hold.unlink()
    assert client.reply(running)[0].rows == 1
    result, payload = client.reply(first)
    assert result.rows == 2, "with the probe"
    assert msgspec.json.decode(payload)["outputs"][0]["data"] == [11]
    assert client.reply(expired)[0].code is Code.TIMEOUT
    assert isinstance(client.reply(probe)[0], Probed)
    assert stats(client).queued == 0
    assert not client.has_reply(cancelled)


def test_probes_beyond_the_bound_are_bounded(blank: WorkerProcess, slow: Load, hold: Path) -> None:
    blank.load(slow)
    held_at_work(blank, hold)
    probes = blank.client.send(*[(Probe(), b"")] * (PROBES_QUEUED_MAX + 1))
    assert blank.client.reply(probes[-1])[0].code is Code.BUSY
    hold.unlink()
    assert all(isinstance(blank.client.reply(stream)[0], Probed) for stream in probes[:-1])
    hold.with_name("fail").touch()
    for _ in range(PROBES_QUEUED_MAX + 1):
        assert blank.client.call(Probe(), Failure).code is Code.MODEL_FAILED
    hold.with_name("fail").unlink()
    blank.client.call(Probe(), Probed)


def test_requests_of_a_lost_link_are_forgotten(blank: WorkerProcess, slow: Load, hold: Path) -> None:
    blank.load(slow)
    held_at_work(blank, hold)
    with connected(blank.socket) as other:
        other.send((Infer(TIMEOUT_US), x(1)), (Infer(TIMEOUT_US), x(2)), (Probe(), b""))
        wait_until(lambda: stats(blank.client).queued == 3)
    wait_until(lambda: stats(blank.client).queued == 0)


def test_a_request_larger_than_the_queue_is_served_when_it_is_empty(blank: WorkerProcess, slow: Load) -> None:
    blank.load(slow)
    assert blank.client.answer(x(*range(10, 110)))["outputs"][0]["data"] == list(range(11, 111))


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        (1, Code.OUT_OF_MEMORY, "the model ran out of memory: MemoryError: no room"),
        (2, Code.MODEL_FAILED, "the model raised SystemExit: enough"),
        (3, Code.MODEL_FAILED, "the model raised ValueError: xxx"),
        (4, Code.OUTPUT_INVALID, "output 'y' is list, not an array"),
        (5, Code.OUT_OF_MEMORY, "Failed to allocate memory"),
    ],
)
def test_whatever_the_users_code_does(
    blank: WorkerProcess, slow: Load, value: int, code: Code, message: str
) -> None:
    blank.load(slow)
    failure = blank.client.refusal(x(value))
    assert failure.code is code
    assert message in failure.message
    assert len(failure.message) < 600
    for _ in range(2):
        assert blank.client.answer(x(7))["outputs"][0]["data"] == [8]
        blank.client.call(Probe(), Probed)


def test_a_drain_gives_up_on_an_inference_that_hangs(blank: WorkerProcess, slow: Load, hold: Path) -> None:
    blank.load(slow)
    held_at_work(blank, hold)
    queued, drain = blank.client.send((Infer(TIMEOUT_US), x(1)), (Drain(timeout_ms=20), b""))
    assert blank.client.reply(queued)[0].code is Code.DRAINING
    assert blank.client.reply(drain)[0] == Drained(finished=0)
    assert blank.exit_status() == 0


def test_a_drain_during_a_load_ends_it(blank: WorkerProcess, slow: Load, hold: Path) -> None:
    hold.touch()
    load, drain = blank.client.send((slow, b""), (Drain(), b""))
    assert blank.client.reply(drain)[0] == Drained(finished=0)
    with pytest.raises(EOFError):
        blank.client.reply(load)
    assert blank.exit_status() == 0


def test_a_worker_that_nobody_is_connected_to_ends(zygote: Zygote) -> None:
    with worker_process(zygote, settings=WorkerTuning(orphan_timeout_s=0.05)) as worker:
        worker.client.call(Ping(), Pong)
        worker.client.close()
        assert worker.exit_status() == 0
        assert not worker.socket.exists()


def test_a_worker_listens_on_tcp_if_told_to(zygote: Zygote, slow: Load) -> None:
    with worker_process(zygote, tcp_host="127.0.0.1") as worker:
        worker.load(slow)
        with Client(stats(worker.client).tcp_address) as client:
            assert client.answer(x(7))["outputs"][0]["data"] == [8]


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\nhost: worker\r\n\r\n", id="other-protocol"),
        pytest.param(encode_frame(1, 1, b"\xc1"), id="malformed-header"),
        pytest.param(b"\xff" * 100, id="oversize"),
    ],
)
def test_a_link_that_breaks_the_protocol_is_closed(blank: WorkerProcess, slow: Load, garbage: bytes) -> None:
    blank.load(slow)
    with connected(blank.socket) as other:
        other.send_bytes(garbage)
        assert other.closed()
    assert blank.client.answer(x(7))


def test_messages_of_a_newer_version_are_ignored(blank: WorkerProcess) -> None:
    blank.client.send_bytes(encode_frame(250, 1, b"?", b"??"))
    blank.client.call(Ping(), Pong)


class Fresh:
    """`python -m understudy.worker`."""

    def __init__(self, args: str) -> None:
        command = [sys.executable, "-m", "understudy.worker", args]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def end(self) -> tuple[int, str]:
        """Wait for it. Returns exit status and what it wrote; -9 if it had to be killed."""
        try:
            _, errors = self.process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, errors = self.process.communicate()
        return self.process.returncode, errors


def test_a_fresh_interpreter_serves_and_a_signal_ends_even_a_hanging_load(
    slow: Load, hold: Path, tmp_path: Path
) -> None:
    args = Alone("w2", str(tmp_path / "w.sock"))
    fresh = Fresh(msgspec.json.encode(args).decode())
    try:
        with connected(tmp_path / "w.sock") as client:
            hold.touch()
            client.send((slow, b""))
            assert stats(client).state == "loading"
            os.kill(fresh.process.pid, signal.SIGTERM)
            assert client.closed()
    finally:
        status, _ = fresh.end()
    assert status == 0


def test_a_start_that_can_not_succeed_is_said(blank: WorkerProcess) -> None:
    status, errors = Fresh("{}").end()
    assert (status, "missing required field `worker`" in errors) == (2, True)
    taken = Alone("w2", str(blank.socket))
    status, errors = Fresh(msgspec.json.encode(taken).decode()).end()
    assert (status, "another process listens here already" in errors) == (2, True)


# the python runtime's artifact and options


def load_python(worker: WorkerProcess, path: Path, **options: Any) -> None:
    worker.load(loading("python", path, options=options, **SPECS))


def test_a_directory_may_hold_further_modules_and_is_not_written_to(
    blank: WorkerProcess, tmp_path: Path
) -> None:
    (tmp_path / "doubling.py").write_text("def double(x):\n    return x * 2\n")
    (tmp_path / "model.py").write_text(
        "from doubling import double\n"
        "class Doubler:\n"
        "    def load(self, path):\n        self.path = path\n"
        "    def predict(self, inputs):\n        return {'y': double(inputs['x'])}\n"
    )
    load_python(blank, tmp_path, **{"class": "Doubler"})
    assert blank.client.answer(x(21))["outputs"][0]["data"] == [42]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["doubling.py", "model.py"]


def test_an_artifact_may_be_a_file_of_any_name(blank: WorkerProcess, tmp_path: Path) -> None:
    path = tmp_path / ("0" * 64)
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Model:\n"
        "    factor: int = 3\n"
        "    def load(self, path):\n        assert path.endswith('0' * 64)\n"
        "    def predict(self, inputs):\n        return {'y': inputs['x'] * self.factor}\n"
    )
    load_python(blank, path)
    assert blank.client.answer(x(2))["outputs"][0]["data"] == [6]


def test_what_is_missing_in_the_users_code_is_said(blank: WorkerProcess, tmp_path: Path) -> None:
    cases = [
        ("", "has no class 'Model'"),
        ("class Mine: ...\n", 'for the one that it has: options = { class = "Mine" }'),
        ("class Model:\n    def laod(self, path): ...\n", "has no method 'load'; should 'laod' be it?"),
        ("class Model:\n    def load(self, path): ...\n", "has no method 'predict'"),
        ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere'"),
        ("class Model\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("class Model:\n    def load(self, path): raise OSError('no disk')\n    predict = load\n", "no disk"),
    ]
    for source, message in cases:
        (tmp_path / "model.py").write_text(source)
        failure = blank.client.call(loading("python", tmp_path, **SPECS), Failure)
        assert failure.code is Code.LOAD_FAILED
        assert message in failure.message
    (tmp_path / "model.py").write_text(SLOW_MODEL)
    failure = blank.client.call(loading("python", tmp_path), Failure)
    assert "no inputs are declared" in failure.message


def test_without_memory_to_load_the_code_says_so(blank: WorkerProcess, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("raise MemoryError\n")
    failure = blank.client.call(loading("python", tmp_path, **SPECS), Failure)
    assert failure.code is Code.OUT_OF_MEMORY
    (tmp_path / "model.py").write_text(SLOW_MODEL)
    load_python(blank, tmp_path)
    assert isinstance(blank.client.infer(x(7))[0], Result)
