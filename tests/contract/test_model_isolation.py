"""A worker is a neutral place for other people's code: its thread, its exceptions, its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agents_zygote import AgentsZygote
from worker_process import (
    DEADLINE_S,
    TIMEOUT_US,
    WorkerProcess,
    Zygote,
    connected,
    loading,
    request,
    tensor,
    worker_process,
)

from understudy.agent.zygote import Exited
from understudy.settings.worker import WorkerTuning
from understudy.wire.errors import Code
from understudy.wire.messages import (
    Drain,
    Drained,
    Failure,
    Infer,
    Load,
    Loaded,
    Probe,
    Probed,
    Stats,
    WorkerStats,
)
from understudy.wire.records import Batching, TensorSpec
from understudy.worker.raised import ERROR_CHARS_MAX, TRACEBACK_CHARS_MAX

SPECS: dict[str, Any] = {
    "inputs": (TensorSpec("x", "INT64", (-1,)),),
    "outputs": (TensorSpec("y", "INT64", (-1,)),),
}


def written(folder: Path, source: str, **more: Any) -> Load:
    (folder / "model.py").write_text(source)
    return loading("python", folder, **{**SPECS, **more})


def x(*values: int, **more: Any) -> bytes:
    return request(tensor("x", "INT64", [len(values)], list(values)), **more)


def answered(worker: WorkerProcess, body: bytes) -> list[int]:
    data: list[int] = worker.client.answer(body)["outputs"][0]["data"]
    return data


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.002)


# one thread

ONE_THREAD = """
import asyncio, signal, sqlite3, threading, time

LOCAL = threading.local()
LOCAL.imported = True

def check():
    assert threading.current_thread() is threading.main_thread()
    assert LOCAL.imported and LOCAL.made and LOCAL.loaded

class Model:
    def __init__(self):
        LOCAL.made = True

    def load(self, path):
        LOCAL.loaded = True
        self.path = path
        self.table = sqlite3.connect(":memory:")
        self.table.execute("create table factors (factor int)")
        self.table.execute("insert into factors values (2)")

    def predict(self, inputs):
        check()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # only the main thread may
        (factor,) = self.table.execute("select factor from factors").fetchone()
        if inputs["x"][0] == 7:
            time.sleep(0.002)

        async def times():
            await asyncio.sleep(0)
            return inputs["x"] * factor

        return {"y": asyncio.run(times())}

    def unload(self):
        check()
        self.table.close()
        open(self.path + "/unloaded", "w").close()
"""


def test_a_python_model_has_one_thread_from_import_to_unload(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(written(tmp_path, ONE_THREAD, measure_latency_runs=3))
    for value in (1, 7, 1, 7):
        assert answered(blank, x(value)) == [2 * value]
        blank.client.call(Probe(), Probed)
    blank.client.call(Drain(), Drained)
    assert blank.exit_status() == 0
    assert (tmp_path / "unloaded").exists()


@pytest.mark.parametrize("ending", ["raise StopIteration", "raise SystemExit(3)", "time.sleep(60)"])
def test_an_unload_that_fails_holds_nobody(blank: WorkerProcess, tmp_path: Path, ending: str) -> None:
    predict = "def predict(self, inputs): return {'y': inputs['x']}"
    methods = f"def load(self, path): ...\n    {predict}\n    def unload(self): {ending}\n"
    blank.load(written(tmp_path, f"import time\nclass Model:\n    {methods}"))
    blank.client.call(Drain(), Drained)
    assert blank.exit_status() == 0


ASYNC = """
import asyncio

class Model:
    async def load(self, path):
        self.gate = asyncio.Event()
        self.gate.set()
        self.task = asyncio.create_task(asyncio.sleep(0))

    async def predict(self, inputs):
        await self.gate.wait()
        await self.task
        async with asyncio.timeout(5):
            return {"y": inputs["x"] + 1}
