"""Whatever a permitted body may hold, it is answered or refused, and the worker lives on inside its limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto
from worker_process import WorkerProcess, Zygote, connected, loading, request, tensor, worker_process

from onnx_graphs import node, save, value
from understudy.agent.limits import Groups
from understudy.core.agent.replicas import limit_mb, request_memory_mb
from understudy.settings.agent import AgentTuning
from understudy.settings.worker import WorkerTuning
from understudy.wire.errors import Code
from understudy.wire.frames import ENCODING_PROTOBUF, encode_frame
from understudy.wire.inference import ModelInferRequest
from understudy.wire.messages import Failure, Infer, Kind, Message, Result
from understudy.wire.records import ArtifactRef, Profile, Variant
from understudy.wire.tensors import DATATYPES

MB = 1024 * 1024
DATATYPE = {"BYTES": TensorProto.STRING, "FP32": TensorProto.FLOAT}
ANSWERS = {Code.INVALID_ARGUMENT, Code.TOO_LARGE, Code.BUSY}


@pytest.fixture(scope="module", params=DATATYPE)
def limited(
    request: pytest.FixtureRequest, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, WorkerProcess]]:
    """A worker under the limit that its agent would give it."""
    datatype: str = request.param
    kind = DATATYPE[datatype]
    path = tmp_path_factory.mktemp("echo") / "m.onnx"
    save(path, [node("Identity", ["x"], ["y"])], [value("x", kind, ["n"])], [value("y", kind, ["n"])])
    tuning = AgentTuning()
    with worker_process(zygote) as measuring:
        load = loading("onnx", path)
        load.measure_latency_runs = 2
        found = measuring.load(load)
    profile = Profile(40, found.memory_mb, 1, 1, "", found.memory_per_byte, found.output_per_byte)
    variant = Variant("v", "onnx", ArtifactRef("0" * 64, 1, "m.onnx"), 1.0, profile=profile)
    with worker_process(zygote) as worker:
        load = loading("onnx", path)
        load.request_memory_mb = request_memory_mb(variant, tuning)
        load.memory_per_byte, load.output_per_byte = found.memory_per_byte, found.output_per_byte
        Groups("", 1, controllers=()).limit((), worker.pid, limit_mb(variant, tuning, 0))
        worker.load(load)
        yield datatype, worker


def json_bodies(datatype: str, size: int) -> Iterator[bytes]:
    head = b'{"inputs":[{"name":"x","datatype":"%s","shape":[%d],"data":[' % (datatype.encode(), size // 2)
    elements = {
        "BYTES": [b'"a"', b'""', '"ü🙂"'.encode(), b'"' + b"x" * 1000 + b'"'],
        "FP32": [b"1", b"0.1", b"1e30"],
        "INT64": [b"7", b"1234567890123456789", b"-1"],
    }[datatype]
    for element in elements:
        count = size // (len(element) + 1)
        whole = head.replace(b"%d" % (size // 2), b"%d" % count, 1)
        yield whole + b",".join([element] * count) + b"]}]}"
    yield head + b"[" * size
    yield head + b",".join([b"[1]"] * (size // 4)) + b"]}]}"
    one = b'{"name":"x","datatype":"FP32","shape":[1],"data":[1],"parameters":{"a":1}}'
    yield b'{"inputs":[' + b",".join([one] * (size // len(one))) + b"]}"
    yield b'{"inputs":[],"parameters":{' + b",".join(b'"%d":1' % n for n in range(size // 12)) + b"}}"
    yield b'{"inputs":[{"name":"x","datatype":"FP32","shape":[' + b"1," * (size // 2) + b'1],"data":[]}]}'


def binary(datatype: str, size: int) -> tuple[Infer, bytes]:
    content = bytes(size) if datatype == "BYTES" else np.ones(size // 8, "<i8").tobytes()
    count = size // 4 if datatype == "BYTES" else size // DATATYPES[datatype].itemsize
    head = request(
        {"name": "x", "datatype": datatype, "shape": [count], "parameters": {"binary_data_size": size}}
    )
    return Infer(60_000_000, len(head)), head + content


def typed_contents(datatype: str, size: int) -> bytes:
    message = ModelInferRequest(model_name="m")
    field = {"BYTES": "bytes_contents", "FP32": "fp32_contents", "INT64": "int64_contents"}[datatype]
    count = size // {"BYTES": 2, "FP32": 4, "INT64": 1}[datatype]
    one = {"BYTES": b"", "FP32": 1.0, "INT64": 1}[datatype]
    given = message.inputs.add(name="x", datatype=datatype, shape=[count])
    getattr(given.contents, field).extend([one] * count)
    return bytes(message.SerializeToString())


def judged(*messages: Message) -> None:
    for message in messages:
        assert isinstance(message, Result) or (isinstance(message, Failure) and message.code in ANSWERS), (
            message
        )


def alive(datatype: str, worker: WorkerProcess) -> None:
    data: list[Any] = ["a"] if datatype == "BYTES" else [1]
    assert worker.client.answer(request(tensor("x", datatype, [1], data)))["outputs"][0]["data"] == data


@pytest.mark.parametrize("size", [8 * MB, 24 * MB])
def test_no_json_ends_a_worker(limited: tuple[str, WorkerProcess], size: int) -> None:
    datatype, worker = limited
    for body in json_bodies(datatype, size):
        message, _ = worker.client.infer(body, timeout_us=60_000_000)
        judged(message)
    alive(datatype, worker)


def test_no_binary_tensor_ends_a_worker(limited: tuple[str, WorkerProcess]) -> None:
    datatype, worker = limited
    for size in (8 * MB, 64 * MB):
        (stream,) = worker.client.send(binary(datatype, size))
        message, _ = worker.client.reply(stream)
        judged(message)
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(worker.socket)) for _ in range(8)]
        sent = [(client, client.send(binary(datatype, 4 * MB))[0]) for client in clients]
        judged(*[client.reply(stream)[0] for client, stream in sent])
    alive(datatype, worker)


def test_no_protobuf_ends_a_worker(limited: tuple[str, WorkerProcess]) -> None:
    datatype, worker = limited
    for size in (8 * MB, 64 * MB):
        frame = encode_frame(
            Kind.INFER, size, msgspec.msgpack.encode(Infer(60_000_000)), typed_contents(datatype, size),
            ENCODING_PROTOBUF,
        )  # fmt: skip
        worker.client.send_bytes(frame)
        message, _ = worker.client.reply(size)
        judged(message)
    alive(datatype, worker)


def test_an_answer_that_can_not_be_sent_is_refused_alone(zygote: Zygote, tmp_path: Path) -> None:
    shape = node("ConstantOfShape", ["n"], ["y"])
    path = save(
        tmp_path / "m.onnx",
        [shape],
        [value("n", TensorProto.INT64, [1])],
        [value("y", TensorProto.FLOAT, None)],
    )
    with worker_process(zygote, settings=WorkerTuning(frame_bytes_max=MB)) as worker:
        worker.load(loading("onnx", path))
        refused = worker.client.refusal(request(tensor("n", "INT64", [1], [2 * MB])))
        assert refused.code is Code.TOO_LARGE
        assert "ask for binary data, or for less at once" in refused.message
        assert worker.client.answer(request(tensor("n", "INT64", [1], [2])))["outputs"][0]["data"] == [0, 0]


def test_what_is_as_large_as_the_probe_is_answered_whatever_a_model_takes(
    zygote: Zygote, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    save(
        path,
        [node("Identity", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n"])],
        [value("y", TensorProto.FLOAT, ["n"])],
    )
    with worker_process(zygote) as worker:
        worker.load(loading("onnx", path, request_memory_mb=64.0, memory_per_byte=50.0 * MB))
        alive("FP32", worker)
        assert worker.client.refusal(request(tensor("x", "FP32", [2], [1, 2]))).code is Code.TOO_LARGE
