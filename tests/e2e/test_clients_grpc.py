"""Other people's gRPC clients against a running cluster, and against one that loses a node."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from calling import Calls, calling
from clients_cluster import ECHO, IMAGE, LINEAR, ClientsCluster, echo_arrays
from perf_analyzer import perf_analyzer, run_perf_analyzer
from triton_grpc import aio_client as triton_aio
from triton_grpc import client as triton
from tritonclient.utils import InferenceServerException


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    """Of every datatype, as the client wants them."""
    return {n: a.astype(ml_dtypes.bfloat16) if n == "bf16" else a for n, a in echo_arrays().items()}


def inputs(values: dict[str, np.ndarray[Any, Any]]) -> list[triton.InferInput]:
    made = []
    for name, array in values.items():
        made.append(triton.InferInput(name, list(array.shape), name.upper()))
        made[-1].set_data_from_numpy(array)
    return made


def linear_input(first: float = 1.0) -> list[triton.InferInput]:
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([[first, 2.0, 3.0, 4.0]], np.float32))
    return [tensor]


def assert_echoed(result: triton.InferResult) -> None:
    for name, array in arrays().items():
        np.testing.assert_array_equal(result.as_numpy(f"{name}_out"), array)


@pytest.fixture(scope="module")
def client(cluster: ClientsCluster) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(cluster.grpc) as made:
        yield made


def parameters(result: triton.InferResult) -> dict[str, str]:
    return {name: value.string_param for name, value in result.get_response().parameters.items()}


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(LINEAR)
    assert client.is_model_ready(LINEAR, "1")
    assert not client.is_model_ready(LINEAR, "7")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata().name == "understudy"
    metadata = client.get_model_metadata(LINEAR)
    assert (metadata.name, list(metadata.versions), metadata.platform) == (LINEAR, ["1"], "onnx_onnxv1")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 4])]


def test_what_triton_adds(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config(LINEAR, as_json=True)["config"]
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}]
    assert config["max_batch_size"] > 0
    client.infer(LINEAR, linear_input())
    [statistics] = client.get_inference_statistics(LINEAR).model_stats
    assert statistics.inference_stats.success.count >= 1
    assert {(m.name, m.state) for m in client.get_model_repository_index().models} >= {
        (ECHO, "READY"),
        (LINEAR, "READY"),
    }
    client.load_model(LINEAR)
    with pytest.raises(InferenceServerException, match="FAILED_PRECONDITION"):
        client.unload_model(LINEAR)


def test_every_datatype_comes_back(client: triton.InferenceServerClient) -> None:
    result = client.infer(ECHO, inputs(arrays()), request_id="q-1")
    assert_echoed(result)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (ECHO, "1", "q-1")
    assert parameters(result) == {"understudy-variant": "full", "understudy-version": "1"}


def test_only_what_was_asked_for_comes_back(client: triton.InferenceServerClient) -> None:
    result = client.infer(ECHO, inputs(arrays()), outputs=[triton.InferRequestedOutput("int8_out")])
    assert [output.name for output in result.get_response().outputs] == ["int8_out"]


def test_classes_come_back_as_text(client: triton.InferenceServerClient) -> None:
    asked = [triton.InferRequestedOutput("y", class_count=2)]
    found = client.infer(LINEAR, linear_input(), outputs=asked).as_numpy("y")
    assert found.shape == (1, 2)
    assert found[0, 0].count(b":") == 1


def test_large_images(client: triton.InferenceServerClient) -> None:
    images = np.random.default_rng(1).random((2, 3, 224, 224), np.float32)
    tensor = triton.InferInput("x", list(images.shape), "FP32").set_data_from_numpy(images)
    means = client.infer(IMAGE, [tensor]).as_numpy("y")
    np.testing.assert_allclose(means, images.mean((2, 3)), rtol=1e-4)


def test_versions(client: triton.InferenceServerClient) -> None:
    assert client.infer(LINEAR, linear_input(), model_version="1").as_numpy("y").shape == (1, 3)
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.infer(LINEAR, linear_input(), model_version="7")


def test_a_compressed_call(client: triton.InferenceServerClient) -> None:
    assert_echoed(client.infer(ECHO, inputs(arrays()), compression_algorithm="gzip"))


def test_calls_of_the_asynchronous_client(cluster: ClientsCluster) -> None:
    async def calls() -> None:
        async with triton_aio.InferenceServerClient(cluster.grpc) as client:
            assert await client.is_server_ready()
            results = await asyncio.gather(*[client.infer(ECHO, inputs(arrays())) for _ in range(20)])
            for result in results:
                assert_echoed(result)

    cluster.run(calls())


def test_a_stream_answers_in_order_and_survives_a_bad_request(cluster: ClientsCluster) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(cluster.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for i in range(50):
            client.async_stream_infer(LINEAR, linear_input(i), request_id=str(i))
        client.async_stream_infer("nobody", linear_input())
        client.async_stream_infer(LINEAR, linear_input(), request_id="last", enable_empty_final_response=True)
        for i in range(50):
            result, error = answers.get(timeout=10)
            assert error is None
            assert result.get_response().id == str(i)
        assert "nobody" in str(answers.get(timeout=10)[1])
        result, _ = answers.get(timeout=10)
        assert result.get_response().parameters["triton_final_response"].bool_param
        client.stop_stream()


def test_streams_of_the_asynchronous_client(cluster: ClientsCluster) -> None:
    async def stream() -> None:
        async def requests() -> Any:
            for i in range(10):
                yield {"model_name": LINEAR, "inputs": linear_input(i), "request_id": str(i)}

        async with triton_aio.InferenceServerClient(cluster.grpc) as client:
            seen = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                seen.append(result.get_response().id)
            assert seen == [str(i) for i in range(10)]

    cluster.run(stream())


@pytest.mark.parametrize("mode", [[], ["--streaming", "--async"]], ids=["calls", "stream"])
def test_perf_analyzer(cluster: ClientsCluster, tmp_path: Path, mode: list[str]) -> None:
    argv = perf_analyzer(cluster.grpc, tmp_path / "out.csv", "-i", "grpc", "--concurrency-range", "2", *mode)
    assert "Throughput" in run_perf_analyzer(argv)


def test_no_client_notices_that_a_node_dies(cluster: ClientsCluster, tmp_path: Path) -> None:
    argv = perf_analyzer(cluster.grpc, tmp_path / "out.csv", "-i", "grpc", "--request-rate-range", "50")

    def synchronous(calls: Calls) -> None:
        with triton.InferenceServerClient(cluster.grpc) as client:
            calls.repeat(lambda: assert_echoed(client.infer(ECHO, inputs(arrays()), client_timeout=5)))

    def asynchronous(calls: Calls) -> None:
        async def run() -> None:
            async with triton_aio.InferenceServerClient(cluster.grpc) as client:

                async def call() -> None:
                    asked = [client.infer(ECHO, inputs(arrays()), client_timeout=5) for _ in range(4)]
                    for result in await asyncio.gather(*asked):
                        assert_echoed(result)

                await calls.repeat_async(call)

        asyncio.run(run())

    def streaming(calls: Calls) -> None:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

        def call() -> None:
            client.async_stream_infer(ECHO, inputs(arrays()))
            result, error = answers.get(timeout=10)
            assert error is None, error
            assert_echoed(result)

        with triton.InferenceServerClient(cluster.grpc) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            calls.repeat(call)

    def perf(calls: Calls) -> None:
        def call() -> None:
            run_perf_analyzer(argv)

        calls.repeat(call)

    with calling(synchronous, asynchronous, streaming, perf) as clients:
        *fast, slow = clients

        def each(count: int, moment: float) -> bool:
            done = [calls.failure is not None or calls.since(moment) >= count for calls in fast]
            return all(done) and (slow.failure is not None or slow.since(moment) >= 1)

        cluster.run(cluster.harness.until(lambda: each(20, 0.0), 60, "every client is answered"))
        with cluster.losing_a_node(ECHO) as lost:
            cluster.run(cluster.harness.until(lambda: each(50, lost), 60, "every client is answered on"))
    failures = {calls.thread.name: calls.failure for calls in clients if calls.failure is not None}
    assert not failures, cluster.harness.logs()