"""


def test_coroutines_run_on_a_loop_of_the_models_own(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(written(tmp_path, ASYNC))
    assert answered(blank, x(1, 2)) == [2, 3]


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        ("def predict(self, inputs):\n        yield inputs", "returned generator, not a dict of arrays"),
        ("async def predict(self, inputs):\n        yield inputs", "returned async_generator, not a dict"),
        ("def predict(self, inputs):\n        return None", "returned NoneType, not a dict"),
    ],
)
def test_what_no_inference_returns_is_refused_at_deployment(
    blank: WorkerProcess, tmp_path: Path, predict: str, message: str
) -> None:
    source = f"class Model:\n    def load(self, path): ...\n    {predict}\n"
    failure = blank.client.call(written(tmp_path, source), Failure)
    assert failure.code is Code.LOAD_FAILED
    assert message in failure.message


SIGNALS = """
import signal, sys, time
from pathlib import Path

class Model:
    def load(self, path):
        self.path = Path(path)
        {taken}

    def predict(self, inputs):
        if inputs["x"][0] == 8:
            {taken}
        if inputs["x"][0] == 9:
            (self.path / "spinning").touch()
            {busy}
        return {{"y": inputs["x"]}}
"""
BUSY = "time.sleep(60)"


@pytest.mark.parametrize("value", [1, 8])
@pytest.mark.parametrize(
    "taken",
    [
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)",
        "signal.set_wakeup_fd(-1)",
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))",
    ],
)
def test_a_model_can_not_keep_a_worker_from_draining(
    blank: WorkerProcess, tmp_path: Path, taken: str, value: int
) -> None:
    """Whether it takes its signals in `load` or in `predict`."""
    blank.load(written(tmp_path, SIGNALS.format(taken=taken, busy=BUSY)))
    assert answered(blank, x(value)) == [value]
    os.kill(blank.pid, signal.SIGTERM)
    assert blank.exit_status() == 0


ALARM = """
import signal

class Late(BaseException): ...

def late(*_):
    raise Late

class Model:
    def load(self, path):
        signal.signal(signal.SIGUSR1, late)

    def predict(self, inputs):
        return {"y": inputs["x"]}
"""


def test_a_signal_handler_that_raises_between_calls_ends_nothing(
    blank: WorkerProcess, tmp_path: Path
) -> None:
    blank.load(written(tmp_path, ALARM))
    for number in range(3):
        os.kill(blank.pid, signal.SIGUSR1)
        time.sleep(0.01)
        assert answered(blank, x(number)) == [number]
    blank.client.call(Drain(5000), Drained)
    assert blank.exit_status() == 0


# Raises in the main thread as often as the kernel permits, and says what was told.
RAISING_SERVICE = """
import asyncio, os, signal, threading
import structlog
from understudy.worker.model_thread import ModelThread

COUNT = 1000

class Late(BaseException): ...

def late(*_):
    raise Late

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
thread, told = ModelThread(), []

def done(result, error):
    told.append(result if error is None else error)

def cancel(*_):
    signal.setitimer(signal.ITIMER_REAL, 0)

async def ask():
    serving = asyncio.Event()
    thread.call(abs, 0, lambda *_: serving.set())
    await serving.wait()
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    for number in range(COUNT):
        thread.call(abs, number, done)
        await asyncio.sleep(0.0005)
    while len(told) < COUNT or thread.busy:
        await asyncio.sleep(0.001)
    missed = sum(isinstance(each, Late) for each in told)
    wrong = [n for n, each in enumerate(told) if each != n and not isinstance(each, Late)]
    print(len(told), len(wrong), missed < COUNT / 2, flush=True)
    os._exit(0)

signal.signal(signal.SIGALRM, late)
threading.Thread(target=asyncio.run, args=(ask(),)).start()
thread.serve()
"""


def test_everything_is_told_once_whenever_a_signal_handler_raises() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RAISING_SERVICE], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.stdout.split() == ["1000", "0", "True"], done.stderr[-2000:]


def test_a_signal_is_heard_while_the_model_is_busy(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(written(tmp_path, SIGNALS.format(taken="pass", busy=BUSY)))
    (running,) = blank.client.send((Infer(TIMEOUT_US), x(9)))
    wait_until((tmp_path / "spinning").exists)
    os.kill(blank.pid, signal.SIGTERM)
    wait_until(lambda: blank.client.call(Stats(), WorkerStats).state == "draining")
    assert blank.client.refusal(x(1)).code is Code.DRAINING
    assert not blank.client.has_reply(running)


# exceptions

RAISING = """
import asyncio

class NoText(Exception):
    def __str__(self):
        raise ValueError("no text")

