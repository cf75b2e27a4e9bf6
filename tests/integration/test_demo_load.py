"""The load generator against a small server that can stall, break and lie."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from understudy.demo.load import CONNECTIONS_READY, AppLoad, LoadGenerator, LoadPlan, Sample, label_of
from understudy.demo.scenario import OFFERED_FRACTION, RATE_PER_S_MAX, offered_per_s
from understudy.wire.errors import Code, UnderstudyError

RATE_PER_S = 200.0
HEAD = re.compile(
    rb"POST /v2/models/(?P<app>[^/]+)/infer HTTP/1.1\r\n.*?Content-Length: (?P<length>\d+)", re.S
)


def answer(app: str = "digits", label: float = 3, classes: int = 10, **changes: Any) -> bytes:
    outputs = [
        {"name": "label", "datatype": "INT64", "shape": [1], "data": [label]},
        {"name": "probabilities", "datatype": "FP32", "shape": [1, classes], "data": [0.1] * classes},
    ]
    return json.dumps({"model_name": app, "outputs": outputs} | changes).encode()


def response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Understudy-Variant: large", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Server:
    """Answers every request with what `reply` makes of its number, counted from 0; None: never."""

    def __init__(self, reply: Callable[[int], bytes | None]) -> None:
        self.reply = reply
        self.requests = 0
        self.connections = 0
        self.open = 0
        self.break_on: set[int] = set()
        self.stalled = asyncio.Event()
        self.stalled.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = HEAD.search(await reader.readuntil(b"\r\n\r\n"))
                assert head
                await reader.readexactly(int(head["length"]))
                number, self.requests = self.requests, self.requests + 1
                await self.stalled.wait()
                if number in self.break_on:
                    break
                content = self.reply(number)
                if content is not None:
                    writer.write(content)
        writer.close()
        self.open -= 1


def plan_for(host: str, port: int) -> LoadPlan:
    load = AppLoad("digits", (b"{}", b"{ }"), (3, 4), 10, RATE_PER_S, deadline_ms=150.0)
    return LoadPlan(host, port, (load,))


@contextlib.asynccontextmanager
async def running(server: Server) -> AsyncIterator[LoadPlan]:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        yield plan_for(*listener.sockets[0].getsockname())
    finally:
        server.stalled.set()
        listener.close()
        await until(lambda: not server.open)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def generate(server: Server, enough: Callable[[list[Sample]], bool]) -> list[Sample]:
    async with running(server) as plan, asyncio.TaskGroup() as group:
        generator = LoadGenerator(plan, group)
        generator.start()
        await until(lambda: enough(generator.samples))
        await generator.stop()
    return sorted(generator.samples, key=lambda sample: sample.due_s)


def test_every_request_is_due_at_its_own_time() -> None:
    server = Server(lambda number: response(answer()))
    samples = asyncio.run(generate(server, lambda samples: len(samples) >= 40))
    gaps_s = [after.due_s - before.due_s for before, after in itertools.pairwise(samples)]
    assert gaps_s == pytest.approx([1 / RATE_PER_S] * len(gaps_s))
    assert {sample.outcome for sample in samples} == {"ok"}
    assert [sample.correct for sample in samples[:4]] == [True, False, True, False]
    assert samples[0].variant == "large"
    assert all(0 <= sample.lag_s <= sample.latency_s for sample in samples)


def test_a_stall_counts_from_the_planned_time_and_stops_no_sending() -> None:
    server = Server(lambda number: response(answer()))

    async def scenario() -> list[Sample]:
        async with running(server) as plan, asyncio.TaskGroup() as group:
            generator = LoadGenerator(plan, group)
            generator.start()
            await until(lambda: len(generator.samples) >= 5)
            server.stalled.clear()
            before = server.requests
            await until(lambda: server.requests >= before + 12)  # goes on sending without any answer
            server.stalled.set()
            await until(lambda: len(generator.samples) >= before + 12)
            await generator.stop()
            return generator.samples

    samples = asyncio.run(scenario())
    assert max(sample.latency_s for sample in samples) >= 10 / RATE_PER_S
    assert {sample.outcome for sample in samples} == {"ok"}


def test_what_is_not_a_well_formed_200_in_time_has_failed() -> None:
    replies = {
        3: response(b'{"error": "busy"}', "503 Service Unavailable"),
        4: response(answer(app="wine")),
        5: b"nonsense\r\n\r\n",
        6: None,
    }
    server = Server(lambda number: replies.get(number, response(answer())))
    server.break_on = {7}
    samples = asyncio.run(generate(server, lambda samples: len(samples) >= 50))
    failed = [sample.outcome for sample in samples if sample.outcome != "ok"]
    assert sorted(failed) == ["lost", "malformed", "malformed", "status", "timeout"]
    timeout = next(sample for sample in samples if sample.outcome == "timeout")
    assert timeout.latency_s >= 0.15
    assert next(sample.status for sample in samples if sample.outcome == "status") == 503


def test_connections_are_kept_and_replaced() -> None:
    closing = response(answer(), "200 OK", "Connection: close")
    server = Server(lambda number: closing if number == 10 else response(answer()))
    samples = asyncio.run(generate(server, lambda samples: len(samples) >= 60))
    assert {sample.outcome for sample in samples} == {"ok"}
    assert server.connections < 10


def test_nobody_listening_fails_each_request() -> None:
    async def scenario() -> list[Sample]:
        with socket.socket() as taken:  # bound, so nobody else gets the port; not listening
            taken.bind(("127.0.0.1", 0))
            async with asyncio.TaskGroup() as group:
                generator = LoadGenerator(plan_for(*taken.getsockname()), group)
                generator.start()
                await until(lambda: len(generator.samples) >= 10)
                await generator.stop()
        return generator.samples

    assert {sample.outcome for sample in asyncio.run(scenario())} == {"unsent"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        answer(app="wine"),
        answer(label=10),
        answer(label=-1),
        answer(outputs=[]),
        answer(classes=9),
        answer().replace(b"0.1]", b"1e999]"),
        answer().replace(b"INT64", b"INT32"),
        answer().replace(b"[1, 10]", b"[10, 1]"),
    ],
)
def test_malformed_answers_name_no_class(body: bytes) -> None:
    assert label_of(body, "digits", 10) is None


def test_a_well_formed_answer_names_a_class() -> None:
    assert label_of(answer(label=7), "digits", 10) == 7


def test_in_a_closed_loop_each_connection_asks_again_once_it_is_answered() -> None:
    server = Server(lambda number: response(answer()))

    async def scenario() -> list[Sample]:
        async with running(server) as plan, asyncio.TaskGroup() as group:
            load = msgspec.structs.replace(plan.apps[0], rate_per_s=0.0)
            generator = LoadGenerator(msgspec.structs.replace(plan, apps=(load,)), group)
            generator.start()
            await until(lambda: len(generator.samples) >= 200)
            await generator.stop()
            return generator.samples

    samples = asyncio.run(scenario())
    assert {sample.outcome for sample in samples} == {"ok"}
    assert server.connections <= CONNECTIONS_READY


def test_a_slow_machine_is_offered_less_and_one_that_hardly_moves_tells_nothing() -> None:
    assert offered_per_s(100_000.0, 8) == RATE_PER_S_MAX
    assert offered_per_s(800.0, 8) == pytest.approx(OFFERED_FRACTION * 100.0)
    with pytest.raises(UnderstudyError, match="too busy to tell") as caught:
        offered_per_s(8.0, 8)
    assert caught.value.code is Code.BUSY
