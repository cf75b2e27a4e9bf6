"""One call against gateways that break, stall and refuse as scripted."""

from __future__ import annotations

import asyncio
import json
import pickle
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import wraps
from typing import Any

import numpy as np
import pytest
from client_world import ANSWERED, CLOSE, SILENCE, Got, Saying, Scripted, doubled, gateways, refused

from understudy.client import (
    AsyncClient,
    BadAnswer,
    ClientError,
    Closed,
    Denied,
    Forbidden,
    InvalidInput,
    ModelFailed,
    NotFound,
    Overloaded,
    RateLimited,
    Timeout,
    Unauthenticated,
    Unavailable,
)
from understudy.client.errors import CLASSES, refusal
from understudy.client.gateways import AppPace, Gateways, parse_addresses
from understudy.wire.errors import Code

X = {"x": np.array([[1.0, 2.0]], np.float32)}


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def client_of(scripted: list[Scripted], **settings: Any) -> AsyncClient:
    return AsyncClient([each.url for each in scripted], **{"timeout_s": 20.0, **settings})


def dead_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def both_meet_first(one: Scripted, other: Scripted, saying: Saying) -> None:
    """Whoever is asked first says that; from the second request on they answer."""

    def say(got: Got) -> Saying:
        return saying if len(one.got) + len(other.got) == 1 else doubled(got)

    one.infer = other.infer = say


@in_loop
async def test_an_answer_says_who_gave_it():
    async with gateways(1) as (only,), client_of([only]) as client:
        only.infer = lambda got: Saying(
            body=doubled(got).body, headers={**ANSWERED, "Understudy-Degraded": "failover"}
        )
        answer = await client.infer("double", X)
        assert answer.outputs["y"].tolist() == [[2.0, 4.0]]
        assert answer.outputs["y"].dtype == np.float32
        assert (answer.variant, answer.version, answer.degraded) == ("big", 1, "failover")
        assert (answer.gateway, answer.request_id) == (only.url, "r-1")
        assert answer.latency_s > 0


@in_loop
async def test_calls_share_a_connection_and_what_is_known():
    async with gateways(1) as (only,), client_of([only]) as client:
        for _ in range(5):
            await client.infer("double", X)
        assert only.connections == 1
        assert only.gets == ["/v2/models/double", "/v2"]


@in_loop
async def test_a_gateway_that_is_gone_costs_no_call():
    async with gateways(1) as (good,):
        client = AsyncClient([dead_url(), dead_url(), good.url])
        for _ in range(10):
            assert (await client.infer("double", X)).gateway == good.url
        await client.close()


@pytest.mark.parametrize(
    "saying", [CLOSE, Saying(502), Saying(503), refused(503, "draining", Retry_After="9")]
)
@in_loop
async def test_what_a_gateway_fails_the_other_answers(saying: Saying):
    async with gateways(2) as (one, other), client_of([one, other]) as client:
        both_meet_first(one, other, saying)
        assert (await client.infer("double", X)).outputs["y"].tolist() == [[2.0, 4.0]]
        assert [len(one.got), len(other.got)] == [1, 1]


@in_loop
async def test_what_must_not_be_sent_twice_is_not():
    async with gateways(2) as (one, other), client_of([one, other]) as client:
        both_meet_first(one, other, CLOSE)
        with pytest.raises(Unavailable) as caught:
            await client.infer("double", X, idempotent=False)
        assert caught.value.code is Code.LINK_LOST
        assert len(one.got) + len(other.got) == 1


@in_loop
async def test_a_gateway_that_does_not_know_a_model_is_not_believed_alone():
    async with gateways(2) as (one, other), client_of([one, other], check=False) as client:
        both_meet_first(one, other, refused(404, "not-found"))
        await client.infer("double", X)
        one.infer = other.infer = lambda got: refused(404, "not-found")
        with pytest.raises(NotFound, match="as scripted"):
            await client.infer("double", X)


@in_loop
async def test_retry_after_is_kept_and_each_attempt_told_what_is_left():
    async with gateways(1) as (only,), client_of([only]) as client:
        only.infer = lambda got: refused(503, "shed", Retry_After="1") if len(only.got) == 1 else doubled(got)
        answer = await client.infer("double", X, timeout_s=5)
        assert answer.latency_s >= 1
        first, second = (int(got.headers["understudy-timeout-ms"]) for got in only.got)
        assert 4000 < first <= 5000
        assert second <= first - 1000


@in_loop
async def test_a_wait_beyond_the_deadline_is_not_begun():
    async with gateways(1) as (only,), client_of([only]) as client:
        only.infer = lambda got: refused(503, "shed", Retry_After="60")
        with pytest.raises(Overloaded) as caught:
            await client.infer("double", X)
        assert (caught.value.retry_after_s, caught.value.status) == (60, 503)