class Endless(str):
    def __len__(self):
        raise OSError("no end")
    __getitem__ = strip = encode = __len__

class OddText(Exception):
    def __str__(self):
        return Endless("odd")

class Own(BaseException):
    pass

class Meta(type):
    @property
    def __name__(cls):
        raise RuntimeError("no name")

class Nameless(Exception, metaclass=Meta):
    pass

class Classless(Exception):
    @property
    def __class__(self):
        raise RuntimeError("no class")

class Refusing:
    def __del__(self):
        raise RuntimeError("in __del__")

class Dict(dict):
    def get(self, *_):
        raise Own("in get")

def deep(n):
    return deep(n + 1)

def group():
    return BaseExceptionGroup("many", [ValueError("a"), Own("b")])

def chained():
    error = ValueError("last")
    error.__cause__ = error.__context__ = error
    return error

RAISED = [
    lambda: ValueError("caf\\udce9 \\ud800\\0\\x1b[2J\\n!"), NoText, OddText, lambda: Own("mine"),
    Nameless, Classless, lambda: asyncio.CancelledError("mine"), lambda: KeyboardInterrupt(),
    lambda: GeneratorExit("x"), lambda: SystemExit(3), lambda: StopIteration(4), group, chained,
    lambda: ValueError("x" * 10_000_000),
    lambda: ValueError(b"\\xff", object()), lambda: UnicodeDecodeError("utf-8", b"\\xff", 0, 1, "bad"),
]

class Model:
    def load(self, path):
        pass

    def predict(self, inputs):
        which = int(inputs["x"][0]) - 1
        if which < 0:
            return {"y": inputs["x"]}
        if which < len(RAISED):
            raise RAISED[which]()
        match which - len(RAISED):
            case 0: deep(0)
            case 1: return Dict(y=inputs["x"])
            case 2: Refusing(); raise Own("after __del__")
            case 3: return {"y": (value for value in inputs["x"])}
            case 4: return [Refusing()]
            case 5:
                def stop():
                    raise StopIteration
                return {"y": [stop() for _ in range(2)]}
        return {"y": inputs["x"] * 2}
"""
CASES = 22


def test_whatever_a_model_raises_is_answered_and_the_worker_lives(
    blank: WorkerProcess, tmp_path: Path
) -> None:
    blank.load(written(tmp_path, RAISING, batching=Batching(1)))
    failures = [blank.client.refusal(x(number)) for number in range(1, CASES + 1)]
    assert answered(blank, x(CASES + 1)) == [2 * CASES + 2], "all of them were tried"
    for failure in failures:
        assert failure.code in (Code.MODEL_FAILED, Code.OUTPUT_INVALID), failure
        assert len(failure.message) < ERROR_CHARS_MAX + 100
        assert len(failure.traceback) <= TRACEBACK_CHARS_MAX
    said = [failure.message for failure in failures]
    assert "ValueError: caf\\udce9 \\ud800\\x00\\x1b[2J\n! (model.py, line" in said[0]
    assert "NoText: (its text can't be had: ValueError) (model.py, line" in said[1]
    assert "Own: mine (model.py" in said[3]
    assert "asyncio" not in said[6]
    assert "RecursionError: maximum recursion depth exceeded" in said[16]
    assert "in deep" in failures[16].traceback
    client = blank.client
    together = client.infer_all([x(0), x(4), x(0), x(17), x(0)])
    assert [type(message).__name__ for message, _ in together] == ["Result", "Failure"] * 2 + ["Result"]
    assert blank.client.call(Stats(), WorkerStats).failures == CASES + 2


TRACED = """import numpy as np

class Model:
    def load(self, path):
        self.weights = {"layer1": 2}
        if "load" in path:
            self.look("layer.0")
    def look(self, name):
        return self.weights[name]
    def predict(self, inputs):
        if inputs["x"][0] < 0:
            np.zeros(2).reshape(5)
        return {"y": self.look("layer.1" if inputs["x"][0] else "layer1") * inputs["x"]}
