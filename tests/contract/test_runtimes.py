"""Every runtime serves alike: one suite, in real worker processes, on each of them.

The model of the suite has y = log(x) + table[i]: a negative x gives NaN, and an i outside the table raises.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from worker_process import WorkerProcess, Zygote, loading, request, tensor, worker_process

from understudy.wire.errors import Code
from understudy.wire.messages import (
    Cancel,
    Drain,
    Drained,
    Failure,
    Infer,
    Load,
    Ping,
    Pong,
    Probe,
    Probed,
    Result,
    Stats,
    WorkerStats,
    encode_message,
)
from understudy.wire.records import Batching, TensorSpec
from understudy.worker.raised import ERROR_CHARS_MAX

INPUTS = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("i", "INT64", (-1,)))
OUTPUTS = (TensorSpec("y", "FP32", (-1, 2)),)
TABLE = [0.0, 10.0, 20.0]
PYTHON_MODEL = """
import numpy as np

class Model:
    def load(self, path):
        self.table = np.array([0.0, 10.0, 20.0], np.float32)

    def predict(self, inputs):
        with np.errstate(invalid="ignore"):
            return {"y": np.log(inputs["x"]) + self.table[inputs["i"]][:, None]}
"""


def write_onnx_model(path: Path) -> None:
    nodes = [
        helper.make_node("Log", ["x"], ["log"]),
        helper.make_node("Gather", ["table", "i"], ["shift"]),
        helper.make_node("Unsqueeze", ["shift", "axes"], ["column"]),
        helper.make_node("Add", ["log", "column"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "suite",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("i", TensorProto.INT64, ["n"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(np.array(TABLE, np.float32), "table"),
            numpy_helper.from_array(np.array([1], np.int64), "axes"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def body(x: list[float], i: list[int], **more: object) -> bytes:
    return request(tensor("x", "FP32", [len(i), 2], x), tensor("i", "INT64", [len(i)], i), **more)


ONE = [1.0, 1.0]
GOOD = body(ONE, [0])
NAN = body([-1.0, 1.0], [0])
RAISING = body(ONE, [99])
# An index out of range: ONNX Runtime calls it an invalid argument; an IndexError may be a Python model's own.
RAISED = {"onnx": Code.INVALID_ARGUMENT, "python": Code.MODEL_FAILED}
PROBE = json.loads(body(ONE, [1]))


@pytest.fixture(scope="module", params=["onnx", "python"])
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = tmp_path_factory.mktemp(request.param)
    path = folder / ("model.onnx" if request.param == "onnx" else "model.py")
    if request.param == "onnx":
        write_onnx_model(path)
    else:
        path.write_text(PYTHON_MODEL)
    return loading(request.param, path, inputs=INPUTS, outputs=OUTPUTS, probe=PROBE)


@pytest.fixture
def worker(blank: WorkerProcess, load: Load) -> WorkerProcess:
    blank.load(load)
    return blank


@pytest.fixture(scope="module")
def long_lived(zygote: Zygote, load: Load) -> Iterator[WorkerProcess]:
    with worker_process(zygote) as worker:
        worker.load(load)
        yield worker


def stats(worker: WorkerProcess) -> WorkerStats:
    return worker.client.call(Stats(), WorkerStats)


def test_loading_measures_and_the_answer_is_right(blank: WorkerProcess, load: Load) -> None:
    assert stats(blank).state == "blank"
    loaded = blank.load(msgspec.structs.replace(load, measure_latency_runs=2))
    assert loaded.inputs == INPUTS
    assert loaded.outputs == OUTPUTS
    assert loaded.load_ms >= loaded.first_inference_ms > 0
    assert loaded.latency_ms > 0
    assert loaded.base_mb > 1
    answer = blank.client.answer(body([1, 1, 1, 1], [1, 2], id="q7"))
    assert answer == {
        "model_name": "app",
        "model_version": "3",
        "id": "q7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [10.0, 10.0, 20.0, 20.0]}],
    }
    seen = stats(blank)
    assert (seen.pid, seen.state, seen.replica, seen.app, seen.version, seen.variant) == (
        blank.pid, "ready", "r1", "app", 3, "small",
    )  # fmt: skip
    assert (seen.requests, seen.failures, seen.queued) == (1, 0, 0)
    assert seen.pss_mb > 1
    assert seen.infer_us_mean > 0


def test_a_blank_worker_refuses_requests(blank: WorkerProcess) -> None:
    assert blank.client.refusal(GOOD).code is Code.UNAVAILABLE
    assert blank.client.call(Probe(), Failure).code is Code.UNAVAILABLE
    blank.client.call(Ping(), Pong)


def test_what_can_not_be_loaded_is_said_and_the_worker_stays_blank(
    blank: WorkerProcess, load: Load, tmp_path: Path
) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"(\0 not a model")
    wrong_input = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("z", "INT64", (-1,)))
    cases: list[tuple[dict[str, object], str]] = [
        ({"path": str(tmp_path / "nowhere")}, "nowhere"),
        ({"path": str(garbage)}, "app/small"),
        ({"runtime": "julia"}, "'julia' is not known; valid: onnx, python"),
        ({"options": {"thread": 3}}, "thread: unknown field; "),
        ({"outputs": (TensorSpec("z", "FP32", (-1, 2)),)}, "'z'"),
        ({"outputs": (TensorSpec("y", "FP32", (-1, 5)),)}, "[-1,5]"),
        ({"inputs": wrong_input}, "'z'"),
        ({"probe": {"inputs": []}}, "the probe is not a valid request: missing input: 'x', 'i'"),
        ({"probe": json.loads(NAN)}, "output 'y' has NaN or infinity"),
        ({"probe": json.loads(RAISING)}, "99"),
    ]
    for changed, message in cases:
        wanted = {field: getattr(load, field) for field in load.__struct_fields__} | changed
        failure = blank.client.call(Load(**wanted), Failure)
        assert failure.code is Code.LOAD_FAILED, failure
        assert message in failure.message
        assert stats(blank).state == "blank"
    blank.load(load)
    assert blank.client.answer(GOOD)


def test_a_worker_is_loaded_once(worker: WorkerProcess, load: Load) -> None:
    assert worker.client.call(load, Failure).code is Code.CONFLICT
    assert worker.client.answer(GOOD)


def test_failures_of_the_model_are_told_apart_and_counted(worker: WorkerProcess, load: Load) -> None:
    nan, raising, bad = (worker.client.refusal(b) for b in (NAN, RAISING, b"{}"))
    assert (nan.code, nan.message) == (Code.OUTPUT_INVALID, "output 'y' has NaN or infinity")
    assert nan.context["reason"] == "not-finite"
    assert raising.code is RAISED[load.runtime]
    assert "99" in raising.message
    assert len(raising.message) < ERROR_CHARS_MAX + 50
    assert bad.code is Code.INVALID_ARGUMENT
    own = 1 + (raising.code is Code.MODEL_FAILED)
    assert stats(worker).failures == own, "the caller's mistakes are not the model's"
    assert worker.client.call(Probe(), Probed).latency_ms > 0


def test_a_batch_is_shared_and_only_the_guilty_fail(worker: WorkerProcess, load: Load) -> None:
    bodies = [body([np.e**n] * 2, [n % 3], id=str(n)) for n in range(20)]
    for answers in (worker.client.infer_all(bodies), worker.client.infer_all([NAN, *bodies, RAISING])):
        served = [(result, json.loads(payload)) for result, payload in answers if isinstance(result, Result)]
        assert [answer["id"] for _, answer in served] == [str(n) for n in range(20)]
        for n, (_, answer) in enumerate(served):
            assert answer["outputs"][0]["data"] == pytest.approx([n + TABLE[n % 3]] * 2, rel=1e-5, abs=1e-5)
        refused = [message.code for message, _ in answers if isinstance(message, Failure)]
        assert refused in ([], [Code.OUTPUT_INVALID, RAISED[load.runtime]])
    largest = max(result.rows for result, _ in worker.client.infer_all(bodies))
    assert largest > 1, "what arrives together runs together"


def test_a_bad_request_does_not_hurt_its_neighbours(worker: WorkerProcess) -> None:
    bad = body(ONE, [0]).replace(b"FP32", b"FP64")
    answers = worker.client.infer_all([GOOD, bad, b"[", GOOD])
    assert [type(message) for message, _ in answers] == [Result, Failure, Failure, Result]
    assert answers[1][0].message == "input 'x': datatype 'FP64' is not the model's 'FP32'"


def test_rows_max_bounds_a_batch(blank: WorkerProcess, load: Load) -> None:
    limited = {field: getattr(load, field) for field in load.__struct_fields__}
    blank.load(Load(**limited | {"batching": Batching(rows_max=2, wait_us=1500)}))
    answers = blank.client.infer_all([GOOD] * 7)
    assert max(result.rows for result, _ in answers) == 2
    assert blank.client.answer(GOOD), "one alone waits no longer than wait_us"


def test_a_request_whose_time_is_up_is_not_run(worker: WorkerProcess) -> None:
    message, _ = worker.client.infer(GOOD, timeout_us=0)
    assert message.code is Code.TIMEOUT
    assert message.context["waited_ms"] >= 0


def test_a_cancelled_request_is_not_answered(worker: WorkerProcess) -> None:
    stream = 1_000_000
    # In one write, so that the request is still queued when it is cancelled.
    worker.client.send_bytes(
        encode_message(Infer(10_000_000), stream, GOOD) + encode_message(Cancel(), stream)
    )
    assert worker.client.answer(GOOD)
    assert not worker.client.has_reply(stream)


def test_draining_finishes_what_is_queued(worker: WorkerProcess) -> None:
    requests = [(Infer(10_000_000), GOOD)] * 5
    streams = worker.client.send(*requests, (Drain(), b""), *requests)
    answers = [worker.client.reply(stream)[0] for stream in streams]
    assert all(isinstance(answer, Result) for answer in answers[:5])
    assert answers[5] == Drained(finished=5)
    assert [answer.code for answer in answers[6:]] == [Code.DRAINING] * 5
    assert worker.client.closed()
    assert worker.exit_status() == 0
    assert not worker.socket.exists()


def test_a_signal_drains(worker: WorkerProcess) -> None:
    streams = worker.client.send(*[(Infer(10_000_000), GOOD)] * 50)
    worker.client.reply(streams[0])
    os.kill(worker.pid, signal.SIGTERM)
    assert all(isinstance(worker.client.reply(stream)[0], Result | Failure) for stream in streams[1:])
    assert worker.exit_status() == 0


def test_onnx_says_what_its_signature_is(blank: WorkerProcess, tmp_path: Path) -> None:
    write_onnx_model(tmp_path / "m.onnx")
    loaded = blank.load(
        loading("onnx", tmp_path / "m.onnx", probe=PROBE, options={"threads": 2, "optimization": "basic"})
    )
    assert loaded.inputs == INPUTS
    assert [(spec.name, spec.datatype, spec.shape) for spec in loaded.outputs] == [("y", "FP32", (-1, 2))]
    assert loaded.outputs[0].hint, "a file promises no shape of an output"
    assert blank.client.answer(GOOD)["outputs"][0]["data"] == [0.0, 0.0]


def test_onnx_needs_a_provider_unless_the_cpu_may_replace_it(blank: WorkerProcess, tmp_path: Path) -> None:
    write_onnx_model(tmp_path / "m.onnx")
    rare = "MIGraphXExecutionProvider"
    load = loading("onnx", tmp_path / "m.onnx", probe=PROBE, options={"providers": [rare]})
    failure = blank.client.call(load, Failure)
    assert failure.code is Code.LOAD_FAILED
    assert f"execution provider {rare} is not available here; available: " in failure.message
    load.options = {"providers": [rare, "CPUExecutionProvider"]}
    blank.load(load)
    assert blank.client.answer(GOOD)


def test_onnx_takes_and_gives_text(blank: WorkerProcess, tmp_path: Path) -> None:
    text = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in ("t", "u")]
    graph = helper.make_graph([helper.make_node("Identity", ["t"], ["u"])], "echo", text[:1], text[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    blank.load(loading("onnx", tmp_path / "m.onnx"))
    answer = blank.client.answer(request(tensor("t", "BYTES", [2], ["", "näh"])))
    assert answer["outputs"] == [tensor("u", "BYTES", [2], ["", "näh"])]
    refused = blank.client.refused_binary("t", "BYTES", [1], b"\x01\0\0\0\xff")
    assert refused.code is Code.INVALID_ARGUMENT
    assert "takes text, and this is not UTF-8" in refused.message


def test_onnx_outputs_that_are_no_tensors_are_not_served(blank: WorkerProcess, tmp_path: Path) -> None:
    parts = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["parts"]), helper.make_node("Neg", ["x"], ["y"])]
    opset = [helper.make_opsetid("", 17)]
    for outputs in ([parts, y], [parts]):
        graph = helper.make_graph(nodes, "parts", [x], outputs)
        onnx.save(
            helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / f"{len(outputs)}.onnx"
        )
    failure = blank.client.call(loading("onnx", tmp_path / "1.onnx"), Failure)
    assert "output 'parts' is a seq(tensor(float))" in failure.message
    loaded = blank.load(loading("onnx", tmp_path / "2.onnx"))
    assert [spec.name for spec in loaded.outputs] == ["y"]
    assert "output 'parts' is a seq(tensor(float)), which can't be served, and is left out" in loaded.notes[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "i", "y"]),
        "datatype": st.sampled_from(["FP32", "INT64", "BYTES", "?"]),
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "data": st.lists(st.integers(-3, 3) | st.floats(), max_size=4) | JSON,
    }
)
BODIES = (
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.lists(TENSORS, max_size=3).map(lambda tensors: json.dumps({"inputs": tensors}).encode())
    | st.lists(st.floats(width=32), min_size=2, max_size=2).map(lambda x: json.dumps({"inputs": [
        tensor("x", "FP32", [1, 2], x), tensor("i", "INT64", [1], [0])]}).encode())
)  # fmt: skip
REFUSALS = {Code.INVALID_ARGUMENT, Code.OUTPUT_INVALID, Code.MODEL_FAILED}


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(content=BODIES)
def test_whatever_the_body_is_the_worker_answers(long_lived: WorkerProcess, content: bytes) -> None:
    message, payload = long_lived.client.infer(content)
    if isinstance(message, Result):
        assert json.loads(payload)["model_name"] == "app"
    else:
        assert message.code in REFUSALS


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_nesting_is_refused(long_lived: WorkerProcess, depth: int) -> None:
    for content in (b"[" * depth, GOOD.replace(b"[1.0,1.0]", b"[" * depth + b"]" * depth)):
        assert long_lived.client.refusal(content).code is Code.INVALID_ARGUMENT