@in_loop
async def test_the_deadline_ends_a_call():
    async with gateways(2) as scripted, client_of(scripted) as client:
        for each in scripted:
            each.infer = lambda got: SILENCE
        with pytest.raises(Timeout, match=r"asked http.*, http") as caught:
            await client.infer("double", X, timeout_s=0.1)
        assert caught.value.code is Code.TIMEOUT
        for each in scripted:
            await asyncio.wait_for(each.hung_up.wait(), 10)


@in_loop
async def test_a_silent_gateway_gets_a_rival_and_the_loser_is_cancelled():
    async with gateways(2) as (one, other), client_of([one, other]) as client:
        both_meet_first(one, other, SILENCE)
        answer = await client.infer("double", X, timeout_s=1.5)
        loser = other if answer.gateway == one.url else one
        await asyncio.wait_for(loser.hung_up.wait(), 10)
        assert [len(one.got), len(other.got)] == [1, 1]


@in_loop
async def test_no_rival_if_told_so_or_not_idempotent():
    for settings, asked in (({"hedge": False}, {}), ({}, {"idempotent": False})):
        async with gateways(2) as (one, other), client_of([one, other], **settings) as client:
            one.infer = other.infer = lambda got: SILENCE
            with pytest.raises(Timeout):
                await client.infer("double", X, timeout_s=0.1, **asked)
            assert len(one.got) + len(other.got) == 1


@in_loop
async def test_a_cancelled_call_leaves_nothing_behind():
    async with gateways(1) as (only,), client_of([only]) as client:
        only.infer = lambda got: SILENCE
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(client.infer("double", X))
            await only.asked.wait()
            call.cancel()
        assert call.cancelled()
        await asyncio.wait_for(only.hung_up.wait(), 10)
        only.infer = doubled
        await client.infer("double", X)


@pytest.mark.parametrize(
    ("status", "code", "class_"),
    [
        (400, "invalid-argument", InvalidInput),
        (401, "unauthenticated", Unauthenticated),
        (403, "forbidden", Forbidden),
        (408, "timeout", Timeout),
        (413, "too-large", InvalidInput),
        (429, "rate-limited", RateLimited),
        (503, "shed", Overloaded),
        (500, "model-failed", ModelFailed),
        (500, "poison", ModelFailed),
        (500, "a-code-of-the-future", ClientError),
        (503, "unavailable", Unavailable),
        (302, "", BadAnswer),
    ],
)
@in_loop
async def test_a_refusal_is_a_typed_error(status: int, code: str, class_: type[ClientError]):
    async with gateways(1) as (only,), client_of([only]) as client:
        only.infer = lambda got: refused(status, code, X_Request_Id="r-7", Retry_After="99")
        with pytest.raises(class_, match="as scripted") as caught:
            await client.infer("double", X)
        error = caught.value
        assert type(error) is class_
        assert (error.request_id, error.gateway, error.status) == ("r-7", only.url, status)
        assert isinstance(error, ClientError)
        assert "r-7" in str(error)


@pytest.mark.parametrize(
    ("status", "class_", "parent", "retryable"),
    [
        (401, Unauthenticated, Denied, False),
        (403, Forbidden, Denied, False),
        (429, RateLimited, Overloaded, True),
    ],
)
@pytest.mark.parametrize("code", [None, "a-code-of-the-future"])
def test_who_is_not_let_in_is_told_so_by_a_proxy_too(
    status: int, class_: type[ClientError], parent: type[ClientError], retryable: bool, code: str | None
):
    error = refusal(status, code, "no", request_id=None, gateway="http://g", retry_after_s=7)
    assert (type(error), error.retryable, error.retry_after_s) == (class_, retryable, 7)
    assert isinstance(error, parent)
    assert CLASSES[error.code] is class_
    assert type(pickle.loads(pickle.dumps(error))) is class_


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"outputs": [{"name": "y"}]}', b"\xff"])
@in_loop
async def test_what_is_no_answer_is_a_bad_one(body: bytes):
    async with gateways(1) as (only,), client_of([only]) as client:
        only.infer = lambda got: Saying(body=body)
        with pytest.raises(BadAnswer):
            await client.infer("double", X)


@in_loop
async def test_no_http_at_all():
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(rude, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable):
            await AsyncClient(f"http://127.0.0.1:{port}", check=False).infer("m", X, timeout_s=0.2)