"""


def test_a_failure_says_where_in_the_models_code_it_happened(blank: WorkerProcess, tmp_path: Path) -> None:
    (tmp_path / "load").mkdir()
    failure = blank.client.call(written(tmp_path / "load", TRACED), Failure)
    assert failure.message == "app/small: KeyError: 'layer.0' (model.py, line 9)"
    assert "line 7, in load" in failure.traceback
    blank.load(written(tmp_path, TRACED))
    failure = blank.client.refusal(x(1))
    assert failure.message == "the model raised KeyError: 'layer.1' (model.py, line 9)"
    lines = failure.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith('model.py", line 13, in predict')
    assert lines[-1] == "KeyError: 'layer.1'"
    failure = blank.client.refusal(x(-1))
    assert failure.message.endswith("(model.py, line 12)"), "the model's line, not the library's"


def test_a_failing_first_inference_is_traced_too(blank: WorkerProcess, tmp_path: Path) -> None:
    source = TRACED.replace('"layer.1" if inputs["x"][0] else "layer1"', '"layer.2"')
    failure = blank.client.call(written(tmp_path, source), Failure)
    assert failure.code is Code.LOAD_FAILED
    assert "the model raised KeyError: 'layer.2' (model.py, line 9); " in failure.message
    assert "the model was asked with zeros" in failure.message
    assert "in predict" in failure.traceback


REFUSING = """
from understudy import InputError

class OutOfRange(InputError):
    pass

class Model:
    def load(self, path): ...

    def predict(self, inputs):
        if (inputs["x"] == 5).any():
            raise OutOfRange("x: at most 4 is\\ud800 known")
        if (inputs["x"] == 6).any():
            raise InputError
        return {"y": inputs["x"]}
"""


def test_a_model_can_say_that_the_input_is_bad(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(written(tmp_path, REFUSING))
    (_, _), (guilty, _), (_, _) = blank.client.infer_all([x(1), x(5), x(2)])
    assert (guilty.code, guilty.message) == (Code.INVALID_ARGUMENT, "x: at most 4 is\\ud800 known")
    assert guilty.traceback == ""
    assert blank.client.refusal(x(6)).message == "the model refuses the input"
    assert blank.client.call(Stats(), WorkerStats).failures == 0


# outputs

OUTPUTS = """
import numpy as np

class Angry(np.ndarray):
    def tolist(self):
        raise RuntimeError("not me")
    ravel = astype = tolist

class Text(str):
    def encode(self, *_):
        raise RuntimeError("not me")

KEPT = np.zeros(3)
CASES = [
    lambda: np.array(["a", np.str_("b"), Text("c")], dtype=object),
    lambda: np.array(["\\ud800", "b", "c"], dtype=object),
    lambda: np.array(["\\udce9", "b", "c"]),
    lambda: np.array([["a"], ["b"], ["c"]], dtype=object)[:, 0].view(Angry),
    lambda: np.array([["a"], ["b"]], dtype=object),
    lambda: np.array([[], {}, None], dtype=object),
    lambda: np.ma.masked_array(np.array(["a", "b", "c"], dtype=object), [0, 1, 0]),
    lambda: np.array(["c", "x", "b", "x", "a", "x"], dtype=object)[::2][::-1],
    lambda: np.broadcast_to(np.array("a", dtype=object), (3,)),
]

class Model:
    def load(self, path): ...

    def predict(self, inputs):
        return {"y": CASES[int(inputs["x"][0])]()}
"""


def test_odd_arrays_are_taken_or_refused(blank: WorkerProcess, tmp_path: Path) -> None:
    outputs = (TensorSpec("y", "BYTES", (3,)),)
    fixed = (TensorSpec("x", "INT64", (1,)),)
    blank.load(written(tmp_path, OUTPUTS, inputs=fixed, outputs=outputs))

    def said(case: int) -> Any:
        message, payload = blank.client.infer(x(case))
        if isinstance(message, Failure):
            assert message.code is Code.OUTPUT_INVALID
            return message.message
        return msgspec.json.decode(payload)["outputs"][0]["data"]

    assert [said(0), said(3), said(7), said(8)] == [["a", "b", "c"]] * 3 + [["a", "a", "a"]]
    assert said(1) == said(2) == "output 'y' has text that is not valid Unicode; return bytes instead"
    assert "shape [2,1], which doesn't fit [3]" in said(4)
    assert "neither text nor bytes" in said(5)
    assert "is a masked array" in said(6)


def test_an_answer_that_can_not_be_sent_is_said(zygote: Zygote, tmp_path: Path) -> None:
    source = """
