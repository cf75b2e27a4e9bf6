"""Other people's HTTP clients against a running cluster, in health and while a node dies."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kserve
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from calling import Calls, calling
from clients_cluster import ECHO, IMAGE, LINEAR, ClientsCluster, echo_arrays
from kserve.inference_client import InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from perf_analyzer import perf_analyzer, run_perf_analyzer
from tritonclient.utils import InferenceServerException

Arrays = dict[str, np.ndarray[Any, Any]]
JSON_LENGTH = "Inference-Header-Content-Length"
X = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)


def arrays_for_triton() -> Arrays:
    return {
        name: array.astype(ml_dtypes.bfloat16) if name == "bf16" else array
        for name, array in echo_arrays().items()
    }


def triton_inputs(arrays: Arrays, binary: bool) -> list[Any]:
    inputs = []
    for name, array in arrays.items():
        tensor = tritonclient.http.InferInput(name, list(array.shape), name.upper())
        tensor.set_data_from_numpy(array, binary_data=binary or name == "bf16")
        inputs.append(tensor)
    return inputs


def triton_outputs(binary: bool) -> list[Any]:
    return [
        tritonclient.http.InferRequestedOutput(f"{name}_out", binary_data=binary) for name in echo_arrays()
    ]


def assert_echoed(result: Any, sent: Arrays) -> None:
    for name, array in sent.items():
        received = result.as_numpy(f"{name}_out")
        wanted = array
        if array.dtype == object and isinstance(received.flat[0], str):  # as JSON has it
            wanted = np.array([[e.decode() for e in row] for row in array], dtype=object)
        assert received.dtype == array.dtype, name
        assert received.tolist() == wanted.tolist(), name


@pytest.fixture
def triton(cluster: ClientsCluster) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(cluster.http) as client:
        yield client


# tritonclient


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_every_datatype_comes_back(triton: Any, binary_in: bool, binary_out: bool | None) -> None:
    sent = arrays_for_triton()
    if binary_in is False:
        sent["bytes"] = np.array([[b"", "näh".encode()], [b"a\0b", b"x"]], dtype=object)
    outputs = None if binary_out is None else triton_outputs(binary_out)
    result = triton.infer(ECHO, triton_inputs(sent, binary_in), outputs=outputs, request_id="r-1")
    assert_echoed(result, sent)
    assert result.get_response()["id"] == "r-1"


def test_bytes_that_are_not_text_come_back_in_binary_form_only(triton: Any) -> None:
    sent = {**arrays_for_triton(), "bytes": np.array([[b"\xff\xfe", b""]] * 2, dtype=object)}
    assert_echoed(triton.infer(ECHO, triton_inputs(sent, True)), sent)
    with pytest.raises(InferenceServerException, match="'bytes_out': has an element that is not UTF-8"):
        triton.infer(ECHO, triton_inputs(sent, True), outputs=triton_outputs(False))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(triton: Any, algorithm: str) -> None:
    rows = 20_000  # more than is decompressed on the event loop
    sent = {name: np.concatenate([array] * (rows // 2)) for name, array in arrays_for_triton().items()}
    for arrays in (arrays_for_triton(), sent):
        result = triton.infer(
            ECHO,
            triton_inputs(arrays, True),
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        assert_echoed(result, arrays)


def test_the_best_classes(triton: Any) -> None:
    wanted = [tritonclient.http.InferRequestedOutput("y", class_count=2)]
    plain = triton.infer(LINEAR, [linear_input()]).as_numpy("y")
    classes = triton.infer(LINEAR, [linear_input()], outputs=wanted).as_numpy("y")
    best = np.argsort(-plain[0])[:2]
    assert classes.tolist() == [[f"{plain[0, i]:f}:{i}".encode() for i in best]]


def test_large_images_in_binary_form(triton: Any) -> None:
    images = np.random.default_rng(1).random((2, 3, 224, 224), np.float32)
    tensor = tritonclient.http.InferInput("x", list(images.shape), "FP32").set_data_from_numpy(images)
    means = triton.infer(IMAGE, [tensor]).as_numpy("y")
    np.testing.assert_allclose(means, images.mean((2, 3)), rtol=1e-4)


def test_an_input_without_any_json(cluster: ClientsCluster) -> None:
    ask = cluster.harness.ask("POST", f"/v2/models/{LINEAR}/infer", X.tobytes(), f"{JSON_LENGTH}: 0\r\n")
    answer = cluster.run(ask)
    result = tritonclient.http.InferenceServerClient.parse_response_body(
        answer.body, header_length=int(answer.headers[JSON_LENGTH.lower()])
    )
    assert answer.headers["content-type"] == "application/octet-stream"
    assert result.as_numpy("y").shape == (1, 3)


def test_what_triton_clients_ask_about_a_server(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(ECHO)
    assert triton.is_model_ready(ECHO, "1")
    assert not triton.is_model_ready("absent")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    assert triton.get_model_metadata(LINEAR)["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
    ]
    config = triton.get_model_config(LINEAR)
    assert config["max_batch_size"] == 32
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]


def test_statistics_count_requests(triton: Any) -> None:
    def read() -> Any:
        return triton.get_inference_statistics(LINEAR)["model_stats"][0]

    before = read()
    for _ in range(3):
        triton.infer(LINEAR, [linear_input()])
    after = read()
    assert after["inference_count"] - before["inference_count"] == 3
    grown = after["inference_stats"]["success"]["ns"] - before["inference_stats"]["success"]["ns"]
    assert grown > 0
    assert abs(after["last_inference"] / 1000 - time.time()) < 60
    names = [app["name"] for app in triton.get_inference_statistics()["model_stats"]]
    assert names == [ECHO, IMAGE, LINEAR]


def test_the_repository_is_looked_at_but_not_changed(triton: Any) -> None:
    index = triton.get_model_repository_index()
    states = {model["name"]: model["state"] for model in index}
    assert states == dict.fromkeys((ECHO, IMAGE, LINEAR), "READY")
    triton.load_model(LINEAR)
    with pytest.raises(InferenceServerException, match="stays loaded"):
        triton.unload_model(LINEAR)
    with pytest.raises(InferenceServerException, match="unknown model 'absent'"):
        triton.load_model("absent")
    assert triton.is_model_ready(LINEAR)


def test_the_asynchronous_client(cluster: ClientsCluster) -> None:
    sent = arrays_for_triton()

    async def ask() -> None:
        async with tritonclient.http.aio.InferenceServerClient(cluster.http) as client:
            assert await client.is_server_ready()
            results = await asyncio.gather(
                *(client.infer(ECHO, triton_inputs(sent, binary)) for binary in (True, False) * 5)
            )
            for result in results:
                assert_echoed(result, sent)

    cluster.run(ask())


# kserve


def kserve_client() -> Any:
    return InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=10, verify=False))


def kserve_request(arrays: Arrays, binary: bool) -> Any:
    inputs = []
    for name, array in arrays.items():
        tensor = kserve.InferInput(name, list(array.shape), name.upper())
        tensor.set_data_from_numpy(array, binary_data=binary or name == "fp16")  # never JSON for kserve
        inputs.append(tensor)
    inputs.append(kserve.InferInput("bf16", [2, 2], "BF16", data=[[0.5, 1.0], [2.0, 3.0]]))
    outputs = [RequestedOutput(f"{name}_out", {"binary_data": binary}) for name in arrays]
    return kserve.InferRequest(ECHO, inputs, request_id="k-1", request_outputs=outputs)


@pytest.mark.parametrize("binary", [True, False])
def test_kserve_client(cluster: ClientsCluster, binary: bool) -> None:
    # kserve can send BF16 as JSON, but has no array to read it into.
    sent = {name: array for name, array in echo_arrays().items() if name != "bf16"}

    async def ask() -> None:
        client = kserve_client()
        url = f"http://{cluster.http}"
        assert await client.is_server_ready(url)
        assert await client.is_server_live(url)
        assert await client.is_model_ready(url, ECHO)
        response = await client.infer(url, kserve_request(sent, binary), model_name=ECHO)
        assert response.id == "k-1"
        received = {output.name: output for output in response.outputs}
        assert received.keys() == {f"{name}_out" for name in sent}
        for name, array in sent.items():
            values = received[f"{name}_out"].as_numpy().tolist()
            wanted = array.tolist()
            if name == "bytes":
                wanted = [[element.decode() for element in row] for row in wanted]
            assert values == wanted, name
        await client.close()

    cluster.run(ask())


# perf_analyzer


@pytest.mark.parametrize("form", ["binary", "json"])
def test_perf_analyzer(cluster: ClientsCluster, tmp_path: Path, form: str) -> None:
    tensors = ["--input-tensor-format", form, "--output-tensor-format", form]
    argv = perf_analyzer(cluster.http, tmp_path / "out.csv", "--concurrency-range", "2", *tensors)
    output = run_perf_analyzer(argv)
    assert "Throughput" in output
    assert (tmp_path / "out.csv").read_text().count("\n") >= 2


# while a node dies


def linear_input(binary: bool = True) -> Any:
    return tritonclient.http.InferInput("x", list(X.shape), "FP32").set_data_from_numpy(X, binary_data=binary)


def test_no_client_notices_that_a_node_dies(cluster: ClientsCluster, tmp_path: Path) -> None:
    sent = arrays_for_triton()
    argv = perf_analyzer(cluster.http, tmp_path / "out.csv", "--request-rate-range", "50")

    def triton_binary(calls: Calls) -> None:
        with tritonclient.http.InferenceServerClient(cluster.http) as client:
            calls.repeat(lambda: assert_echoed(client.infer(ECHO, triton_inputs(sent, True)), sent))

    def triton_json(calls: Calls) -> None:
        outputs = triton_outputs(False)
        with tritonclient.http.InferenceServerClient(cluster.http) as client:
            inputs = triton_inputs(sent, False)
            calls.repeat(lambda: assert_echoed(client.infer(ECHO, inputs, outputs=outputs), sent))

    def triton_aio(calls: Calls) -> None:
        async def run() -> None:
            async with tritonclient.http.aio.InferenceServerClient(cluster.http) as client:

                async def call() -> None:
                    assert_echoed(await client.infer(ECHO, triton_inputs(sent, True)), sent)

                await calls.repeat_async(call)

        asyncio.run(run())

    def kserve_json(calls: Calls) -> None:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": X.tolist()}]}

        async def run() -> None:
            client = kserve_client()

            async def call() -> None:
                answer = await client.infer(f"http://{cluster.http}", dict(body), model_name=LINEAR)
                assert len(answer.outputs[0].data) == 3

            await calls.repeat_async(call)
            await client.close()

        asyncio.run(run())

    def perf(calls: Calls) -> None:
        def call() -> None:
            run_perf_analyzer(argv)

        calls.repeat(call)

    with calling(triton_binary, triton_json, triton_aio, kserve_json, perf) as all_calls:

        def each(count: int, moment: float) -> Callable[[], bool]:
            return lambda: all(
                calls.failure is not None or calls.since(moment) >= (1 if calls is all_calls[-1] else count)
                for calls in all_calls
            )

        cluster.run(cluster.harness.until(each(20, 0.0), 30, "every client is answered"))
        with cluster.losing_a_node(ECHO) as lost:
            cluster.run(cluster.harness.until(each(100, lost), 60, "every client is answered on"))
    failures = {calls.thread.name: calls.failure for calls in all_calls if calls.failure is not None}
    assert not failures, cluster.harness.logs()


def test_the_api_describes_itself(cluster: ClientsCluster) -> None:
    document = cluster.run(cluster.harness.ask("GET", "/openapi.json")).json
    assert document["openapi"].startswith("3.1")
    for path, item in document["paths"].items():
        for method in set(item) - {"parameters"}:
            concrete = path.replace("{model}", LINEAR).replace("{version}", "1")
            answer = cluster.run(cluster.harness.ask(method.upper(), concrete))
            assert str(answer.status) in item[method]["responses"], (method, concrete, answer.status)
            json.loads(answer.body)