@in_loop
async def test_binary_tensors_where_they_are_offered():
    def binary(got: Got) -> Saying:
        at = int(got.headers["inference-header-content-length"])
        assert json.loads(got.body[:at])["parameters"] == {"binary_data_output": True}
        x = np.frombuffer(got.body[at:], "<f4")
        tensor = {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
        head = json.dumps({"outputs": [tensor]}).encode()
        length = {"Inference-Header-Content-Length": str(len(head))}
        return Saying(body=head + (x * 2).tobytes(), headers={**ANSWERED, **length})

    async with gateways(2) as (old, new), client_of([old, new]) as client:
        new.extensions, new.infer = ["binary_tensor_data"], binary
        for _ in range(4):
            assert (await client.infer("double", X)).outputs["y"].tolist() == [[2.0, 4.0]]
        assert old.got, "both were asked, each in its own way"
        assert new.got


@in_loop
async def test_metadata_is_fetched_again_for_a_new_version():
    async with gateways(1) as (only,), client_of([only]) as client:
        await client.infer("double", X)
        only.spec = {**only.spec, "versions": ["2"]}
        only.infer = lambda got: Saying(body=doubled(got).body, headers={"Understudy-Version": "2"})
        for _ in range(3):
            await client.infer("double", X)
        assert only.gets.count("/v2/models/double") == 2


@in_loop
async def test_what_does_not_fit_is_not_sent():
    async with gateways(1) as (only,), client_of([only]) as client:
        with pytest.raises(InvalidInput, match=r"shape \[3\] doesn't fit the model's \[-1,2\]"):
            await client.infer("double", {"x": [1.0, 2.0, 3.0]})
        with pytest.raises(InvalidInput, match=r"give array\[np.newaxis\]"):
            await client.infer("double", [1.0, 2.0])
        with pytest.raises(InvalidInput, match="NaN or infinite"):
            await client.infer("double", [[1.0, np.nan]])
        assert not only.got


@in_loop
async def test_the_key_is_sent_and_not_shown():
    async with gateways(1) as (only,), client_of([only], api_key="s3cret") as client:
        await client.infer("double", X, request_id="mine")
        assert only.got[0].headers["authorization"] == "Bearer s3cret"
        assert only.got[0].headers["x-request-id"] == "mine"
        assert "s3cret" not in repr(client)
        with pytest.raises(InvalidInput) as caught:
            AsyncClient(only.url, api_key="s3\r\ncret")
        assert "cret" not in str(caught.value)


@in_loop
async def test_a_closed_client_says_so():
    async with gateways(1) as (only,):
        client = client_of([only])
        await client.infer("double", X)
        await client.close()
        with pytest.raises(Closed):
            await client.infer("double", X)


def test_one_client_in_two_loops_in_turn():
    async def play(client: AsyncClient) -> None:
        async with gateways(1) as (only,):
            client._addresses = parse_addresses(only.url, None)
            await client.infer("double", X)
            client._gateways.close()

    client = AsyncClient("http://127.0.0.1:1")
    asyncio.run(play(client))
    asyncio.run(play(client))


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://a", "http://", "http://a:99999", "http://a:x", "http://me:pw@a"]
)
def test_a_url_that_is_none_is_refused(url: str):
    with pytest.raises(InvalidInput) as caught:
        AsyncClient(url)
    assert "pw" not in str(caught.value)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_failed_gateway_is_avoided_then_probed_by_one_call():
    clock = Clock()
    known = Gateways(parse_addresses(["http://a:1", "http://b:1"], None), clock)
    bad, good = known.all
    bad.failed(bad.asked())
    assert {known.choose([]) for _ in range(4)} == {good}
    assert known.choose_rival([good]) is None
    assert known.choose([good]) is bad, "the last one is asked all the same"
    clock.now += 2
    assert bad in {known.choose([]) for _ in range(2)}
    assert bad not in {known.choose([], idempotent=False) for _ in range(4)}
    number = bad.asked()
    assert {known.choose([]) for _ in range(4)} == {good}
    bad.answered(number)
    assert {known.choose([]) for _ in range(4)} == {good, bad}


def test_waits_follow_what_was_measured():
    pace = AppPace(0.0)
    assert (pace.hedge_s, pace.silence_s) == (AppPace.HEDGE_S_MAX, None)
    for _ in range(100):
        pace.record(0.1)
    pace.refresh(1.0)
    assert pace.hedge_s == pytest.approx(0.1, rel=0.15)
    assert pace.silence_s == pytest.approx(0.8, rel=0.15)


@in_loop
async def test_one_broken_connection_does_not_condemn_the_only_gateway():
    async with gateways(1) as (only,), client_of([only]) as client:
        only.infer = lambda got: CLOSE if len(only.got) == 1 else doubled(got)
        await client.infer("double", X)
        assert [len(only.got), only.connections] == [2, 2]


@in_loop
async def test_input_that_cannot_be_sent_leaves_no_connection_open():
    async with gateways(1) as (only,), client_of([only]) as client:
        for _ in range(3):
            with pytest.raises(InvalidInput, match="NaN"):
                await client.infer("double", [[np.nan, 1.0]])
        assert only.connections == 1