import numpy as np
class Model:
    def load(self, path): ...
    def predict(self, inputs): return {"y": np.zeros(inputs["x"][0], np.int64)}
"""
    fixed = {"inputs": (TensorSpec("x", "INT64", (1,)),), "outputs": (TensorSpec("y", "INT64", (-1,)),)}
    with worker_process(zygote, settings=WorkerTuning(frame_bytes_max=100_000)) as worker:
        worker.load(written(tmp_path, source, **fixed))
        failure = worker.client.refusal(x(100_000))
        assert failure.code is Code.TOO_LARGE
        assert "and 34465 can be sent (worker.frame_bytes_max)" in failure.message
        assert answered(worker, x(2)) == [0, 0]


# processes

POOLS = """
import multiprocessing, os, signal, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor

def double(value):
    return 2 * value

def sleep(_):
    time.sleep(60)

class Model:
    def load(self, path):
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        assert self.pool.submit(double, 2).result() == 4

    def predict(self, inputs):
        x = inputs["x"]
        match int(x[0]):
            case 1 | 2 | 3 as which:
                context = multiprocessing.get_context(["fork", "spawn", "forkserver"][which - 1])
                with context.Pool(2) as pool:  # which ends its processes by SIGTERM
                    return {"y": x * 0 + sum(pool.map(double, [1, 2]))}
            case 4:
                with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
                    return {"y": x * 0 + pool.submit(double, 4).result()}
            case 5:
                ran = subprocess.run([sys.executable, "-c", "print(6)"], capture_output=True, check=True)
                return {"y": x * 0 + int(ran.stdout)}
            case 6:
                child = os.fork()
                if child == 0:
                    sys.exit(9)
                return {"y": x * 0 + os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}
            case 7:
                child = os.fork()
                if child == 0:
                    return {"y": x}
                return {"y": x * 0 + os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}
            case 8:
                child = multiprocessing.get_context("fork").Process(target=sleep, args=(1,))
                child.start()
                child.terminate()
                child.join()
                return {"y": x * 0 + child.exitcode}
        return {"y": x * 0 + self.pool.submit(double, 8).result()}
"""


def test_a_model_may_have_processes(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(written(tmp_path, POOLS))
    answers = [answered(blank, x(case)) for case in range(1, 10)]
    assert answers == [[6], [6], [6], [8], [6], [9], [0], [-signal.SIGTERM], [16]]
    blank.client.call(Drain(), Drained)
    assert blank.exit_status() == 0


STARTING = """
import os, subprocess, sys, threading, time

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]

def start(how):
    match how:
        case "fork":
            child = os.fork()
            if child == 0:
                time.sleep(60)
            return child
        case "session":
            return subprocess.Popen(SLEEP, start_new_session=True).pid
        case "daemon":
            script = f"import subprocess as s; print(s.Popen({SLEEP}, start_new_session=True, stdout=-3).pid)"
            return int(subprocess.run([sys.executable, "-c", script], stdout=-1).stdout)
        case "thread":
            started = []
            thread = threading.Thread(target=lambda: started.append(start("fork")))
            thread.start()
            thread.join()
            return started[0]

class Model:
    def load(self, path): ...

    def predict(self, inputs):
        if not inputs["x"][0]:
            return {"y": inputs["x"]}
        return {"y": inputs["x"] * 0 + [start(how) for how in ("fork", "session", "daemon", "thread")]}
