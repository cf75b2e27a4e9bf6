"""What clients get for good, bad and hostile input: over real sockets, to a real cluster."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from families import ROWS, write_linear_app
from harness import Answer, AnswerReader, Harness, closed, infer_body, request_bytes, running

LIMITS = """
[gateway.cors]
origins = ["https://shop.example"]

[gateway.http]
header_bytes_max = 8192
headers_max = 50
body_bytes_max = 1000000
header_timeout_s = 1
body_timeout_s = 1
idle_timeout_s = 3
pipeline_max = 8
"""
INFER = "/v2/models/plain/infer"
SILENCE_S = 6.0  # longer than any limit above, so that what is to come has come


class Client:
    """Runs coroutines against one cluster that all tests here share."""

    def __init__(self, runner: asyncio.Runner, harness: Harness) -> None:
        self.runner = runner
        self.harness = harness

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    def ask(self, method: str, path: str, body: bytes = b"", headers: str = "") -> Answer:
        return self.run(self.harness.ask(method, path, body, headers))

    def raw(self, data: bytes, end: bool = False) -> list[Answer]:
        """Send bytes as they are; every answer until the server closes or is silent for long."""

        async def talk() -> list[Answer]:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.harness.ports[0])
            answers: list[Answer] = []
            stream = AnswerReader(reader)
            try:
                writer.write(data)
                if end:
                    writer.write_eof()
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        answers.append(await stream.next())
            except (OSError, TimeoutError):
                return answers
            finally:
                await closed(writer)

        return self.run(talk())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder: Path = tmp_path_factory.mktemp("http")
    write_linear_app(folder / "apps" / "plain", "plain", "standard")
    write_linear_app(
        folder / "apps" / "stoic",
        "stoic",
        "standard",
        'static = { outputs = [{ name = "y", datatype = "FP32", shape = [1, 3], data = [0.0, 0.0, 1.0] }] }',
    )
    with asyncio.Runner() as runner:
        context = running(folder, extra=LIMITS)
        harness = runner.run(context.__aenter__())
        yield Client(runner, harness)
        runner.run(context.__aexit__(None, None, None))


def error_of(answer: Answer) -> str:
    content = answer.json
    assert isinstance(content["error"], str)
    assert content["error"]
    return content["error"]


# What the protocol promises


def test_server_and_model_endpoints(client: Client):
    assert client.ask("GET", "/v2/health/live").json == {"live": True}
    assert client.ask("GET", "/v2/health/ready").json == {"ready": True}
    assert client.ask("GET", "/v2").json["name"] == "understudy"
    assert client.ask("GET", "/v2/models/plain/ready").status == 200
    model = client.ask("GET", "/v2/models/plain").json
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert client.ask("GET", "/v2/models/plain/versions/1").json == model


@pytest.mark.parametrize("path", ["http://gateway.example:8080/v2", "/v2/", "HTTP://x/v2/?a=b"])
def test_targets_are_understood_as_proxies_write_them(client: Client, path: str):
    assert client.ask("GET", path).json["name"] == "understudy"
    infer = path.replace("/v2", INFER)
    assert client.ask("POST", infer, infer_body(ROWS)).status == 200


def test_models_are_listed(client: Client):
    assert client.ask("GET", "/v2/models").json == {"models": ["plain", "stoic"]}


def test_options_tells_the_methods(client: Client):
    assert client.ask("OPTIONS", INFER).headers["allow"] == "OPTIONS, POST"
    assert client.ask("OPTIONS", "/v2/health/live").headers["allow"] == "GET, HEAD, OPTIONS"
    assert client.ask("OPTIONS", "*").status == 200
    assert client.ask("OPTIONS", "/nowhere").status == 404


def test_a_page_of_a_listed_origin_is_let_in(client: Client):
    origin = "Origin: https://shop.example\r\n"
    preflight = client.ask("OPTIONS", INFER, b"", f"{origin}Access-Control-Request-Method: POST\r\n")
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-origin"] == "https://shop.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    for body, status in ((infer_body(ROWS), 200), (b"nonsense", 400)):
        answer = client.ask("POST", INFER, body, origin)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (
            status,
            "https://shop.example",
        )
    other = client.ask("POST", INFER, infer_body(ROWS), "Origin: https://evil.example\r\n")
    assert "access-control-allow-origin" not in other.headers


def test_an_answer_says_who_gave_it(client: Client):
    answer = client.ask("POST", INFER, json.dumps({"id": "q-1", **json.loads(infer_body(ROWS))}).encode())
    assert (answer.status, answer.variant, answer.headers["understudy-version"]) == (200, "big", "1")
    assert not answer.degraded
    content = answer.json
    assert (content["model_name"], content["model_version"], content["id"]) == ("plain", "1", "q-1")
    assert content["outputs"][0]["shape"] == [1, 3]


def test_rows_of_one_request_are_answered_in_order(client: Client):
    rows = [[float(i), 1.0, 2.0, 3.0] for i in range(10)]
    together = client.ask("POST", INFER, infer_body(rows)).json["outputs"][0]["data"]
    apart = [client.ask("POST", INFER, infer_body([row])).json["outputs"][0]["data"] for row in rows]
    assert together == pytest.approx([value for row in apart for value in row], rel=1e-4)


def test_pipelined_requests_are_answered_in_order(client: Client):
    wire = b""
    for i in range(20):
        body = json.dumps({"id": str(i), **json.loads(infer_body(ROWS))}).encode()
        wire += request_bytes("POST", INFER, body)
        wire += request_bytes("GET", "/v2/health/live")
    answers = client.raw(wire)
    assert [a.json.get("id", "live") for a in answers] == [x for i in range(20) for x in (str(i), "live")]


def test_a_chunked_body_is_served(client: Client):
    body = infer_body(ROWS)
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7)
    )
    fields = "Host: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
    head = f"POST {INFER} HTTP/1.1\r\n{fields}\r\n".encode()
    assert [a.status for a in client.raw(head + chunks + b"0\r\n\r\n")] == [200]


def test_http_1_0_and_connection_close(client: Client):
    body = infer_body(ROWS)
    old = f"POST {INFER} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    [answer] = client.raw(old)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    [answer] = client.raw(request_bytes("POST", INFER, body, "Connection: close\r\n") + b"more of something")
    assert answer.status == 200


def test_expect_continue(client: Client):
    body = infer_body(ROWS)
    wire = request_bytes("POST", INFER, body, "Expect: 100-continue\r\n")
    assert [a.status for a in client.raw(wire)][-1] == 200


def test_an_offer_to_upgrade_is_ignored(client: Client):
    wire = request_bytes("POST", INFER, infer_body(ROWS), "Connection: Upgrade\r\nUpgrade: h2c\r\n")
    [answer] = client.raw(wire)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert answer.json["outputs"][0]["shape"] == [1, 3]


def test_large_bodies_on_a_connection_with_small_ones(client: Client):
    """Each large one is read past the HTTP parser; what comes after it, in the same read too, is not lost."""
    small = request_bytes("POST", INFER, infer_body(ROWS))
    large = request_bytes("POST", INFER, infer_body(ROWS).ljust(700_000))
    last = request_bytes("POST", INFER, infer_body(ROWS).ljust(200_000), "Connection: close\r\n")
    answers = client.raw(small + large + large + small + large + small + small + last)
    assert [answer.status for answer in answers] == [200] * 8
    assert len({answer.body for answer in answers}) == 1


def test_a_large_body_that_stalls_is_ended_and_given_back(client: Client):
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n".encode()
    (answer,) = client.raw(head + b" " * 300_000)
    assert answer.status == 408
    (answer,) = client.raw(head + b" " * 300_000, end=True)
    assert answer.status == 400
    assert client.ask("GET", "/understudy/status").json["bytes_held"] == 0


def test_a_deadline_from_the_client_is_kept(client: Client):
    answer = client.ask("POST", INFER, infer_body(ROWS), "Understudy-Timeout-Ms: 0.001\r\n")
    assert answer.status in (408, 503)
    answer = client.ask("POST", INFER, infer_body(ROWS), "Understudy-Timeout-Ms: soon\r\n")
    assert answer.status == 400
    assert "Understudy-Timeout-Ms" in error_of(answer)


def packed(body: bytes, encoding: str = "gzip") -> tuple[bytes, str]:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    return pack(body), f"Content-Encoding: {encoding}\r\n"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("padding", [0, 500_000])
def test_compressed_bodies(client: Client, encoding: str, padding: int):
    answer = client.ask("POST", INFER, *packed(infer_body(ROWS) + b" " * padding, encoding))
    assert answer.status == 200
    assert answer.json["outputs"] == client.ask("POST", INFER, infer_body(ROWS)).json["outputs"]


def test_a_body_that_takes_long_to_decompress_keeps_its_place(client: Client):
    body, header = packed(
        json.dumps({"id": "first", **json.loads(infer_body(ROWS))}).encode() + b" " * 900_000
    )
    wire = request_bytes("POST", INFER, body, header) + request_bytes("GET", "/v2/health/live")
    first, second = client.raw(wire, end=True)
    assert first.json["id"] == "first"
    assert second.json == {"live": True}


def test_binary_tensors_both_ways(client: Client):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = head + struct.pack("<4f", *ROWS[0])
    plain = client.ask("POST", INFER, infer_body(ROWS)).json["outputs"][0]["data"]
    for sent, more in ((body, ""), packed(body)):
        answer = client.ask("POST", INFER, sent, f"Inference-Header-Content-Length: {len(head)}\r\n{more}")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/octet-stream"
        json_bytes = int(answer.headers["inference-header-content-length"])
        assert json.loads(answer.body[:json_bytes])["outputs"][0]["parameters"] == {"binary_data_size": 12}
        assert struct.unpack("<3f", answer.body[json_bytes:]) == pytest.approx(plain, rel=1e-5)


# Bad requests: a 4xx that says what is wrong

BOMB = gzip.compress(bytes(50_000_000))
BAD_FORMS = {
    "not gzip": (infer_body(ROWS), "Content-Encoding: gzip\r\n", 400, "malformed gzip body"),
    "cut off": (packed(infer_body(ROWS))[0][:-4], "Content-Encoding: gzip\r\n", 400, "ends too early"),
    "unknown encoding": (infer_body(ROWS), "Content-Encoding: br\r\n", 415, "gzip and deflate"),
    "bomb": (BOMB, "Content-Encoding: gzip\r\n", 413, "decompressed body too large"),
    "length in words": (infer_body(ROWS), "Inference-Header-Content-Length: ten\r\n", 400, "not a length"),
    "negative length": (infer_body(ROWS), "Inference-Header-Content-Length: -1\r\n", 400, "not a length"),
    "length beyond the body": (b"{}", "Inference-Header-Content-Length: 3\r\n", 400, "has 2 bytes"),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_bad_forms_of_bodies(client: Client, name: str):
    body, headers, status, hint = BAD_FORMS[name]
    answer = client.ask("POST", INFER, body, headers)
    assert answer.status == status
    assert hint in error_of(answer)


TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
BAD_BODIES = {
    "empty": (b"", "JSON"),
    "not JSON": (b"{", "JSON"),
    "not an object": (b"[]", "object"),
    "not UTF-8": (b"\xff\xfe{}", ""),
    "no inputs": (b"{}", "inputs"),
    "unknown input": (json.dumps({"inputs": [{**TENSOR, "name": "z"}]}).encode(), "z"),
    "wrong datatype": (json.dumps({"inputs": [{**TENSOR, "datatype": "INT8"}]}).encode(), "FP32"),
    "no such datatype": (json.dumps({"inputs": [{**TENSOR, "datatype": "FP31"}]}).encode(), "FP31"),
    "wrong shape": (json.dumps({"inputs": [{**TENSOR, "shape": [1, 5], "data": [1] * 5}]}).encode(), "shape"),
    "shape and data differ": (json.dumps({"inputs": [{**TENSOR, "data": [1, 2]}]}).encode(), "x"),
    "negative shape": (json.dumps({"inputs": [{**TENSOR, "shape": [-1, 4]}]}).encode(), "shape"),
    "huge shape": (json.dumps({"inputs": [{**TENSOR, "shape": [2**40, 4]}]}).encode(), ""),
    "words for numbers": (json.dumps({"inputs": [{**TENSOR, "data": ["a", "b", "c", "d"]}]}).encode(), "x"),
    "deep nesting": (b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
    "twice the same input": (json.dumps({"inputs": [TENSOR, TENSOR]}).encode(), "x"),
    "unknown output": (json.dumps({"inputs": [TENSOR], "outputs": [{"name": "nope"}]}).encode(), "nope"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_bodies(client: Client, name: str):
    body, hint = BAD_BODIES[name]
    answer = client.ask("POST", INFER, body)
    assert answer.status == 400
    assert hint in error_of(answer)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/nobody/infer", 404),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("POST", "/v2/models/plain/versions/7/infer", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/v2/models/%2e%2e/ready", 404),
        ("GET", "/v2/models/nobody/config", 404),
        ("GET", "/v2/models/nobody/stats", 404),
        ("GET", "/v2/models/plain/versions/7/stats", 404),
        ("POST", "/v2/repository/models/nobody/load", 404),
        ("POST", "/v2/repository/models/plain/unload", 409),
        ("GET", "/v2/repository/index", 405),
        ("GET", INFER, 405),
        ("DELETE", "/v2/health/live", 405),
    ],
)
def test_wrong_paths_and_methods(client: Client, method: str, path: str, status: int):
    answer = client.ask(method, path, infer_body(ROWS) if method == "POST" else b"")
    assert answer.status == status
    error_of(answer)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready": true}', b" "])
def test_the_repository_index_with_any_body(client: Client, body: bytes):
    index = client.ask("POST", "/v2/repository/index", body).json
    assert [(app["name"], app["version"], app["state"]) for app in index] == [
        ("plain", "1", "READY"),
        ("stoic", "1", "READY"),
    ]


@pytest.mark.parametrize("path", ["index", "models/plain/load"])
@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready": 1, "parameters": {"config": "x"}}', b"\xff"])
def test_bad_questions_to_the_repository(client: Client, path: str, body: bytes):
    answer = client.ask("POST", f"/v2/repository/{path}", body)
    assert answer.status == 400
    error_of(answer)


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, 400),
        (b"hello\r\n\r\n", 400),
        (b"GET /v2 HTTP/9.9\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (
            b"POST /v2 HTTP/1.1\r\nHost: [::]\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
            400,
        ),
        (b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (
            b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n"
            + b"".join(b"H%d: x\r\n" % i for i in range(60))
            + b"\r\n",
            431,
        ),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 9000, 431),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000001\r\n\r\n", 413),
        (b"CONNECT other:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
)
def test_hostile_bytes(client: Client, wire: bytes, status: int):
    answers = client.raw(wire)
    assert [a.status for a in answers] == [status]
    error_of(answers[0])


def test_large_headers_behind_another_request_are_refused_too(client: Client):
    wire = (
        request_bytes("GET", "/v2")
        + b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nA: "
        + b"x" * 9000
        + b"\r\n\r\n"
    )
    assert [a.status for a in client.raw(wire)] == [200, 431]


def test_a_chunked_body_without_end_is_cut_off(client: Client):
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    assert [a.status for a in client.raw(head + (b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n") * 17)] == [413]


@pytest.mark.parametrize("wire", [b"POST ", request_bytes("POST", INFER, infer_body(ROWS))[:-5]])
def test_a_slow_client_gets_a_408(client: Client, wire: bytes):
    start = time.monotonic()
    [answer] = client.raw(wire)
    assert answer.status == 408
    assert time.monotonic() - start < SILENCE_S


def test_half_closed_connections(client: Client):
    wire = request_bytes("POST", INFER, infer_body(ROWS))
    assert [a.status for a in client.raw(wire, end=True)] == [200]
    answers = client.raw(wire[:-5], end=True)
    assert [a.status for a in answers] == [400]


def test_a_static_answer_is_declared_in_the_app_and_marked(client: Client):
    # Reached only when nothing else can answer; here just its validity at deploy time is at stake.
    assert client.ask("POST", "/v2/models/stoic/infer", infer_body(ROWS)).variant == "big"


# Nothing leaks


def test_counts_return_to_base_after_abuse(client: Client):
    async def status() -> dict[str, Any]:
        return await client.harness.gateway()

    gateway = client.harness.cluster.roles["gateway", "g1"].pid
    before = client.run(status())
    descriptors = descriptors_of(gateway)
    resident = resident_kb(gateway)
    abuse: list[Callable[[socket.socket], None]] = [
        lambda s: s.sendall(b"GET /v2 HTT"),
        lambda s: s.sendall(request_bytes("POST", INFER, infer_body(ROWS))),
        lambda s: s.sendall(request_bytes("POST", INFER, b"x" * 100_000)[:50_000]),
        lambda s: s.sendall(os.urandom(2000)),
    ]
    for i in range(400):
        with socket.create_connection(("127.0.0.1", client.harness.ports[0])) as s:
            abuse[i % len(abuse)](s)

    async def settled() -> bool:
        after = await status()
        keys = ("inflight", "bytes_held")
        return after["connections"] <= before["connections"] and all(after[k] == 0 for k in keys)

    client.run(client.harness.until(settled, 10, "counts are back to base"))
    assert descriptors_of(gateway) <= descriptors + 1
    assert resident_kb(gateway) < resident + 20_000
    assert client.ask("POST", INFER, infer_body(ROWS)).status == 200


def descriptors_of(pid: int) -> int:
    """0 where nobody but root may know."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        assert os.geteuid() != 0
        return 0


def resident_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")