"""
FOUR = {"inputs": (TensorSpec("x", "INT64", (4,)),), "outputs": (TensorSpec("y", "INT64", (4,)),)}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_no_process_of_a_model_outlives_a_drained_worker(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(written(tmp_path, STARTING, **FOUR))
    children = answered(blank, x(1, 1, 1, 1))
    assert all(map(is_running, children))
    blank.client.call(Drain(), Drained)
    assert blank.exit_status() == 0
    assert not any(map(is_running, children))


def test_no_process_of_a_model_outlives_a_killed_worker_and_others_are_left_alone(tmp_path: Path) -> None:
    load = written(tmp_path, STARTING, **FOUR)
    with (
        tempfile.TemporaryDirectory(prefix="understudy-") as folder,
        AgentsZygote(Path(folder)) as zygote,
    ):
        paths = [Path(folder, name) for name in ("one", "two")]
        pids = [zygote.fork(path) for path in paths]
        with connected(paths[0]) as one, connected(paths[1]) as two:
            assert isinstance(one.call(load, Loaded), Loaded)
            assert isinstance(two.call(load, Loaded), Loaded)
            children, others = (client.answer(x(1, 1, 1, 1))["outputs"][0]["data"] for client in (one, two))
            os.kill(pids[0], signal.SIGKILL)
            assert one.closed(), "at once: no child holds the connection"
            assert zygote.answer() == Exited(pids[0], -signal.SIGKILL)
            wait_until(lambda: not any(map(is_running, children)))
            assert all(map(is_running, others))
            assert two.answer(x(0, 0, 0, 0))
        os.kill(pids[1], signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, others)))


FORKING = """
import os, socket, time

class Model:
    def load(self, path):
        self.own = socket.socketpair()

    def predict(self, inputs):
        child = inputs["x"][0] and os.fork()
        if inputs["x"][0] and child == 0:
            time.sleep(60)
        return {"y": inputs["x"] * 0 + child}
"""


def test_a_forked_child_has_none_of_the_workers_connections(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(written(tmp_path, FORKING))

    def sockets(pid: int) -> set[str]:
        links: set[str] = set()
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed just now
                links.add(os.readlink(path))
        return {link for link in links if link.startswith("socket:")}

    (child,) = answered(blank, x(1))
    wait_until(lambda: len(sockets(child)) == 2)  # the model's own pair
    assert len(sockets(blank.pid)) > 4
    blank.client.call(Drain(), Drained)
    assert blank.exit_status() == 0
    assert not is_running(child)


# parameters

PARAMETERS = """
class Model:
    def load(self, path): ...

    def predict(self, inputs, *, parameters):
        assert isinstance(parameters, dict)
        by = parameters.pop("by", 1)  # its own copy
        if "fail" in parameters:
            raise KeyError(repr(sorted(parameters.items())))
        return {"y": inputs["x"] * int(by)}
"""


def test_parameters_reach_a_model_that_asks_for_them(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(written(tmp_path, PARAMETERS))
    bodies = [x(1), *(x(1, parameters={"by": by}) for by in (3, 3.0, True, "5", 3))]
    answers = blank.client.infer_all(bodies)
    assert [msgspec.json.decode(body)["outputs"][0]["data"] for _, body in answers] == [
        [1], [3], [3], [1], [5], [3],
    ]  # fmt: skip
    rows = [result.rows for result, _ in answers]
    assert rows == [1, 2, 1, 1, 1, 2], "only equals share a batch"
    failure = blank.client.refusal(x(1, parameters={"fail": 1, "priority": 7, "binary_data_output": False}))
    assert "[('fail', 1), ('priority', 7)]" in failure.message
    failure = blank.client.refusal(x(1, parameters={"by": "9" * 70_000}))
    assert failure.code is Code.INVALID_ARGUMENT
    assert "65536 are allowed" in failure.message


# optional inputs

OPTIONAL = """
class Model:
    def load(self, path): ...

    def predict(self, inputs):
        return {"y": inputs["x"] + inputs.get("b", 10)}
"""


def test_an_input_that_is_left_out_is_missing_in_what_predict_gets(
    blank: WorkerProcess, tmp_path: Path
) -> None:
    optional = (*SPECS["inputs"], TensorSpec("b", "INT64", (-1,), optional=True))
    blank.load(written(tmp_path, OPTIONAL, inputs=optional))
    full = request(tensor("x", "INT64", [1], [1]), tensor("b", "INT64", [1], [2]))
    answers = blank.client.infer_all([x(1), full, x(2), full])
    assert [msgspec.json.decode(body)["outputs"][0]["data"] for _, body in answers] == [[11], [3], [12], [3]]
    assert blank.client.refusal(request(tensor("b", "INT64", [1], [2]))).code is Code.INVALID_ARGUMENT


# sizes and names

MANY = """
import numpy as np

class Model:
    def load(self, path): ...

    def predict(self, inputs):
        return {name: inputs["x"] for name in NAMES}
"""


def many(folder: Path, names: list[str]) -> Load:
    outputs = tuple(TensorSpec(name, "INT64", (-1,)) for name in names)
    return written(folder, MANY + f"\nNAMES = {names!a}\n", outputs=outputs)


def test_many_outputs_are_served_and_too_many_are_refused(blank: WorkerProcess, tmp_path: Path) -> None:
    failure = blank.client.call(many(tmp_path, [f"y{i}" for i in range(3000)]), Failure)
    assert failure.code is Code.LOAD_FAILED
    assert "the model has 3000 outputs; 1024 are allowed" in failure.message
    names = [f"{i:0512}" for i in range(1024)]
    loaded = blank.load(many(tmp_path, names))
    assert [spec.name for spec in loaded.outputs] == names, "more than a frame's header holds"
    assert len(blank.client.answer(x(4))["outputs"]) == 1024


def test_names_of_any_kind_are_served_or_refused(blank: WorkerProcess, tmp_path: Path) -> None:
    for name, message in (
        ("", "has no name"),
        ("y" * 1025, "its name has 1025 characters; 1024 are allowed"),
    ):
        assert message in blank.client.call(many(tmp_path, [name]), Failure).message
    names = ["späße", "a b", 'quote"s', "new\nline", "\0", "\N{SNOWMAN}", "../..", "%s{}", "'"]
    blank.load(many(tmp_path, names))
    assert [output["name"] for output in blank.client.answer(x(1))["outputs"]] == names
    chosen = blank.client.answer(x(1, outputs=[{"name": "new\nline"}]))
    assert [output["name"] for output in chosen["outputs"]] == ["new\nline"]


# any of it

ANYTHING = """
import random

class Odd(str):
    def __len__(self):
        raise MemoryError("odd")

def drawn(seed):
    draw = random.Random(seed)
    base = draw.choice([Exception, BaseException, ValueError, SystemExit, KeyboardInterrupt, GeneratorExit,
        StopIteration, StopAsyncIteration, MemoryError, OSError, UnicodeError, AttributeError])
    text = draw.choice(["", "plain", "\\ud800", "\\x00", "x" * 100_000, "\\x1b[2J", "%s {}", Odd("odd"), 7])
    def told(self):
        match draw.randrange(5):
            case 0: raise drawn(draw.random())
            case 1: return 7
            case 2: return told(self)
            case 3: raise RecursionError
        return text
    names = draw.sample(["__str__", "__repr__", "__getattribute__", "__eq__", "__hash__", "__bool__",
        "__reduce__", "__traceback__", "__cause__", "__notes__", "args"], draw.randrange(5))
    members = {name: property(told) if draw.randrange(2) else told for name in names}
    return type(draw.choice(["Odd", "\\xe9", "A" * 1000]), (base,), members)

class Fails:
    def __init__(self, error): self.error = error
    def fail(self, *_): raise self.error
    __iter__ = __len__ = __getitem__ = __array__ = __call__ = __eq__ = fail
    def __del__(self): raise self.error

class Model:
    def load(self, path): ...

    def predict(self, inputs):
        seed = int(inputs["x"][0])
        if not seed:
            return {"y": inputs["x"]}
        draw, error = random.Random(-seed), drawn(seed)
        try:
            error = error(draw.choice(["text", b"bytes", Odd("odd")]))
        except BaseException as another:
            raise another
        match draw.randrange(6):
            case 0: return {"y": Fails(error)}
            case 1: return Fails(error)
            case 2: raise BaseExceptionGroup("many", [error, ValueError(seed)])
            case 3:
                try: raise error
                finally: raise drawn(seed + 1)
            case 4: return {"y": [each for each in Fails(error)]}
        raise error
"""
DRAWN = 600


def test_no_exception_ends_a_worker(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(written(tmp_path, ANYTHING, queue_rows_max=DRAWN, batching=Batching(2)))
    seeds = range(1, DRAWN + 1)
    answers = blank.client.infer_all([x(seed) for seed in seeds])
    for seed, (failure, _) in zip(seeds, answers, strict=True):
        assert isinstance(failure, Failure), seed
        codes = (Code.MODEL_FAILED, Code.OUTPUT_INVALID, Code.OUT_OF_MEMORY)
        assert failure.code in codes, (seed, failure)
    assert answered(blank, x(0)) == [0]
